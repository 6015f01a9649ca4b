"""A folder of images and CSV files, good and bad, as Flickr8k and open_clip have them."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from degla_ray.cli import parse
from degla_ray.config import CsvConfig, Flickr8kConfig, PrepareConfig
from degla_ray.errors import DataError, SettingError
from degla_ray.schema import RejectReason
from degla_ray.sources.base import Record, Refusal, Reject, Unit
from degla_ray.sources.csv_captions import CsvSource, parse_csv
from degla_ray.sources.prepare import Listing
from tests.fixtures_sources import encode, list_balanced, noise, write_flickr8k


def rows(text: str | bytes) -> list[tuple[str, str] | Refusal]:
    data = text.encode() if isinstance(text, str) else text
    return [row for _, row in parse_csv(b"image,caption\n" + data, "captions.txt", CsvConfig())]


def listed(config: Flickr8kConfig, limit: int | None = None) -> Listing:
    return list_balanced(CsvSource(config, "flickr8k"), limit)


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
    assert list(parse_csv(data, "x/c.csv", CsvConfig())) == [
        ("c.csv:2", ("a.jpg", "One")),
        ("c.csv:5", ("b.jpg", "Two")),
    ]


@pytest.mark.parametrize(
    "header", [b"", b"a.jpg,A dog", b"image\tcaption", b"image,caption,image", b'"image,caption']
)
def test_csv_without_its_header_stops(header: bytes) -> None:
    with pytest.raises(
        DataError, match=r"c\.csv:1.*expected a header with the columns 'image' and 'caption' sepa"
    ):
        list(parse_csv(header + b"\na.jpg,A dog\n", "c.csv", CsvConfig()))


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


def test_flickr8k_file_without_caption_is_rejected_and_other_files_are_no_images(tmp_path: Path) -> None:
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


def test_flickr8k_links_directly_in_the_folder_are_followed_and_deeper_ones_out_of_it_are_not(
    tmp_path: Path,
) -> None:
    config = write_flickr8k(tmp_path)
    for folder in ("elsewhere", "blobs", "Images/deep"):
        (tmp_path / folder).mkdir()
    for name in ("elsewhere/a.jpg", "elsewhere/mute.jpg", "blobs/b.jpg", "blobs/c.jpg"):
        (tmp_path / name).write_bytes(encode(noise()))
    for target, link in (
        (tmp_path / "elsewhere", "Images/train2014"),
        (tmp_path / "blobs" / "b.jpg", "Images/b.jpg"),
        ("p0.jpg", "Images/alias.jpg"),
        ("../p0.jpg", "Images/deep/alias.jpg"),
        (tmp_path / "blobs" / "c.jpg", "Images/deep/out.jpg"),
        (tmp_path / "blobs" / "c.jpg", "elsewhere/out.jpg"),
        (tmp_path, "Images/up"),
        ("loop.jpg", "Images/loop.jpg"),
        (tmp_path / "nowhere", "Images/gone.jpg"),
    ):
        os.symlink(target, tmp_path / link)
    inside = {"train2014/a.jpg", "b.jpg", "alias.jpg", "deep/alias.jpg"}
    outside = {"deep/out.jpg", "train2014/out.jpg"}
    for name in (*sorted(inside | outside), "loop.jpg", "gone.jpg"):
        add_line(config, f"{name},A link .")
    listing = listed(config)
    assert inside < {r.image_id for r in listing.records}
    found = {
        reason: {r.row_id for r in listing.rejects if r.unit is Unit.IMAGE and r.reason is reason}
        for reason in RejectReason
    }
    assert found[RejectReason.OUTSIDE_FOLDER] == outside
    assert found[RejectReason.MISSING_IMAGE] == {"loop.jpg", "gone.jpg"}
    assert found[RejectReason.IMAGE_WITHOUT_CAPTION] == {"train2014/mute.jpg"}
    source = CsvSource(config, "flickr8k", follow_links=True)
    assert inside | outside < {r.image_id for r in list_balanced(source).records}
    assert source.read_image("train2014/out.jpg") == encode(noise())


def test_csv_absolute_paths_inside_the_folder_are_taken(tmp_path: Path) -> None:
    config = write_flickr8k(tmp_path / "disk", images=3, captions=1)
    os.symlink(config.images, tmp_path / "images")
    for root in (config.images, str(tmp_path / "images"), f"{config.images}/../Images"):
        add_line(config, f"{root}/p0.jpg,An absolute path .")
    add_line(config, f"{tmp_path}/p0.jpg,Not inside .")
    listing = listed(Flickr8kConfig(images=str(tmp_path / "images"), captions=config.captions))
    assert [len(r.captions) for r in listing.records] == [4, 1, 1]
    reject = only_reject(listing, Unit.IMAGE)
    assert (reject.row_id, reject.reason) == (f"{tmp_path}/p0.jpg", RejectReason.OUTSIDE_FOLDER)


@pytest.mark.parametrize(
    ("file", "name"),
    [("Photo.jpg", "photo.JPG"), ("cafe\u0301.jpg", "caf\u00e9.jpg"), ("STRASSE.jpg", "straße.jpg")],
)
def test_csv_name_that_differs_in_case_or_accents_gets_a_hint(tmp_path: Path, file: str, name: str) -> None:
    config = write_flickr8k(tmp_path)
    (tmp_path / "Images" / file).write_bytes(encode(noise()))
    add_line(config, f"{name},A dog .")
    (reject,) = [r for r in listed(config).rejects if r.reason is RejectReason.MISSING_IMAGE]
    assert f"no file {name!r} in the image folder, but {file!r}" in reject.detail


@pytest.mark.parametrize("folder", ["a[1]", "what?", "x*y", "50% #1", "a{0..1}"])
def test_csv_folder_with_any_character_in_its_name_is_read(tmp_path: Path, folder: str) -> None:
    listing = listed(write_flickr8k(tmp_path / folder))
    assert (len(listing.records), listing.rejects) == (6, [])


@pytest.mark.parametrize(
    ("separator", "settings"),
    [("\t", "tab"), ("\t", "\\t"), ("\t", "\t"), (";", ";"), ("|", "|"), (",", ",")],
)
def test_csv_columns_and_separator_are_settings(tmp_path: Path, separator: str, settings: str) -> None:
    folder = write_flickr8k(tmp_path).images
    rows = [
        ["title", "key", "filepath"],
        ['A dog, a "cat";\na tab\tand a | bar.', "7", "p0.jpg"],
        ["One.", "", "p1.jpg"],
    ]
    with open(tmp_path / "c.csv", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=separator).writerows(rows)
    config = CsvConfig(
        images=folder,
        captions={"train": str(tmp_path / "c.csv")},
        separator=settings,
        image_column="filepath",
        caption_column="Title",
    )
    listing = list_balanced(CsvSource(config))
    assert [(r.image_id, [c.caption for c in r.captions]) for r in listing.records] == [
        ("p0.jpg", [rows[1][0]]),
        ("p1.jpg", ["One."]),
    ]
    assert {r.reason for r in listing.rejects} == {RejectReason.IMAGE_WITHOUT_CAPTION}


def test_csv_row_is_named_by_the_line_that_it_begins_in() -> None:
    data = b'a.jpg,"Two\nlines, ""quoted"""\nb.jpg,Two\n,lost\n'
    found = list(parse_csv(b"image,caption\n" + data, "c.csv", CsvConfig()))
    assert found[:2] == [("c.csv:2", ("a.jpg", 'Two\nlines, "quoted"')), ("c.csv:4", ("b.jpg", "Two"))]
    assert found[2][0] == "c.csv:5"
    assert isinstance(found[2][1], Refusal)


