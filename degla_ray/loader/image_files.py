"""Bytes of training images, read exactly: from local parts, local copies of remote parts, or by range.

Remote parts are copied to the node's cache if the data set fits into it, or if the order keeps few parts in
use (`data.block_rows`). A larger data set in plain random order would fetch a whole part for each image, so
there each image is one request for its bytes, several at a time.
"""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from degla_ray.errors import DataError
from degla_ray.loader.samples import Samples
from degla_ray.loader.shard_cache import ShardCache
from degla_ray.storage import Storage

OPEN_PARTS = 256
REQUESTS = 16
"""Requests of a decoder to a remote store at a time; each mostly waits."""


@dataclass(frozen=True, kw_only=True)
class CacheSpec:
    """Where local copies of remote parts are.

    Attributes:
        folder: local folder, shared by the processes of a node.
        max_bytes: its largest size.
        whole_parts: whether to copy parts even if the data set is larger.
    """

    folder: str
    max_bytes: int
    whole_parts: bool


class ImageFiles:
    """A reader of images' bytes by number."""

    def __init__(self, samples: Samples, cache: CacheSpec) -> None:
        self.samples = samples
        self._storage = Storage(samples.folder)
        self._local = self._storage.is_local
        fits = int(samples.length_I.sum()) <= cache.max_bytes
        self._cache = None
        if not self._local and (fits or cache.whole_parts):
            self._cache = ShardCache(self._storage, cache.folder, cache.max_bytes)
        self._open: OrderedDict[int, int] = OrderedDict()
        self._threads = None if self._local else ThreadPoolExecutor(REQUESTS, "images")

    def read(self, numbers: Sequence[int]) -> list[bytes]:
        """Return the encoded images.

        Raises:
            DataError: bytes do not have the checksum that `prepare` wrote.
        """
        if self._threads is None:
            return [self._image(number) for number in numbers]
        if self._cache is not None:
            self._fetch_parts(self._cache, self._threads, numbers)
            return [self._image(number) for number in numbers]
        return list(self._threads.map(self._image, numbers))

    def _fetch_parts(self, cache: ShardCache, threads: ThreadPoolExecutor, numbers: Sequence[int]) -> None:
        """Fetch the parts of these images, several at a time, unless they are open."""
        parts = dict.fromkeys(int(p) for p in self.samples.part_I[list(numbers)])
        missing = [p for p in parts if p not in self._open]
        list(threads.map(lambda p: cache.fetch("images", self.samples.parts[p]), missing))

    def describe(self, number: int) -> str:
        """Return an image's id and file, for messages."""
        where = self._storage.path("images", self.samples.parts[int(self.samples.part_I[number])])
        return f"image {self.samples.image_id[number].as_py()!r} in {where}"

    def _image(self, number: int) -> bytes:
        part, checksum = int(self.samples.part_I[number]), int(self.samples.crc32_I[number])
        data = self._bytes(part, number)
        if zlib.crc32(data) != checksum and self._cache is not None:  # a damaged copy
            self._close(part)
            self._cache.forget("images", self.samples.parts[part])
            data = self._bytes(part, number)
        if zlib.crc32(data) != checksum:
            raise DataError(
                self.describe(number), "bytes with another checksum", "those that `prepare` wrote"
            )
        return data

    def _bytes(self, part: int, number: int) -> bytes:
        offset, length = int(self.samples.offset_I[number]), int(self.samples.length_I[number])
        if self._local or self._cache is not None:
            return os.pread(self._descriptor(part), length, offset)
        with self._storage.filesystem.open_input_file(
            self._storage.path("images", self.samples.parts[part])
        ) as file:
            return bytes(file.read_at(length, offset))

    def _descriptor(self, part: int) -> int:
        if part not in self._open:
            name = self.samples.parts[part]
            if self._cache is None:
                self._open[part] = os.open(self._storage.path("images", name), os.O_RDONLY)
            else:
                self._open[part] = self._cache.open("images", name)
            if len(self._open) > OPEN_PARTS:
                os.close(self._open.popitem(last=False)[1])
        self._open.move_to_end(part)
        return self._open[part]

    def _close(self, part: int) -> None:
        if part in self._open:
            os.close(self._open.pop(part))
