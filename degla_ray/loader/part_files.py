"""The three ways to an image's bytes: in local parts, in local copies of remote parts, and by requests.

What later batches need is fetched while a batch is decoded: parts up to half of the cache, or the images of
one batch. At 40 ms a request, 24 requests at a time give 600 images per second, more than a core decodes.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from degla_ray.loader.samples import Samples
from degla_ray.loader.shard_cache import ShardCache
from degla_ray.storage import Storage

OPEN_PARTS = 256
PARTS_AT_A_TIME = 4
"""Parts that a decoder fetches at a time; each takes a few megabytes of its memory meanwhile."""
REQUESTS = 24
"""Requests of a decoder at a time; each mostly waits. Arrow's S3 client has 25 connections."""


class LocalParts:
    """Images in files of this machine, of which the most recently used stay open."""

    def __init__(self, samples: Samples, storage: Storage) -> None:
        self.samples, self.storage = samples, storage
        self._open: OrderedDict[int, int] = OrderedDict()

    def expect(self, numbers: Sequence[int]) -> bool:
        """Start to fetch what these images need; return whether there is room for more after them."""
        return False

    def read(self, numbers: Sequence[int]) -> list[bytes]:
        """Return the images' bytes."""
        return [self._read(number) for number in numbers]

    def read_again(self, number: int) -> bytes:
        """Return an image's bytes anew, because those read before were damaged."""
        return self._read(number)

    def _read(self, number: int) -> bytes:
        samples, part = self.samples, int(self.samples.part_I[number])
        if part not in self._open:
            self._open[part] = self._open_part(samples.parts[part])
            while self._too_many_open():
                os.close(self._open.popitem(last=False)[1])
        self._open.move_to_end(part)
        return os.pread(self._open[part], int(samples.length_I[number]), int(samples.offset_I[number]))

    def _open_part(self, name: str) -> int:
        return os.open(self.storage.path("images", name), os.O_RDONLY)

    def _too_many_open(self) -> bool:
        return len(self._open) > OPEN_PARTS


class CachedParts(LocalParts):
    """Images in local copies of remote parts.

    Half of the cache is for parts that are open, because a part's bytes stay on the disk while it is, and
    half for those fetched ahead.
    """

    def __init__(self, samples: Samples, storage: Storage, cache: ShardCache) -> None:
        super().__init__(samples, storage)
        self._cache = cache
        self._threads = ThreadPoolExecutor(PARTS_AT_A_TIME, "parts")
        self._fetched: dict[int, Future[None]] = {}  # parts that no image was read from yet
        self._bytes_P = np.bincount(samples.part_I, samples.length_I, minlength=len(samples.parts))

    def expect(self, numbers: Sequence[int]) -> bool:
        for part in self._parts_of(numbers):
            if self._is_missing(part):
                if self._bytes((*self._fetched, part)) > self._cache.max_bytes / 2:
                    return False
                self._fetch(part)
        return True

    def read(self, numbers: Sequence[int]) -> list[bytes]:
        parts = self._parts_of(numbers)
        for part in parts:
            if self._is_missing(part):
                self._fetch(part)
        for part in parts:
            if part in self._fetched:
                self._fetched.pop(part).result()
        return super().read(numbers)

    def read_again(self, number: int) -> bytes:
        part = int(self.samples.part_I[number])
        if part in self._open:
            os.close(self._open.pop(part))
        self._cache.forget("images", self.samples.parts[part])
        return self._read(number)

    def _open_part(self, name: str) -> int:
        return self._cache.open("images", name)

    def _too_many_open(self) -> bool:
        over = self._bytes(self._open) > self._cache.max_bytes / 2
        return super()._too_many_open() or (over and len(self._open) > 1)

    def _parts_of(self, numbers: Sequence[int]) -> list[int]:
        """Return the parts of these images, in the order of their first use."""
        return list(dict.fromkeys(self.samples.part_I[list(numbers)].tolist()))

    def _is_missing(self, part: int) -> bool:
        known = part in self._open or part in self._fetched
        return not known and not self._cache.holds("images", self.samples.parts[part])

    def _fetch(self, part: int) -> None:
        self._fetched[part] = self._threads.submit(self._cache.fetch, "images", self.samples.parts[part])

    def _bytes(self, parts: Iterable[int]) -> float:
        return float(self._bytes_P[list(parts)].sum())


class Ranges:
    """Images of a remote data set, one request each."""

    def __init__(self, samples: Samples, storage: Storage) -> None:
        self.samples, self.storage = samples, storage
        self._threads = ThreadPoolExecutor(REQUESTS, "images")
        self._files: dict[int, pa.NativeFile] = {}  # opening one takes a request, too
        self._expected: dict[int, Future[bytes]] = {}

    def expect(self, numbers: Sequence[int]) -> bool:
        """Start to fetch these images. There is room for one batch, so the result is False."""
        for number in numbers:
            if number not in self._expected:
                self._expected[number] = self._threads.submit(self.read_again, number)
        return False

    def read(self, numbers: Sequence[int]) -> list[bytes]:
        """Return the images' bytes."""
        self.expect(numbers)
        found = {number: self._expected.pop(number) for number in dict.fromkeys(numbers)}
        return [found[number].result() for number in numbers]

    def read_again(self, number: int) -> bytes:
        """Return an image's bytes from the store."""
        samples, part = self.samples, int(self.samples.part_I[number])
        if part not in self._files:
            self._files[part] = self.storage.open_file("images", samples.parts[part])
        file = self._files[part]
        return bytes(file.read_at(int(samples.length_I[number]), int(samples.offset_I[number])))
