"""COCO's official captions of both years and Karpathy's split file, good and bad."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from degla_ray.config import CocoConfig
from degla_ray.errors import DataError, SettingError
from degla_ray.schema import RejectReason
from degla_ray.sources.base import Reject, Unit, rejects_table
from degla_ray.sources.coco import CocoSource
from degla_ray.sources.prepare import Listing
from tests.fixtures_sources import (
    encode,
    karpathy_entry,
    list_balanced,
    noise,
    rejected,
    write_coco,
    write_karpathy,
)


def listed(config: CocoConfig) -> Listing:
    return list_balanced(CocoSource(config))


def change(config: CocoConfig, split: str, **added: list[Any]) -> None:
    """Appends entries to the lists of an official file."""
    path = Path(config.annotations[split])
    content = json.loads(path.read_text())
    for key, entries in added.items():
        content[key] += entries
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("year", ["2014", "2017"])
def test_coco_official_gives_every_row(tmp_path: Path, year: str) -> None:
    listing = listed(write_coco(tmp_path, year))
    assert listing.rejects == []
    assert [r.image_id for r in listing.records] == [str(i) for i in (*range(100, 105), *range(200, 205))]
    name = "train2014/COCO_train2014_000000000100.jpg" if year == "2014" else "train2017/000000000100.jpg"
    assert listing.records[0].locator == name
    assert [c.sample_id for c in listing.records[0].captions] == ["1000", "1001"]
    assert {c.split for c in listing.records[-1].captions} == {"val"}


@pytest.mark.parametrize(("named", "lying"), [("2014", "2017"), ("2017", "2014")])
def test_coco_images_of_the_other_year_are_found(tmp_path: Path, named: str, lying: str) -> None:
    config = write_coco(tmp_path / "named", named)
    images = write_coco(tmp_path / "lying", lying).images
    listing = listed(CocoConfig(images=images, annotations=config.annotations))
    assert listing.rejects == []
    assert listing.records[0].locator.startswith(f"train{lying}/")


def test_coco_images_directly_in_the_folder_are_found(tmp_path: Path) -> None:
    config = write_coco(tmp_path, "2017")
    listing = listed(
        CocoConfig(images=str(tmp_path / "train2017"), annotations={"train": config.annotations["train"]})
    )
    assert (len(listing.records), listing.rejects) == (5, [])


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        ("", RejectReason.EMPTY_CAPTION),
        (" \n\t", RejectReason.EMPTY_CAPTION),
        (None, RejectReason.NOT_A_STRING),
        (17, RejectReason.NOT_A_STRING),
        (["A", "list"], RejectReason.NOT_A_STRING),
        (math.nan, RejectReason.NOT_A_STRING),
        ("half a pair \ud83d", RejectReason.NOT_A_STRING),
    ],
)
def test_coco_caption_that_is_none_is_rejected(tmp_path: Path, caption: object, reason: RejectReason) -> None:
    config = write_coco(tmp_path)
    change(config, "train", annotations=[{"id": 9, "image_id": 100, "caption": caption}])
    assert rejected(listed(config), Unit.CAPTION) == [("9", reason.value)]


def test_coco_annotation_without_caption_key_is_rejected(tmp_path: Path) -> None:
    config = write_coco(tmp_path)
    change(config, "train", annotations=[{"id": 9, "image_id": 100}])
    assert rejected(listed(config), Unit.CAPTION) == [("9", "not_a_string")]


@pytest.mark.parametrize(
    "entry", [{"image_id": 100, "caption": "A."}, {"id": True, "image_id": 1}, "A cat.", None]
)
def test_coco_annotation_without_ids_is_malformed(tmp_path: Path, entry: object) -> None:
    config = write_coco(tmp_path)
    change(config, "train", annotations=[entry])
    assert rejected(listed(config), Unit.CAPTION) == [
        ("captions_train2014.json annotations[10]", "malformed_row")
    ]


@pytest.mark.parametrize("entry", [{"id": 7}, {"file_name": "a.jpg"}, {"id": "\ud800", "file_name": "a"}, 3])
def test_coco_image_without_id_or_name_is_malformed(tmp_path: Path, entry: object) -> None:
    config = write_coco(tmp_path)
    change(config, "train", images=[entry])
    assert rejected(listed(config), Unit.IMAGE) == [("captions_train2014.json images[5]", "malformed_row")]


def test_coco_repeated_ids_are_rejected_once_each(tmp_path: Path) -> None:
    config = write_coco(tmp_path)
    again = {"id": 100, "file_name": "COCO_train2014_000000000100.jpg"}
    change(config, "train", images=[again], annotations=[{"id": 1000, "image_id": 101, "caption": "Again."}])
    listing = listed(config)
    assert rejected(listing, Unit.IMAGE) == [("100", "duplicate_id")]
    assert rejected(listing, Unit.CAPTION) == [("1000", "duplicate_id")]
    assert len(listing.records[0].captions) == 2


def test_coco_image_in_two_splits_stays_in_its_first(tmp_path: Path) -> None:
    config = write_coco(tmp_path)
    again = {"id": 100, "file_name": "COCO_train2014_000000000100.jpg"}
    change(config, "val", images=[again], annotations=[{"id": 9, "image_id": 100, "caption": "Leaks."}])
    listing = listed(config)
    assert rejected(listing, Unit.IMAGE) == [("100", "duplicate_id")]
    assert rejected(listing, Unit.CAPTION) == [("9", "duplicate_id")]


def test_coco_caption_of_unknown_image_and_image_without_caption_are_rejected(tmp_path: Path) -> None:
    config = write_coco(tmp_path)
    (tmp_path / "train2014" / "mute.jpg").write_bytes(encode(noise()))
    change(
        config,
        "train",
        images=[{"id": 7, "file_name": "mute.jpg"}],
        annotations=[{"id": 9, "image_id": 4242, "caption": "Of nothing."}],
    )
    listing = listed(config)
    assert rejected(listing, Unit.IMAGE) == [("7", "image_without_caption")]
    assert rejected(listing, Unit.CAPTION) == [("9", "caption_without_image")]


def test_coco_missing_file_and_name_outside_are_rejected_with_their_captions(tmp_path: Path) -> None:
    config = write_coco(tmp_path / "data")
    (tmp_path / "secret.jpg").write_bytes(encode(noise()))
    change(
        config,
        "train",
        images=[{"id": 7, "file_name": "gone.jpg"}, {"id": 8, "file_name": "../secret.jpg"}],
        annotations=[{"id": i, "image_id": i, "caption": "A."} for i in (7, 8)],
    )
    listing = listed(config)
    assert rejected(listing, Unit.IMAGE) == [("7", "missing_image"), ("8", "outside_folder")]
    assert rejected(listing, Unit.CAPTION) == [("7", "caption_without_image"), ("8", "caption_without_image")]


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (b'{"images": [\n  {"id": 1,}\n]}', r"captions_train2014\.json:2:1\d \(character 2\d\)"),
        (b'{"images": [', "broken JSON"),
        (b"", r":1:1 \(character 0\)"),
        (b'{"images": "\xff"}', "UnicodeDecodeError"),
        (b"[" * 200_000, "RecursionError"),
        (b"[]", "no list 'images'"),
        (b'{"images": []}', "no list 'annotations'"),
    ],
)
def test_coco_broken_file_stops_with_its_place(tmp_path: Path, content: bytes, where: str) -> None:
    config = write_coco(tmp_path)
    Path(config.annotations["train"]).write_bytes(content)
    with pytest.raises(DataError, match=where):
        listed(config)


@pytest.mark.parametrize("year", ["2014", "2017"])
def test_karpathy_split_gives_every_row_and_restval_is_train(tmp_path: Path, year: str) -> None:
    entries = [
        karpathy_entry(100, "train", "train2014"),
        karpathy_entry(101, "restval"),
        karpathy_entry(102, "val"),
        karpathy_entry(103, "test"),
    ]
    listing = listed(write_karpathy(tmp_path, entries, year))
    assert listing.rejects == []
    splits = {r.image_id: {c.split for c in r.captions} for r in listing.records}
    assert splits == {"100": {"train"}, "101": {"train"}, "102": {"val"}, "103": {"test"}}
    assert listing.records[0].captions[1].sample_id == "1001"
    assert listing.records[0].locator.startswith(f"train{year}/")


def test_karpathy_and_official_give_the_same_ids(tmp_path: Path) -> None:
    official = listed(write_coco(tmp_path / "official"))
    entries = [karpathy_entry(i, "train", "train2014") for i in range(100, 105)]
    split = listed(write_karpathy(tmp_path / "karpathy", entries))
    ids = [(r.image_id, r.locator, [c.sample_id for c in r.captions]) for r in split.records]
    assert ids == [(r.image_id, r.locator, [c.sample_id for c in r.captions]) for r in official.records[:5]]


def test_karpathy_bad_entries_are_rejected_with_their_captions(tmp_path: Path) -> None:
    good = [karpathy_entry(100, "train")]
    config = write_karpathy(tmp_path, good)
    bad: list[Any] = [
        karpathy_entry(100, "train"),
        {**karpathy_entry(101, "train"), "split": None},
        karpathy_entry(102, "train", filepath="../.."),
        karpathy_entry(103, "train", sentences=[]),
        karpathy_entry(104, "train", sentences=[{"raw": 5, "sentid": 1}, {"raw": "No file.", "sentid": 2}]),
        "text",
    ]
    assert config.karpathy is not None
    Path(config.karpathy).write_text(json.dumps({"images": good + bad}))
    (tmp_path / "val2014" / "COCO_val2014_000000000103.jpg").write_bytes(encode(noise()))
    listing = listed(config)
    assert len(listing.records) == 1
    assert set(rejected(listing, Unit.IMAGE)) == {
        ("100", "duplicate_id"),
        ("101", "malformed_row"),
        ("102", "outside_folder"),
        ("103", "image_without_caption"),
        ("104", "missing_image"),
        ("dataset_coco.json images[6]", "malformed_row"),
    }
    reasons: dict[str, str] = dict(rejected(listing, Unit.CAPTION))
    assert reasons == {
        "1000": "caption_without_image",
        "1001": "caption_without_image",
        "1010": "caption_without_image",
        "1011": "caption_without_image",
        "1020": "caption_without_image",
        "1021": "caption_without_image",
        "1": "not_a_string",
        "2": "caption_without_image",
    }


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"images": "nowhere"}, "coco.images"),
        ({"annotations": {}}, "coco.annotations"),
        ({"annotations": {"train": "nowhere.json"}}, "coco.annotations.train"),
        ({"annotations": {}, "karpathy": "nowhere.json"}, "coco.karpathy"),
        ({"karpathy": "nowhere.json"}, "coco.annotations"),
    ],
)
def test_coco_wrong_setting_is_named(tmp_path: Path, changes: dict[str, Any], setting: str) -> None:
    good = write_coco(tmp_path)
    with pytest.raises(SettingError) as caught:
        CocoSource(CocoConfig(**{"images": good.images, "annotations": good.annotations, **changes}))
    assert caught.value.setting == setting


def test_rejects_table_keeps_what_utf8_cannot_hold_as_escapes() -> None:
    reject = Reject(
        unit=Unit.CAPTION,
        row_id="9",
        reason=RejectReason.NOT_A_STRING,
        detail="d",
        text="half \ud83d" + "x" * 999,
    )
    (row,) = rejects_table([reject]).to_pylist()
    assert row["text"].startswith("half \\ud83dxx")
    assert (row["kind"], row["stage"], row["reason"]) == ("caption", "prepare", "not_a_string")
