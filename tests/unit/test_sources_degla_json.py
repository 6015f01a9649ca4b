"""DeGLA's released JSON as a source, good and bad."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from degla_ray.config import DeglaJsonConfig
from degla_ray.errors import DataError, SettingError
from degla_ray.schema import GIVEN
from degla_ray.sources.base import Unit
from degla_ray.sources.degla_json import DeglaJsonSource
from degla_ray.sources.prepare import Listing
from tests.fixtures_sources import degla_entry, list_balanced, rejected, write_degla_json


def listed(config: DeglaJsonConfig) -> Listing:
    return list_balanced(DeglaJsonSource(config))


def test_degla_json_gives_every_caption_with_its_negatives(tmp_path: Path) -> None:
    entries = [degla_entry(9), degla_entry(25, negatives=6), degla_entry(9, 1)]
    config = write_degla_json(tmp_path, entries, [9, 25])
    listing = listed(config)
    assert listing.rejects == []
    assert [(r.image_id, r.locator) for r in listing.records] == [
        ("9", "train2014/COCO_train2014_000000000009.jpg"),
        ("25", "train2014/COCO_train2014_000000000025.jpg"),
    ]
    assert [c.sample_id for c in listing.records[0].captions] == ["9#0", "9#1"]
    assert listing.records[0].captions[1].given == tuple(entries[2]["enhanced"])
    assert DeglaJsonSource(config).read_image(listing.records[0].locator)[:2] == b"\xff\xd8"
    table = DeglaJsonSource(config).side_tables(listing.records)["given"]
    assert table.schema.equals(GIVEN)
    assert table.num_rows == 14
    assert table.to_pylist()[-1] == {
        "sample_id": "25#0",
        "kind": "given",
        "negative": "A chair on cat 25 0 5.",
    }


def test_degla_json_side_table_without_negatives_is_empty(tmp_path: Path) -> None:
    source = DeglaJsonSource(write_degla_json(tmp_path, [], []))
    table = source.side_tables([])["given"]
    assert (table.num_rows, table.schema.equals(GIVEN)) == (0, True)


def test_degla_json_images_under_another_pattern_or_another_coco_name_are_found(tmp_path: Path) -> None:
    config = write_degla_json(tmp_path, [degla_entry(9)], [9])
    for pattern in ("val2017/%012d.jpg", "COCO_train2014_%012d.jpg"):
        other = DeglaJsonConfig(images=config.images, annotations=config.annotations, pattern=pattern)
        assert listed(other).records[0].locator == "train2014/COCO_train2014_000000000009.jpg"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "n9.png").write_bytes(b"x")
    mine = DeglaJsonConfig(images=config.images, annotations=config.annotations, pattern="mine/n%d.png")
    assert listed(mine).records[0].locator == "mine/n9.png"


@pytest.mark.parametrize(
    "entry",
    [
        "A cat.",
        None,
        ["image_id", 9],
        {"original": "A cat.", "enhanced": ["a", "b", "c", "d"]},
        degla_entry(9) | {"image_id": "9"},
        degla_entry(9) | {"image_id": True},
        degla_entry(9) | {"image_id": 9.0},
        degla_entry(9) | {"image_id": -9},
    ],
)
def test_degla_json_entry_without_a_number_is_malformed(tmp_path: Path, entry: Any) -> None:
    listing = listed(write_degla_json(tmp_path, [degla_entry(9), entry], [9]))
    assert rejected(listing, Unit.CAPTION) == [("released.json[1]", "malformed_row")]
    assert len(listing.records) == 1


@pytest.mark.parametrize(
    ("enhanced", "detail"),
    [
        (None, "its negatives are no list but NoneType"),
        ("A text.", "its negatives are no list but str"),
        (["a", "b", "c"], "3 negatives, fewer than 4"),
        (["a", "b", 3, "d"], "negative 2: not_a_string"),
        (["a", "b", "c", " \n"], "negative 3: empty_caption"),
        (["a", "b", "c", "\ud83d"], "negative 3: not_a_string"),
    ],
)
def test_degla_json_bad_negatives_reject_their_row_and_later_ids_stay(
    tmp_path: Path, enhanced: Any, detail: str
) -> None:
    entries = [degla_entry(9), degla_entry(9, 1) | {"enhanced": enhanced}, degla_entry(9, 2)]
    listing = listed(write_degla_json(tmp_path, entries, [9]))
    (reject,) = listing.rejects
    assert (reject.row_id, reject.reason.value, reject.text) == (
        "9#1",
        "malformed_row",
        "A cat on chair 9 1.",
    )
    assert reject.detail.startswith(f"released.json[1]: {detail}")
    assert [c.sample_id for c in listing.records[0].captions] == ["9#0", "9#2"]


@pytest.mark.parametrize(
    ("original", "reason"), [("", "empty_caption"), (None, "not_a_string"), (5, "not_a_string")]
)
def test_degla_json_caption_that_is_none_is_rejected_with_its_image(
    tmp_path: Path, original: Any, reason: str
) -> None:
    listing = listed(write_degla_json(tmp_path, [degla_entry(9) | {"original": original}], [9]))
    assert rejected(listing, Unit.CAPTION) == [("9#0", reason)]
    assert rejected(listing, Unit.IMAGE) == [("9", "image_without_caption")]


def test_degla_json_missing_image_rejects_both(tmp_path: Path) -> None:
    listing = listed(write_degla_json(tmp_path, [degla_entry(9), degla_entry(10)], [9]))
    assert rejected(listing, Unit.IMAGE) == [("10", "missing_image")]
    assert rejected(listing, Unit.CAPTION) == [("10#0", "caption_without_image")]


def test_degla_json_fewer_negatives_are_taken_where_that_is_asked_for(tmp_path: Path) -> None:
    config = write_degla_json(tmp_path, [degla_entry(9, negatives=0)], [9])
    few = DeglaJsonConfig(images=config.images, annotations=config.annotations, min_negatives=0)
    assert listed(few).records[0].captions[0].given == ()


def test_degla_json_broken_file_names_line_column_and_offset(tmp_path: Path) -> None:
    config = write_degla_json(tmp_path, [degla_entry(9), degla_entry(10)], [9])
    path = Path(config.annotations["train"])
    path.write_text(path.read_text()[:-30])
    with pytest.raises(
        DataError,
        match=r"released\.json:19:4 \(character 359\): found broken JSON \(.*\); expected a whole",
    ):
        listed(config)
    path.write_text(json.dumps({"image_id": 9}))
    with pytest.raises(DataError, match=r"found JSON of type dict; expected a list of entries"):
        listed(config)
    path.write_bytes(b'["caf\xe9"]')
    with pytest.raises(DataError, match="unreadable JSON"):
        listed(config)


def test_degla_json_identity_changes_with_the_file(tmp_path: Path) -> None:
    config = write_degla_json(tmp_path, [degla_entry(9)], [9])
    before = DeglaJsonSource(config).identity()
    assert DeglaJsonSource(config).identity() == before
    Path(config.annotations["train"]).write_text("[]")
    assert DeglaJsonSource(config).identity() != before


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"images": "nowhere"}, "degla_json.images"),
        ({"annotations": {}}, "degla_json.annotations"),
        ({"annotations": {"val": "nowhere.json"}}, "degla_json.annotations.val"),
        ({"pattern": "train2014/COCO.jpg"}, "degla_json.pattern"),
        ({"pattern": "%012d/%d.jpg"}, "degla_json.pattern"),
        ({"pattern": "100%.jpg"}, "degla_json.pattern"),
        ({"min_negatives": -1}, "degla_json.min_negatives"),
    ],
)
def test_degla_json_wrong_setting_is_named(tmp_path: Path, changes: dict[str, Any], setting: str) -> None:
    good = write_degla_json(tmp_path, [degla_entry(9)], [9])
    with pytest.raises(SettingError) as caught:
        DeglaJsonSource(
            DeglaJsonConfig(**{"images": good.images, "annotations": good.annotations, **changes})
        )
    assert caught.value.setting == setting
