"""Flickr8k's folder and CSV files, good and bad."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from degla_ray.config import Flickr8kConfig
from degla_ray.errors import DataError, SettingError
from degla_ray.schema import RejectReason
from degla_ray.sources.base import Record, Refusal, Reject, Unit
from degla_ray.sources.flickr8k import Flickr8kSource, parse_csv
from degla_ray.sources.prepare import Listing
from tests.fixtures_sources import encode, list_balanced, noise, write_flickr8k


def rows(text: str | bytes) -> list[tuple[str, str] | Refusal]:
    data = text.encode() if isinstance(text, str) else text
    return [row for _, row in parse_csv(b"image,caption\n" + data, "captions.txt")]


def listed(config: Flickr8kConfig, limit: int | None = None) -> Listing:
    return list_balanced(Flickr8kSource(config), limit)


def only_reject(listing: Listing, unit: Unit) -> Reject:
    (reject,) = [r for r in listing.rejects if r.unit is unit]
    return reject


def add_line(config: Flickr8kConfig, line: str | bytes, split: str = "train") -> None:
    with open(config.captions[split], "ab") as file:
        file.write((line.encode() if isinstance(line, str) else line) + b"\n")


@pytest.mark.parametrize(
    ("line", "row"),
    [
        ("a.jpg,A dog .", ("a.jpg", "A dog .")),
        ("a.jpg,A dog , a cat , and a bird .", ("a.jpg", "A dog , a cat , and a bird .")),
        ('a.jpg,"A dog, a cat"', ("a.jpg", "A dog, a cat")),
        ('a.jpg,"A sign says ""stop"" here"', ("a.jpg", 'A sign says "stop" here')),
        ('"a.jpg","A dog"', ("a.jpg", "A dog")),
        ('a.jpg,"Stop" , says a sign', ("a.jpg", '"Stop" , says a sign')),
        ('a.jpg,A 5" pipe', ("a.jpg", 'A 5" pipe')),
        ("a.jpg,Ein Hündchen läuft .", ("a.jpg", "Ein Hündchen läuft .")),
        ("a.jpg , spaces around ", ("a.jpg", "spaces around")),
        ("a.jpg,", ("a.jpg", "")),
    ],
)
def test_csv_line_splits_at_its_first_comma(line: str, row: tuple[str, str]) -> None:
    assert rows(line) == [row]


@pytest.mark.parametrize(
    "line", [b"no comma at all", b",caption of nothing", b'a.jpg,"never closed', b"a.jpg,caf\xe9 in Latin-1"]
)
def test_csv_malformed_line_is_refused(line: bytes) -> None:
    (row,) = rows(line)
    assert isinstance(row, Refusal)
    assert row.reason is RejectReason.MALFORMED_ROW


def test_csv_mark_crlf_and_blank_lines_are_taken() -> None:
    data = b"\xef\xbb\xbfimage,caption\r\na.jpg,One\r\n\r\n   \r\nb.jpg,Two"
    assert list(parse_csv(data, "x/c.csv")) == [("c.csv:2", ("a.jpg", "One")), ("c.csv:5", ("b.jpg", "Two"))]


@pytest.mark.parametrize("header", [b"", b"a.jpg,A dog", b"image\tcaption", b"file,image,caption"])
def test_csv_without_its_header_stops(header: bytes) -> None:
    with pytest.raises(DataError, match=r"c\.csv:1.*expected the header 'image,caption'"):
        list(parse_csv(header + b"\na.jpg,A dog\n", "c.csv"))


def test_flickr8k_good_folder_gives_every_row(tmp_path: Path) -> None:
    listing = listed(write_flickr8k(tmp_path, images=3, captions=2))
    assert listing.rejects == []
    assert [(r.image_id, r.locator) for r in listing.records] == [(f"p{i}.jpg",) * 2 for i in range(3)]
    last = listing.records[2].captions
    assert [c.sample_id for c in last] == ["p2.jpg#0", "p2.jpg#1"]
    assert {c.split for c in last} == {"val"}
    assert last[1].caption == "A dog runs , number 2 take 1 ."


def test_flickr8k_malformed_row_names_file_and_line(tmp_path: Path) -> None:
    config = write_flickr8k(tmp_path, images=2, captions=1)
    add_line(config, "broken")
    reject = only_reject(listed(config), Unit.CAPTION)
    assert (reject.row_id, reject.reason) == ("train.txt:3", RejectReason.MALFORMED_ROW)
    assert "train.txt:3" in reject.detail


def test_flickr8k_empty_caption_is_rejected_and_later_ids_stay(tmp_path: Path) -> None:
    config = write_flickr8k(tmp_path, images=2, captions=1)
    add_line(config, "p0.jpg,   ")
    add_line(config, "p0.jpg,A second one .")
    listing = listed(config)
    reject = only_reject(listing, Unit.CAPTION)
    assert (reject.row_id, reject.reason) == ("p0.jpg#1", RejectReason.EMPTY_CAPTION)
    assert [c.sample_id for c in listing.records[0].captions] == ["p0.jpg#0", "p0.jpg#2"]


def test_flickr8k_caption_of_a_missing_file_rejects_both(tmp_path: Path) -> None:
    config = write_flickr8k(tmp_path)
    add_line(config, "gone.jpg,A dog .")
    listing = listed(config)
    assert only_reject(listing, Unit.IMAGE).reason is RejectReason.MISSING_IMAGE
    assert only_reject(listing, Unit.CAPTION).reason is RejectReason.CAPTION_WITHOUT_IMAGE
    assert "train.txt:12" in only_reject(listing, Unit.CAPTION).detail


def test_flickr8k_file_without_caption_is_rejected_and_other_files_are_no_pictures(tmp_path: Path) -> None:
    config = write_flickr8k(tmp_path)
    (tmp_path / "Images" / "alone.JPG").write_bytes(encode(noise()))
    (tmp_path / "Images" / ".DS_Store").write_bytes(b"x")
    reject = only_reject(listed(config), Unit.IMAGE)
    assert (reject.row_id, reject.reason) == ("alone.JPG", RejectReason.IMAGE_WITHOUT_CAPTION)


def test_flickr8k_image_whose_captions_are_all_empty_is_without_caption(tmp_path: Path) -> None:
    config = write_flickr8k(tmp_path)
    (tmp_path / "Images" / "mute.jpg").write_bytes(encode(noise()))
    add_line(config, "mute.jpg,")
    reject = only_reject(listed(config), Unit.IMAGE)
    assert (reject.row_id, reject.reason) == ("mute.jpg", RejectReason.IMAGE_WITHOUT_CAPTION)


@pytest.mark.parametrize(
    "name", ["../secret.jpg", "a/../../secret.jpg", "{root}/secret.jpg", "..", "C:\\x.jpg"]
)
def test_flickr8k_name_that_leaves_the_folder_is_rejected(tmp_path: Path, name: str) -> None:
    config = write_flickr8k(tmp_path)
    (tmp_path / "secret.jpg").write_bytes(encode(noise()))
    add_line(config, f"{name.format(root=tmp_path)},A secret .")
    listing = listed(config)
    assert only_reject(listing, Unit.IMAGE).reason is RejectReason.OUTSIDE_FOLDER
    assert only_reject(listing, Unit.CAPTION).reason is RejectReason.CAPTION_WITHOUT_IMAGE


def test_flickr8k_link_out_of_the_folder_is_rejected_and_one_inside_is_not(tmp_path: Path) -> None:
    config = write_flickr8k(tmp_path)
    (tmp_path / "secret.jpg").write_bytes(encode(noise()))
    os.symlink(tmp_path / "secret.jpg", tmp_path / "Images" / "out.jpg")
    os.symlink(tmp_path, tmp_path / "Images" / "up")
    os.symlink("p0.jpg", tmp_path / "Images" / "alias.jpg")
    for name in ("out.jpg", "up/secret.jpg", "alias.jpg"):
        add_line(config, f"{name},A link .")
    listing = listed(config)
    outside = {r.row_id for r in listing.rejects if r.reason is RejectReason.OUTSIDE_FOLDER}
    assert outside == {"out.jpg", "up/secret.jpg"}
    assert "alias.jpg" in {r.image_id for r in listing.records}


def test_flickr8k_folder_that_is_itself_a_link_works(tmp_path: Path) -> None:
    config = write_flickr8k(tmp_path / "disk")
    os.symlink(config.images, tmp_path / "pictures")
    listing = listed(Flickr8kConfig(images=str(tmp_path / "pictures"), captions=config.captions))
    assert (len(listing.records), listing.rejects) == (6, [])


def test_flickr8k_image_in_two_splits_stays_in_its_first(tmp_path: Path) -> None:
    config = write_flickr8k(tmp_path)
    add_line(config, "p0.jpg,Seen in training already .", split="val")
    listing = listed(config)
    reject = only_reject(listing, Unit.CAPTION)
    assert (reject.row_id, reject.reason) == ("p0.jpg#2", RejectReason.DUPLICATE_ID)
    assert {c.split for c in listing.records[0].captions} == {"train"}


def test_flickr8k_name_with_detours_is_the_same_image(tmp_path: Path) -> None:
    config = write_flickr8k(tmp_path, images=2, captions=1)
    add_line(config, "./p0.jpg,The same .")
    assert [c.sample_id for c in listed(config).records[0].captions] == ["p0.jpg#0", "p0.jpg#1"]


def test_flickr8k_limit_takes_from_each_split_in_proportion(tmp_path: Path) -> None:
    config = write_flickr8k(tmp_path, images=12)
    with open(config.captions["val"], "a") as file:
        for index in range(12, 16):
            (tmp_path / "Images" / f"p{index}.jpg").write_bytes(encode(noise(seed=index)))
            file.write(f"p{index}.jpg,A dog .\n")
    (tmp_path / "Images" / "alone.jpg").write_bytes(encode(noise()))
    listing = listed(config, limit=6)  # of 11 train and 5 val
    assert [r.image_id for r in listing.records] == [
        "p0.jpg",
        "p1.jpg",
        "p2.jpg",
        "p3.jpg",
        "p11.jpg",
        "p12.jpg",
    ]
    assert listing.rejects == []
    assert listing.images_in == 6


def test_flickr8k_identity_changes_with_the_captions_only(tmp_path: Path) -> None:
    config = write_flickr8k(tmp_path)
    before = Flickr8kSource(config).identity()
    assert Flickr8kSource(config).identity() == before
    add_line(config, "p0.jpg,One more .")
    assert Flickr8kSource(config).identity() != before


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"images": ""}, "flickr8k.images"),
        ({"images": "nowhere"}, "flickr8k.images"),
        ({"captions": {}}, "flickr8k.captions"),
        ({"captions": {"test": "nowhere.txt"}}, "flickr8k.captions.test"),
    ],
)
def test_flickr8k_wrong_setting_is_named(tmp_path: Path, changes: dict[str, object], setting: str) -> None:
    good = write_flickr8k(tmp_path)
    settings = {"images": good.images, "captions": good.captions, **changes}
    with pytest.raises(SettingError) as caught:
        Flickr8kSource(Flickr8kConfig(**settings))  # type: ignore[arg-type]
    assert caught.value.setting == setting


def test_flickr8k_real_folder_is_listed_without_rejects(real_data: Path) -> None:
    folder = real_data / "flickr8k"
    captions = {split: str(folder / f"captions_{split}.txt") for split in ("train", "val")}
    listing = listed(Flickr8kConfig(images=str(folder / "Images"), captions=captions))
    assert (listing.images_in, listing.captions_in, listing.rejects) == (7000, 35000, [])
    assert all(isinstance(r, Record) and len(r.captions) == 5 for r in listing.records)