def test_csv_quote_that_is_never_closed_loses_its_own_line_only() -> None:
    found = rows('a.jpg,"One\nb.jpg,Two\nc.jpg,"Three"\n')
    assert isinstance(found[0], Refusal)
    assert found[1:] == [("b.jpg", "Two"), ("c.jpg", "Three")]


def test_csv_row_of_more_cells_is_refused_where_the_caption_is_not_last() -> None:
    config = CsvConfig(image_column="image", caption_column="caption")
    found = list(parse_csv(b"caption,image\nA dog, a cat,a.jpg\nA dog,a.jpg\n", "c.csv", config))
    assert isinstance(found[0][1], Refusal)
    assert found[1] == ("c.csv:3", ("a.jpg", "A dog"))


def test_csv_of_excel_in_utf16_is_read() -> None:
    config = CsvConfig(separator="tab")
    data = "image\tcaption\r\na.jpg\tEin Hündchen\r\n".encode("utf-16")
    assert list(parse_csv(data, "c.txt", config)) == [("c.txt:2", ("a.jpg", "Ein Hündchen"))]


@pytest.mark.parametrize(
    "settings", [{"separator": ""}, {"separator": ",,"}, {"separator": '"'}, {"caption_column": "IMAGE"}]
)
def test_csv_impossible_setting_is_refused(settings: dict[str, str]) -> None:
    with pytest.raises(SettingError, match=r"^csv\."):
        CsvConfig(**settings)  # type: ignore[arg-type]


def test_csv_options_of_the_command_line_are_read(tmp_path: Path) -> None:
    given = {"tab": "\t", "\\t": "\t", "|": "|", ";": ";", ",": ","}
    for text, separator in given.items():
        options = [
            "--source",
            "csv",
            "--output",
            "o",
            "--csv.separator",
            text,
            "--csv.image_column",
            "filepath",
        ]
        config = parse(PrepareConfig, "", options)
        assert (config.csv.separator, config.csv.image_column) == (separator, "filepath")
        assert isinstance(config.flickr8k, Flickr8kConfig)


def test_flickr8k_folder_that_is_itself_a_link_works(tmp_path: Path) -> None:
    config = write_flickr8k(tmp_path / "disk")
    os.symlink(config.images, tmp_path / "images")
    listing = listed(Flickr8kConfig(images=str(tmp_path / "images"), captions=config.captions))
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
    before = CsvSource(config, "flickr8k").identity()
    assert CsvSource(config, "flickr8k").identity() == before
    add_line(config, "p0.jpg,One more .")
    assert CsvSource(config, "flickr8k").identity() != before


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
        CsvSource(Flickr8kConfig(**settings), "flickr8k")  # type: ignore[arg-type]
    assert caught.value.setting == setting


def test_flickr8k_real_folder_is_listed_without_rejects(real_data: Path) -> None:
    folder = real_data / "flickr8k"
    captions = {split: str(folder / f"captions_{split}.txt") for split in ("train", "val")}
    listing = listed(Flickr8kConfig(images=str(folder / "Images"), captions=captions))
    assert (listing.images_in, listing.captions_in, listing.rejects) == (7000, 35000, [])
    assert all(isinstance(r, Record) and len(r.captions) == 5 for r in listing.records)
