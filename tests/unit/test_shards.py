"""Content-hashed shards, manifests and fingerprints."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pickle
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from degla_ray.config import CheckpointConfig
from degla_ray.errors import DataError, FingerprintMismatch
from degla_ray.identity import canonical, fingerprint, flatten
from degla_ray.schema import CAPTIONS, CHOICE_ITEMS, IMAGES, NEIGHBOURS
from degla_ray.stage import (
    MANIFEST,
    StageFolder,
    absolute_from,
    derived_shards,
    part_name,
    read_complete,
    shard_of,
)
from degla_ray.storage import Storage, relative_to

IDENTITY = {"seed": 1, "input": {"train": "abc"}}


def captions(*ids: str) -> pa.Table:
    return pa.Table.from_pylist(
        [{"sample_id": i, "image_id": i, "caption": f"Caption {i}.", "split": "train"} for i in ids],
        schema=CAPTIONS,
    )


def finished(folder: Path, shards: int = 2) -> StageFolder:
    stage = StageFolder(str(folder), "prepare", IDENTITY, shards)
    for shard in range(shards):
        stage.write_part("captions", shard, captions(f"a{shard}", f"b{shard}"))
        stage.write_receipt(shard, {"rows_out": 2})
    stage.finish()
    return stage


def test_shard_of_is_the_same_in_every_process() -> None:
    assert [shard_of(key, 256) for key in ("a", "b", "ä", "")] == [47, 117, 57, 180]


def test_shard_of_spreads_ids_evenly() -> None:
    counts = np.bincount([shard_of(f"image-{i}", 8) for i in range(8000)], minlength=8)
    assert counts.min() > 900
    assert counts.max() < 1100


class _Colour(Enum):
    RED = "red"


@dataclasses.dataclass(frozen=True)
class _Settings:
    a: Any = 1


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, b"bytes", math.nan, math.inf, len, {"a": {"b": [np.int64(1)]}}, {1: "a"}]
)
def test_fingerprint_raises_on_what_has_no_canonical_form(value: object) -> None:
    with pytest.raises(TypeError):
        fingerprint(_Settings(value))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ((1, 2), [1, 2]),
        (_Colour.RED, "red"),
        (Path("x/y"), "x/y"),
        (_Settings(), {"a": 1}),
        (1.0, 1),
    ],
)
def test_fingerprint_of_equal_values_is_equal(one: object, other: object) -> None:
    assert fingerprint(one) == fingerprint(other)


def test_fingerprint_of_equal_configs_is_equal() -> None:
    whole, real = CheckpointConfig(every_minutes=10), CheckpointConfig(every_minutes=10.0)
    assert whole == real
    assert fingerprint(whole) == fingerprint(real)


@pytest.mark.parametrize(("one", "other"), [(1, "1"), (True, 1), (None, ""), ({}, []), (0.1, 0.1 + 1e-16)])
def test_fingerprint_of_other_values_differs(one: object, other: object) -> None:
    assert fingerprint(one) != fingerprint(other)


def test_canonical_survives_json() -> None:
    value = canonical({"a": _Settings(0.1), "b": [1, None, True, "x"]})
    assert json.loads(json.dumps(value)) == value


@pytest.mark.parametrize(
    ("base", "path", "written"),
    [
        ("/a/runs/evaluate/x", "/a/runs/train/y/export", "../../train/y/export"),
        ("/a/runs/evaluate/x", "/a/runs/evaluate/x/features", "./features"),
        ("/a/runs/evaluate/x", "/data/coco", "/data/coco"),
        ("/a/b", "/c", "/c"),
        ("/a/runs/x", "s3://bucket/y", "s3://bucket/y"),
        ("s3://bucket/runs/x", "s3://bucket/runs/y", "../y"),
        ("s3://bucket/x", "s3://other/y", "s3://other/y"),
        ("s3://bucket/x", "/a/y", "/a/y"),
    ],
)
def test_relative_to_names_what_is_near_from_the_folder(base: str, path: str, written: str) -> None:
    value = {"folder": path, "n": 1, "names": [path, "scenes-base", None]}
    there = relative_to(base, value)
    assert there == {"folder": written, "n": 1, "names": [written, "scenes-base", None]}
    assert absolute_from(base, there) == value


def test_flatten_names_every_leaf() -> None:
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}


@pytest.mark.parametrize(
    ("identity", "field"),
    [
        ({"seed": 2, "input": {"train": "abc"}}, "identity.seed"),
        ({"seed": True, "input": {"train": "abc"}}, "identity.seed"),
        ({"seed": 1, "input": {"train": "abd"}}, "identity.input.train"),
        ({"seed": 1, "input": {"train": "abc"}, "more": None}, "identity.more"),
        ({"seed": 1, "input": {"train": "abc"}, "more": {}}, "identity.more"),
        ({"input": {"train": "abc"}}, "identity.seed"),
    ],
)
def test_stage_folder_of_another_identity_is_refused_by_field(
    tmp_path: Path, identity: dict[str, Any], field: str
) -> None:
    StageFolder(str(tmp_path), "prepare", IDENTITY, 2)
    with pytest.raises(FingerprintMismatch, match=field.replace(".", r"\.")) as caught:
        StageFolder(str(tmp_path), "prepare", identity, 2)
    assert list(caught.value.fields) == [field]


def test_stage_folder_of_another_shard_number_or_stage_is_refused(tmp_path: Path) -> None:
    StageFolder(str(tmp_path), "prepare", IDENTITY, 2)
    with pytest.raises(FingerprintMismatch, match="num_shards: 2 there, 3 asked"):
        StageFolder(str(tmp_path), "prepare", IDENTITY, 3)
    with pytest.raises(DataError, match="output of stage 'prepare'"):
        StageFolder(str(tmp_path), "negatives", IDENTITY, 2)


@pytest.mark.parametrize("content", [b"{}", b"[]", b'{"stage": "prepare"'])
def test_stage_folder_with_a_foreign_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(DataError, match=MANIFEST):
        StageFolder(str(tmp_path), "prepare", IDENTITY, 2)
    with pytest.raises(DataError, match=MANIFEST):
        read_complete(str(tmp_path), "prepare")


def test_stage_folder_continues_with_shards_that_lack_a_receipt(tmp_path: Path) -> None:
    first = StageFolder(str(tmp_path), "prepare", IDENTITY, 3)
    first.write_part("captions", 1, captions("a"))
    first.write_receipt(1, {"rows_out": 1})
    second = StageFolder(str(tmp_path), "prepare", dict(reversed(IDENTITY.items())), 3)
    assert second.pending() == [0, 2]
    with pytest.raises(DataError, match="2 shards without a receipt"):
        second.finish()
    assert not StageFolder(str(tmp_path), "prepare", IDENTITY, 3).complete


def test_stage_folder_counts_no_half_written_receipt(tmp_path: Path) -> None:
    stage = StageFolder(str(tmp_path), "prepare", IDENTITY, 2)
    stage.write_receipt(0, {"rows_out": 5})
    (tmp_path / "receipts" / "00001.json.tmp-1f").write_text('{"rows_out": 7')
    assert stage.pending() == [1]
    assert stage.counts() == {"rows_out": 5}


def test_stage_folder_finish_sums_counts_and_clears_left_files(tmp_path: Path) -> None:
    stage = StageFolder(str(tmp_path), "prepare", IDENTITY, 2)
    (tmp_path / "images").mkdir()
    left = tmp_path / "images" / "part-00000-of-00002.parquet.tmp-1f"
    left.write_bytes(b"half")
    for shard in range(2):
        stage.write_receipt(shard, {"rows_out": 5, "rejected": shard})
    assert stage.finish({"rows_in": 11}) == {"rows_out": 10, "rejected": 1, "rows_in": 11}
    assert not left.exists()
    storage, manifest = read_complete(str(tmp_path), "prepare")
    assert manifest["counts"] == {"rows_out": 10, "rejected": 1, "rows_in": 11}
    assert manifest["made_from"]["identity"] == IDENTITY
    assert storage.exists(MANIFEST)


def test_stage_folder_travels_by_pickle(tmp_path: Path) -> None:
    stage = StageFolder(str(tmp_path), "prepare", IDENTITY, 2)
    copy = pickle.loads(pickle.dumps(stage))
    copy.write_receipt(0, {})
    assert stage.pending() == [1]
    assert copy.fingerprint == stage.fingerprint


def test_read_complete_refuses_unfinished_absent_and_other_stages(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no manifest\.json"):
        read_complete(str(tmp_path), "prepare")
    StageFolder(str(tmp_path / "begun"), "prepare", IDENTITY, 2)
    with pytest.raises(DataError, match=r"unfinished.*jobs/prepare\.py"):
        read_complete(str(tmp_path / "begun"), "prepare")
    finished(tmp_path / "done")
    with pytest.raises(DataError, match="stage 'prepare'"):
        read_complete(str(tmp_path / "done"), "negatives")


def test_write_table_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write_table(captions("a"), "captions", "p.parquet")

    def tables() -> Any:
        yield captions("b")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        storage.write_tables(CAPTIONS, tables(), "captions", "p.parquet")
    assert storage.names("captions") == ["p.parquet"]
    assert storage.read_dataset("captions", CAPTIONS).to_pylist() == captions("a").to_pylist()


def test_write_tables_makes_a_row_group_of_each_and_same_bytes_twice(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    group = pa.table(
        {"image_id": ["a", "b"], "image": [b"1" * 99, b"2"], "width": [1, 2], "height": [3, 4]}, schema=IMAGES
    )
    for name in ("one.parquet", "two.parquet"):
        assert storage.write_tables(IMAGES, iter([group, group, group.slice(0, 1)]), "images", name) == 5
    file = storage.open_parquet("images", "one.parquet")
    assert file.num_row_groups == 3
    assert file.metadata.row_group(0).column(1).compression == "UNCOMPRESSED"
    assert file.read().num_rows == 5
    assert storage.read_bytes("images", "one.parquet") == storage.read_bytes("images", "two.parquet")


def test_write_tables_takes_lists_and_no_rows(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    item = {"benchmark": "b", "subset": "s", "item_id": "1", "image_id": "i", "texts": ["x", "y"]}
    table = pa.Table.from_pylist([item], schema=CHOICE_ITEMS)
    storage.write_table(table, "choices", part_name(0, 1))
    assert storage.read_dataset("choices", CHOICE_ITEMS).to_pylist() == table.to_pylist()
    storage.write_tables(CHOICE_ITEMS, [], "none", part_name(0, 1))
    assert storage.read_dataset("none", CHOICE_ITEMS).num_rows == 0


@pytest.mark.parametrize(("rows", "expected"), [(0, 8), (80_000, 8), (80_001, 9), (10_000_000, 1000)])
def test_derived_shards_grow_with_the_rows_from_eight(rows: int, expected: int) -> None:
    assert derived_shards(rows, 10_000) == expected


def test_stage_folder_without_a_number_of_shards_keeps_that_of_the_folder(tmp_path: Path) -> None:
    begun = StageFolder(str(tmp_path), "prepare", {"a": 1}, 3)
    again = StageFolder(str(tmp_path), "prepare", {"a": 1}, None)
    assert (again.num_shards, again.fingerprint) == (3, begun.fingerprint)


def test_read_dataset_reads_parts_in_shard_order_and_columns_as_asked(tmp_path: Path) -> None:
    storage = finished(tmp_path, shards=11).storage
    table = storage.read_dataset("captions", CAPTIONS, ["split", "sample_id"])
    assert table.column_names == ["split", "sample_id"]
    assert table["sample_id"].to_pylist() == [f"{x}{i}" for i in range(11) for x in "ab"]


def test_read_dataset_takes_columns_in_any_order_and_wider_types(tmp_path: Path) -> None:
    table = captions("a").select(["split", "caption", "image_id", "sample_id"])
    wide = table.cast(pa.schema([(name, pa.large_string()) for name in table.column_names]))
    (tmp_path / "captions").mkdir()
    pq.write_table(wide, tmp_path / "captions" / "mine.parquet")
    assert Storage(str(tmp_path)).read_dataset("captions", CAPTIONS).to_pylist() == captions("a").to_pylist()


def test_read_dataset_gives_text_and_lists_offsets_of_64_bits(tmp_path: Path) -> None:
    storage = finished(tmp_path, shards=2).storage
    assert set(storage.read_dataset("captions", CAPTIONS).schema.types) == {pa.large_string()}
    item = {"image_id": "a", "neighbours": ["b"]}
    storage.write_table(pa.Table.from_pylist([item], NEIGHBOURS), "neighbours", part_name(0, 1))
    assert storage.read_dataset("neighbours", NEIGHBOURS).schema.types[1] == pa.large_list(pa.large_string())


def test_read_dataset_without_parts_a_part_or_a_column_says_so(tmp_path: Path) -> None:
    storage = finished(tmp_path, shards=3).storage
    with pytest.raises(DataError, match="no Parquet parts"):
        storage.read_dataset("images", IMAGES)
    with pytest.raises(DataError, match=r"part-00000-of-00003\.parquet.*\['graph'\]"):
        storage.read_dataset("captions", pa.schema([*CAPTIONS, ("graph", pa.string())]))
    (tmp_path / "captions" / part_name(1, 3)).unlink()
    with pytest.raises(DataError, match="2 of its 3 parts"):
        storage.read_dataset("captions", CAPTIONS)


@pytest.mark.parametrize("name", ["a b", "a#b", "a%20b", "a?b", "ä"])
def test_storage_takes_any_local_name(tmp_path: Path, name: str) -> None:
    Storage(str(tmp_path / name)).write_bytes(b"x", "sub", "f")
    assert (tmp_path / name / "sub" / "f").read_bytes() == b"x"
    assert Storage(str(tmp_path / name)).names_below() == ["sub/f"]


def test_storage_uri_and_path_are_the_same_folder(tmp_path: Path) -> None:
    Storage(tmp_path.as_uri()).write_json({"a": 1}, "x.json")
    assert Storage(str(tmp_path)).read_json("x.json") == {"a": 1}


def test_storage_of_an_unknown_scheme_is_one_clear_error() -> None:
    with pytest.raises(DataError, match="ftp://host/x"):
        Storage("ftp://host/x")


def test_storage_bytes_are_on_the_disk_before_a_file_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, bool]] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        fsync(descriptor)
        synced.append((os.readlink(f"/proc/self/fd/{descriptor}"), (tmp_path / "a" / "target").exists()))

    monkeypatch.setattr(os, "fsync", watched)
    storage = Storage(str(tmp_path))
    for write in (
        lambda: storage.write_bytes(b"data", "a", "target"),
        lambda: storage.write_json({}, "a", "target"),
        lambda: storage.write_table(pa.table({"a": [1]}), "a", "target"),
    ):
        synced.clear()
        write()
        [(file, named), (folder, named_then)] = synced
        assert file.startswith(str(tmp_path / "a" / "target.tmp-"))
        assert not named
        assert (folder, named_then) == (str(tmp_path / "a"), True)
        (tmp_path / "a" / "target").unlink()
