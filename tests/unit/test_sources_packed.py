"""A listing in the driver's memory: the same rows, in order, in less than 100 bytes each."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from degla_ray.schema import RejectReason
from degla_ray.sources.base import Caption, Record, Reject, Unit
from degla_ray.sources.packed import BLOCK, Packed, unpack

WORDS = ("a", "the", "young", "man", "woman", "dog", "red", "blue", "large", "field", "runs", "sits", "near")


def record(number: int, captions: int = 1) -> Record:
    rng = random.Random(number)
    texts = (" ".join(rng.choices(WORDS, k=11)) for _ in range(captions))
    image_id = f"train-00003-{number:07d}"
    own = tuple(Caption(f"{image_id}#{i}", text, "train", ("Wrong.",) * i) for i, text in enumerate(texts))
    return Record(image_id, f"/data/train-00003-of-00100.parquet:{number // 1000}:{number % 1000}", own)


@pytest.mark.parametrize("count", [0, 1, BLOCK, 2 * BLOCK + 3])
def test_packed_records_come_out_as_they_went_in(count: int) -> None:
    records = [record(number, number % 3) for number in range(count)]
    packed = Packed(records)
    assert (len(packed), list(packed), list(packed)) == (count, records, records)
    assert [row for block in packed.drain_blocks() for row in unpack(block)] == records
    assert (len(packed), list(packed)) == (0, [])


def test_packed_rejects_and_lone_surrogates_come_out_as_they_went_in() -> None:
    reject = Reject(
        unit=Unit.IMAGE, row_id="r", reason=RejectReason.OVERSIZED, detail="d", text="\ud83d", image_id="i"
    )
    strange = Record("\u00e4\ud83d", "x", record(1).captions)
    assert list(Packed([reject] * (BLOCK + 1)).drain()) == [reject] * (BLOCK + 1)
    assert list(Packed([strange] * BLOCK)) == [strange] * BLOCK


def test_packed_records_take_less_than_100_bytes_each() -> None:
    tracemalloc.start()
    try:
        packed = Packed(map(record, range(20 * BLOCK)))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 100 * len(packed)
