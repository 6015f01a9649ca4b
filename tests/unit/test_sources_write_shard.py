"""What one task does with a shard's records, without Ray."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from degla_ray.schema import CAPTIONS, GIVEN, IMAGES, REJECTS, SCENE_GRAPHS, RejectReason
from degla_ray.sources.base import Caption, Record, Refusal, Reject, Source, Unit, check_caption, given_table
from degla_ray.sources.write_shard import PrepareTask, write_shard
from degla_ray.stage import StageFolder
from tests.fixtures_sources import encode, noise


class DiskSource(Source):
    """A disk on which some files fail: `locator` says how."""

    def identity(self) -> dict[str, Any]:
        return {}

    def records(self) -> Iterator[Record]:
        yield from ()

    def read_image(self, locator: str) -> bytes:
        if locator == "gone":
            raise FileNotFoundError(locator)
        if locator == "locked":
            raise PermissionError(13, "Permission denied", locator)
        if locator == "nul":
            return (Path("/") / "a\0b").read_bytes()
        return b"" if locator == "empty" else encode(noise(seed=len(locator)))

    def side_tables(self, records: list[Record]) -> dict[str, pa.Table]:
        rows = [{"image_id": r.image_id, "graph": "{}"} for r in records]
        return {"graphs": pa.Table.from_pylist(rows, schema=SCENE_GRAPHS)}


def record(image_id: str, locator: str = "good", captions: int = 2) -> Record:
    texts = [
        Caption(f"{image_id}#{i}", f"Caption {i} of {image_id}.", "train", ("Wrong.",) * i)
        for i in range(captions)
    ]
    return Record(image_id, locator, tuple(texts))


def prepare_task(stage: StageFolder) -> PrepareTask:
    source = DiskSource()
    return PrepareTask(folder=stage, source=source, reader=source, max_pixels=10_000, short_side=None)


def run(folder: Path, records: list[Record], rejects: list[Reject]) -> tuple[StageFolder, list[int]]:
    stage = StageFolder(str(folder), "prepare", {}, 1)
    told: list[int] = []
    task = prepare_task(stage)
    write_shard(task, 0, records, rejects, told.append)
    return stage, told


def test_write_shard_files_that_fail_become_rejects_and_the_rest_is_written(tmp_path: Path) -> None:
    names = ("good", "gone", "locked", "nul", "empty")
    stage, told = run(tmp_path, [record(name, name) for name in names], [])
    storage = stage.storage
    assert storage.read_dataset("images", IMAGES)["image_id"].to_pylist() == ["good"]
    assert storage.read_dataset("captions", CAPTIONS)["sample_id"].to_pylist() == ["good#0", "good#1"]
    assert storage.read_dataset("graphs", SCENE_GRAPHS)["image_id"].to_pylist() == ["good"]
    rejects = storage.read_dataset("rejects", REJECTS).to_pylist()
    images = {r["sample_id"]: r["reason"] for r in rejects if r["kind"] == "image"}
    assert images == {
        "gone": "missing_image",
        "locked": "unreadable",
        "nul": "unreadable",
        "empty": "zero_byte",
    }
    captions = {r["sample_id"]: (r["reason"], r["text"]) for r in rejects if r["kind"] == "caption"}
    assert captions["gone#1"] == ("caption_without_image", "Caption 1 of gone.")
    assert len(captions) == 8
    assert stage.counts()["images_rejected"] == 4
    assert told == [5]


def test_write_shard_keeps_the_drivers_rejects_and_counts_them_in_the_receipt(tmp_path: Path) -> None:
    reject = Reject(
        unit=Unit.CAPTION, row_id="f:3", reason=RejectReason.MALFORMED_ROW, detail="no comma", text="x"
    )
    stage, _ = run(tmp_path, [record("a")], [reject])
    assert stage.storage.read_dataset("rejects", REJECTS)["sample_id"].to_pylist() == ["f:3"]
    receipt = json.loads((tmp_path / "receipts" / "00000.json").read_text())
    assert receipt == {
        "images_out": 1,
        "images_out.train": 1,
        "captions_out": 2,
        "captions_rejected": 1,
        "rejected.caption.malformed_row": 1,
    }


def test_write_shard_stores_images_in_small_row_groups(tmp_path: Path) -> None:
    stage, told = run(tmp_path, [record(f"i{i}") for i in range(37)], [])
    with stage.storage.open_parquet("images", "part-00000-of-00001.parquet") as file:
        assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [16, 16, 5]
    assert told == [16, 16, 5]


def test_write_shard_without_records_writes_empty_parts(tmp_path: Path) -> None:
    stage, _ = run(tmp_path, [], [])
    for name, schema in (("images", IMAGES), ("captions", CAPTIONS), ("rejects", REJECTS)):
        assert stage.storage.read_dataset(name, schema).num_rows == 0
    assert stage.pending() == []


def test_write_shard_that_dies_leaves_no_receipt(tmp_path: Path) -> None:
    stage = StageFolder(str(tmp_path), "prepare", {}, 1)
    task = prepare_task(stage)

    def die(images: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(task, 0, [record("a")], [], die)
    assert stage.pending() == [0]
    assert stage.storage.names("images") == []


def test_given_table_holds_every_negative_beside_its_sample() -> None:
    table = given_table([record("a", captions=3), record("b", captions=2)])
    assert table.schema.equals(GIVEN)
    assert table["sample_id"].to_pylist() == ["a#1", "a#2", "a#2", "b#1"]
    assert set(table["kind"].to_pylist()) == {"given"}


@pytest.mark.parametrize(("value", "caption"), [("A dog.", "A dog."), ("  A dog.\n", "A dog."), ("犬", "犬")])
def test_check_caption_strips_white_space_and_changes_nothing_else(value: str, caption: str) -> None:
    assert check_caption(value) == caption


@pytest.mark.parametrize(
    ("value", "reason"),
    [("", "empty_caption"), ("\u2003\n", "empty_caption"), (b"bytes", "not_a_string"), (0.5, "not_a_string")],
)
def test_check_caption_refuses_what_is_none(value: object, reason: str) -> None:
    result = check_caption(value)
    assert isinstance(result, Refusal)
    assert result.reason.value == reason
