"""Images that a source reaches only in groups, copied once to files in which each can be read alone.

Parquet reaches a row only by decoding the rows before it in its row group, and the images of an output shard
are spread over all groups. So each group is read once, by a task of its own, instead of once per shard; the
price is disk space for a copy of the images until the stage has finished. A file is named by its group, and a
rerun keeps those that are there.

    OUTPUT/unpacked/<hash of the group>     the images' bytes, [rows + 1] int64 offsets, int64 rows
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from degla_ray.sources.base import Source
from degla_ray.storage import Storage

FOLDER = "unpacked"
_NUMBER = np.dtype("<i8")


class Unpacked:
    """The unpacked groups of a source.

    Args:
        storage: output folder of the stage.
        source: the source.
    """

    def __init__(self, storage: Storage, source: Source) -> None:
        self._storage, self._source = storage, source
        self._last: tuple[str, _Opened | None] = ("", None)  # records come in the order of the groups

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": ("", None)}

    @property
    def uri(self) -> str:
        return f"{self._storage.uri}/{FOLDER}"

    def missing(self, groups: Iterable[str]) -> list[str]:
        """Return those of some groups that no task has unpacked yet."""
        there = set(self._storage.names(FOLDER))
        return [group for group in groups if _name(group) not in there]

    def unpack(self, group: str) -> None:
        self._storage.write_chunks(self._chunks(group), FOLDER, _name(group))

    def read_image(self, locator: str) -> bytes:
        """Return the bytes of an image, as `Source.read_image` does.

        Raises:
            OSError: the image cannot be read.
        """
        place = self._source.group_of(locator)
        opened = self._opened(place[0]) if place else None
        begin, end = opened.span(place[1]) if place and opened else (0, 0)
        if begin == end:  # no bytes, or an error on the way to them: the source says which
            return self._source.read_image(locator)
        assert opened is not None
        data: bytes = opened.file.read_at(end - begin, begin)
        return data

    def delete(self) -> None:
        self._storage.delete_folder(FOLDER)

    def _opened(self, group: str) -> _Opened | None:
        if self._last[0] != group:
            storage, name = self._storage, _name(group)
            there = storage.is_file(FOLDER, name)
            file = storage.filesystem.open_input_file(storage.path(FOLDER, name)) if there else None
            self._last = (group, _Opened(file) if file else None)
        return self._last[1]

    def _chunks(self, group: str) -> Iterator[bytes]:
        offsets = [0]
        for data in self._source.read_group(group):
            offsets.append(offsets[-1] + len(data))
            yield data
        yield np.array([*offsets, len(offsets) - 1], _NUMBER).tobytes()


class _Opened:
    """An unpacked group, opened for reading."""

    def __init__(self, file: pa.NativeFile) -> None:
        self.file = file
        size = file.size()
        rows = int(np.frombuffer(file.read_at(8, size - 8), _NUMBER)[0])
        begin = size - 8 * (rows + 2)
        self._offsets: NDArray[np.int64] = np.frombuffer(file.read_at(8 * (rows + 1), begin), _NUMBER)

    def span(self, row: int) -> tuple[int, int]:
        """Return the first byte of a row's image and the one behind it, equal if it was not unpacked."""
        if row + 1 >= len(self._offsets):
            return 0, 0
        return int(self._offsets[row]), int(self._offsets[row + 1])


def _name(group: str) -> str:
    return hashlib.blake2b(group.encode(), digest_size=16).hexdigest()
