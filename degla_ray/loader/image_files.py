"""Bytes of training images, read exactly: from local parts, local copies of remote parts, or by range.

Remote parts are copied to the node's cache if the data set fits into it, or if the order keeps few parts in
use (`data.block_rows`). A larger data set in plain random order would fetch a whole part for each image, so
there each image is one request for its bytes, several at a time.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from degla_ray.errors import DataError
from degla_ray.loader.part_files import CachedParts, LocalParts, Ranges
from degla_ray.loader.samples import Samples
from degla_ray.loader.shard_cache import ShardCache
from degla_ray.storage import Storage


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
        self._parts: LocalParts | Ranges
        if self._storage.is_local:
            self._parts = LocalParts(samples, self._storage)
        elif cache.whole_parts or int(samples.length_I.sum()) <= cache.max_bytes:
            copies = ShardCache(self._storage, cache.folder, cache.max_bytes)
            self._parts = CachedParts(samples, self._storage, copies)
        else:
            self._parts = Ranges(samples, self._storage)

    def read(self, numbers: Sequence[int]) -> list[bytes]:
        """Return the encoded images.

        Raises:
            DataError: bytes do not have the checksum that `prepare` wrote.
        """
        return [self._checked(n, data) for n, data in zip(numbers, self._parts.read(numbers), strict=True)]

    def expect(self, numbers: Sequence[int]) -> bool:
        """Start to fetch images that will be read soon; return whether there is room for more after them."""
        return self._parts.expect(numbers)

    def describe(self, number: int) -> str:
        """Return an image's id and file, for messages."""
        where = self._storage.path("images", self.samples.parts[int(self.samples.part_I[number])])
        return f"image {self.samples.image_id[number].as_py()!r} in {where}"

    def _checked(self, number: int, data: bytes) -> bytes:
        checksum = int(self.samples.crc32_I[number])
        if zlib.crc32(data) != checksum:
            data = self._parts.read_again(number)
        if zlib.crc32(data) != checksum:
            raise DataError(
                self.describe(number), "bytes with another checksum", "those that `prepare` wrote"
            )
        return data
