"""Rows of a listing in the driver's memory, compressed: about 40 bytes a caption instead of 1,000.

Rows are packed in blocks of JSON, of which one at a time is unpacked. Blocks also travel to the tasks, so no
cell holds a whole shard: an Arrow cell ends at 2 GiB.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

import pyarrow as pa

from degla_ray.schema import RejectReason
from degla_ray.sources.base import Caption, Record, Reject, Unit

BLOCK = 512
"""Rows of a block: enough for a good ratio, few enough to keep an open one for each of 1,000 shards."""
_SIZE_BYTES = 8

Row = TypeVar("Row", Record, Reject)


class Packed(Generic[Row]):
    """A sequence of records, or of rejects, that can be appended to and iterated over."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self._blocks: list[bytes] = []
        self._open: list[Row] = []
        self._count = 0
        for row in rows:
            self.append(row)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Row]:
        for block in self._blocks:
            yield from unpack(block)
        yield from self._open

    def append(self, row: Row) -> None:
        self._open.append(row)
        self._count += 1
        if len(self._open) == BLOCK:
            self._close()

    def drain(self) -> Iterator[Row]:
        """Yield the rows and give back their memory on the way."""
        for block in self.drain_blocks():
            yield from unpack(block)

    def drain_blocks(self) -> Iterator[bytes]:
        """Yield the blocks, which `unpack` reads, and give back their memory on the way."""
        self._close()
        blocks, self._blocks, self._count = self._blocks[::-1], [], 0
        while blocks:
            yield blocks.pop()

    def _close(self) -> None:
        if self._open:
            self._blocks.append(_pack(self._open))
            self._open = []


def unpack(block: bytes) -> Iterator[Any]:
    """Yield the records or rejects of a block; b"" has none."""
    if not block:
        return
    size = int.from_bytes(block[:_SIZE_BYTES], "little")
    text = pa.Codec("zstd").decompress(block[_SIZE_BYTES:], decompressed_size=size, asbytes=True)
    for kind, *values in json.loads(text):
        yield _record(*values) if kind == "record" else _reject(*values)


def _pack(rows: list[Row]) -> bytes:
    text = json.dumps([_values(row) for row in rows]).encode()
    return len(text).to_bytes(_SIZE_BYTES, "little") + pa.Codec("zstd").compress(text, asbytes=True)


def _values(row: Record | Reject) -> tuple[object, ...]:
    if isinstance(row, Record):
        return ("record", *row)
    return ("reject", row.unit, row.row_id, row.reason, row.detail, row.text, row.image_id)


def _record(image_id: str, locator: str, captions: list[tuple[str, str, str, list[str]]]) -> Record:
    return Record(image_id, locator, tuple(Caption(i, c, s, tuple(given)) for i, c, s, given in captions))


def _reject(unit: str, row_id: str, reason: str, detail: str, text: str, image_id: str) -> Reject:
    return Reject(
        unit=Unit(unit),
        row_id=row_id,
        reason=RejectReason(reason),
        detail=detail,
        text=text,
        image_id=image_id,
    )
