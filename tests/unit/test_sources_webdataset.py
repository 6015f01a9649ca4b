"""WebDataset's tar shards as a source, good and bad."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from degla_ray.config import WebdatasetConfig
from degla_ray.errors import SettingError
from degla_ray.sources.base import Record, Unit
from degla_ray.sources.prepare import Listing
from degla_ray.sources.webdataset import WebdatasetSource
from tests.fixtures_sources import encode, list_balanced, noise, rejected, write_tar, write_webdataset

JPEG = encode(noise())


def listed(config: WebdatasetConfig) -> Listing:
    return list_balanced(WebdatasetSource(config))


def of_files(folder: Path, files: dict[str, bytes], **settings: Any) -> WebdatasetConfig:
    path = write_tar(folder / "s.tar", files)
    return WebdatasetConfig(shards={"train": [str(path)]}, **settings)


def with_one_more(folder: Path, files: dict[str, bytes], **settings: Any) -> Listing:
    """The listing of `files` and a good sample; the good one is left out of it."""
    listing = listed(of_files(folder, {**files, "good.jpg": JPEG, "good.txt": b"Good."}, **settings))
    listing.records[:] = [r for r in listing.records if r.image_id != "train/s/good"]
    return listing


def texts(record: Record) -> list[str]:
    return [c.caption for c in record.captions]


def test_webdataset_gives_every_sample_and_the_very_bytes(tmp_path: Path) -> None:
    source = WebdatasetSource(write_webdataset(tmp_path, shards=3))
    listing = list_balanced(source)
    assert listing.rejects == []
    assert [r.image_id for r in listing.records] == [
        f"{split}/shard-00{shard}/000{i}"
        for shard, split in enumerate(["train", "train", "val"])
        for i in range(3)
    ]
    assert listing.records[4].locator == f"{tmp_path}/shard-001.tar:4096:{len(encode(noise(seed=101)))}"
    assert texts(listing.records[4]) == ["A dog runs , shard 1 number 1 ."]
    assert listing.records[8].captions[0].split == "val"
    for shard in range(3):
        for i in range(3):
            locator = listing.records[3 * shard + i].locator
            assert source.read_image(locator) == encode(noise(seed=100 * shard + i))


def test_webdataset_caption_from_a_field_of_the_json(tmp_path: Path) -> None:
    shards = write_webdataset(tmp_path).shards
    listing = listed(WebdatasetConfig(shards=shards, json_field="texts"))
    assert listing.rejects == []
    assert texts(listing.records[1]) == ["One 1.", "Two 1."]
    assert [c.sample_id for c in listing.records[1].captions] == [
        f"train/shard-000/0001#{i}" for i in range(2)
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"text": ""}, "empty_caption"),
        ({"text": None}, "not_a_string"),
        ({"text": {"en": "A dog."}}, "not_a_string"),
        ({"caption": "A dog."}, "malformed_row"),
        (["A dog."], "malformed_row"),
    ],
)
def test_webdataset_json_without_a_caption_is_rejected_with_its_picture(
    tmp_path: Path, content: object, reason: str
) -> None:
    files = {"a.jpg": JPEG, "a.json": json.dumps(content).encode()}
    listing = listed(of_files(tmp_path, files, json_field="text"))
    assert rejected(listing, Unit.CAPTION) == [("train/s/a#0", reason)]
    assert rejected(listing, Unit.IMAGE) == [("train/s/a", "image_without_caption")]


def test_webdataset_broken_json_names_line_and_offset(tmp_path: Path) -> None:
    files = {"a.jpg": JPEG, "a.json": b'{"text": "A dog."\n"url": 1}'}
    listing = listed(of_files(tmp_path, files, json_field="text"))
    (reject,) = [r for r in listing.rejects if r.unit is Unit.CAPTION]
    assert reject.reason.value == "malformed_row"
    assert "s.tar:a: JSONDecodeError: Expecting ',' delimiter: line 2 column 1 (char 18)" in reject.detail


def test_webdataset_list_of_captions_loses_only_its_bad_ones(tmp_path: Path) -> None:
    files = {"a.jpg": JPEG, "a.json": b'{"text": ["A dog.", 7, "A cat."]}'}
    listing = listed(of_files(tmp_path, files, json_field="text"))
    assert [c.sample_id for c in listing.records[0].captions] == ["train/s/a#0", "train/s/a#2"]
    assert rejected(listing, Unit.CAPTION) == [("train/s/a#1", "not_a_string")]


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        (b"", "empty_caption"),
        (b" \n", "empty_caption"),
        (b"caf\xe9", "malformed_row"),
        (b"x" * (1 << 20) + b"x", "malformed_row"),
    ],
)
def test_webdataset_text_that_is_no_caption_is_rejected(tmp_path: Path, caption: bytes, reason: str) -> None:
    listing = with_one_more(tmp_path, {"a.jpg": JPEG, "a.txt": caption})
    assert rejected(listing, Unit.CAPTION) == [("train/s/a#0", reason)]
    (image,) = [r for r in listing.rejects if r.unit is Unit.IMAGE]
    assert image.detail == "s.tar:a (jpg, txt): all of its 1 captions were rejected"


def test_webdataset_text_keeps_what_is_in_it_and_loses_its_mark(tmp_path: Path) -> None:
    files = {"a.jpg": JPEG, "a.txt": "\ufeffEin Hündchen,\nläuft.\n".encode()}
    config = of_files(tmp_path, files, caption_per_line=False)
    assert texts(listed(config).records[0]) == ["Ein Hündchen,\nläuft."]


def test_webdataset_samples_that_lack_a_file_are_rejected(tmp_path: Path) -> None:
    files = {"a.txt": b"No picture.", "b.jpg": JPEG, "c.cls": b"7", "d.seg.png": JPEG, "d.txt": b"No."}
    listing = with_one_more(tmp_path, files)
    assert rejected(listing, Unit.IMAGE) == [
        ("train/s/a", "missing_image"),
        ("train/s/b", "image_without_caption"),
        ("train/s/c", "missing_image"),
        ("train/s/d", "missing_image"),  # d.seg.png is of suffix seg.png
    ]
    assert rejected(listing, Unit.CAPTION) == [
        ("train/s/a#0", "caption_without_image"),
        ("train/s/d#0", "caption_without_image"),
    ]
    assert "s.tar:d (seg.png, txt): there is no picture" in listing.rejects[-1].detail


def test_webdataset_names_are_taken_as_webdataset_takes_them(tmp_path: Path) -> None:
    files = {
        "x.y/a.JPG": JPEG,
        "x.y/a.Txt": b"In a folder.",
        "x.y/a.json": b"{",
        "./b.png": b"png",
        "./b.webp": b"webp",
        "./b.txt": b"Two pictures.",
        ".DS_Store": b"x",
        "._a.jpg": b"x",
        "README": b"x",
    }
    source = WebdatasetSource(of_files(tmp_path, files))
    listing = list_balanced(source)
    assert listing.rejects == []
    assert [r.image_id for r in listing.records] == ["train/s/x.y/a", "train/s/./b"]
    assert source.read_image(listing.records[1].locator) == b"png"
    other = of_files(tmp_path / "other", files, image_suffixes=[".webp", "png"])
    b = listed(other).records[0]
    assert WebdatasetSource(other).read_image(b.locator) == b"webp"


def test_webdataset_files_of_a_sample_need_not_lie_together(tmp_path: Path) -> None:
    files = {"a.jpg": JPEG, "b.jpg": JPEG, "b.txt": b"B.", "a.txt": b"A."}
    assert [texts(r) for r in listed(of_files(tmp_path, files)).records] == [["A."], ["B."]]


def test_webdataset_file_that_comes_twice_is_rejected_the_second_time(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", {"a.jpg": JPEG, "a.txt": b"First."})
    with tarfile.open(path, "a") as tar:
        for name in ("a.txt", "a.jpg"):
            member = tarfile.TarInfo(name)
            member.size = 7
            tar.addfile(member, io.BytesIO(b"Second."))
    source = WebdatasetSource(WebdatasetConfig(shards={"train": [str(path)]}))
    listing = list_balanced(source)
    assert texts(listing.records[0]) == ["First."]
    assert source.read_image(listing.records[0].locator) == JPEG
    assert rejected(listing, Unit.IMAGE) == [("s.tar:a.txt", "duplicate_id"), ("s.tar:a.jpg", "duplicate_id")]


def test_webdataset_links_and_folders_are_no_files(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (
            ("a.jpg", tarfile.SYMTYPE),
            ("b.jpg", tarfile.LNKTYPE),
            ("c.jpg", tarfile.DIRTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    listing = listed(WebdatasetConfig(shards={"train": [str(path)]}))
    assert rejected(listing, Unit.IMAGE) == [(f"train/s/{key}", "missing_image") for key in "ab"]
    assert listing.rejects[0].detail.startswith("s.tar:a (jpg: no plain file): ")


def test_webdataset_name_that_is_no_text_is_malformed(tmp_path: Path) -> None:
    files = {"a\udce9.jpg": JPEG, "a\udce9.txt": b"A.", "b\nc.txt": b"B."}
    listing = with_one_more(tmp_path, files)
    assert [reason for _, reason in rejected(listing, Unit.IMAGE)] == ["malformed_row"] * 2
    assert [reason for _, reason in rejected(listing, Unit.CAPTION)] == ["malformed_row"] * 2


def test_webdataset_long_names_are_read_in_every_format(tmp_path: Path) -> None:
    name = "folder/" * 30 + "é" * 60
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / f"{kind}.tar"
        with tarfile.open(path, "w", format=kind) as tar:
            for suffix, data in ((".jpg", JPEG), (".txt", b"A dog.")):
                member = tarfile.TarInfo(name + suffix)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        source = WebdatasetSource(WebdatasetConfig(shards={"train": [str(path)]}))
        (record,) = list_balanced(source).records
        assert record.image_id == f"train/{kind}/{name}"
        assert source.read_image(record.locator) == JPEG


def cut_in_data(data: bytes) -> bytes:
    return data[: 512 + 1024 + 512 + 512 + 600]


def cut_in_header(data: bytes) -> bytes:
    return data[: data.index(b"b.jpg") + 100]


def cut_before_header(data: bytes) -> bytes:
    return data[: data.index(b"b.jpg")]


def broken_header(data: bytes) -> bytes:
    place = data.index(b"b.jpg") + 148  # of the checksum
    return data[:place] + b"xxxxxx" + data[place + 6 :]


def two_in_one(data: bytes) -> bytes:
    return data + data


@pytest.mark.parametrize(
    ("damage", "reason", "detail"),
    [
        (cut_in_data, "truncated", "unexpected end of data"),
        (cut_in_header, "truncated", "unexpected end of data: no end mark at byte 2560"),
        (cut_before_header, "truncated", "unexpected end of data: no end mark at byte 2560"),
        (broken_header, "unreadable", "no header at byte 2560"),
    ],
)
def test_webdataset_damaged_shard_is_used_up_to_there_and_the_rest_is_a_reject(
    tmp_path: Path, damage: Callable[[bytes], bytes], reason: str, detail: str
) -> None:
    config = of_files(tmp_path, {"a.jpg": b"x" * 1000, "a.txt": b"A.", "b.jpg": b"y" * 1000, "b.txt": b"B."})
    path = tmp_path / "s.tar"
    path.write_bytes(damage(path.read_bytes()))
    source = WebdatasetSource(config)
    listing = list_balanced(source)
    (record,) = listing.records
    assert (texts(record), source.read_image(record.locator)) == (["A."], b"x" * 1000)
    (reject,) = listing.rejects
    assert (reject.unit, reject.row_id, reject.reason.value) == (Unit.IMAGE, "s.tar", reason)
    assert reject.detail.startswith(f"s.tar: the rest of the shard: {detail}")


def test_webdataset_data_behind_the_end_mark_is_a_reject(tmp_path: Path) -> None:
    config = of_files(tmp_path, {"a.jpg": JPEG, "a.txt": b"A."})
    path = tmp_path / "s.tar"
    path.write_bytes(two_in_one(path.read_bytes()))
    listing = listed(config)
    assert len(listing.records) == 1
    assert rejected(listing, Unit.IMAGE) == [("s.tar", "unreadable")]
    assert "more data behind the end mark at byte" in listing.rejects[0].detail


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "truncated"), (b"half a header", "truncated"), (b"no tar at all " * 100, "unreadable")],
)
def test_webdataset_file_that_is_no_tar_is_one_reject(tmp_path: Path, data: bytes, reason: str) -> None:
    config = write_webdataset(tmp_path)
    (tmp_path / "shard-000.tar").write_bytes(data)
    listing = listed(config)
    assert [r.image_id.split("/")[0] for r in listing.records] == ["val"] * 3
    assert rejected(listing, Unit.IMAGE) == [("shard-000.tar", reason)]


def test_webdataset_compressed_shard_is_a_reject_that_says_so(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
    (reject,) = listed(WebdatasetConfig(shards={"train": [str(tmp_path / "s.tar")]})).rejects
    assert "an uncompressed tar file is read" in reject.detail


def test_webdataset_empty_tar_has_no_rows(tmp_path: Path) -> None:
    listing = listed(of_files(tmp_path, {}))
    assert (listing.records, listing.rejects, listing.images_in) == ([], [], 0)


def test_webdataset_shard_that_shrank_since_it_was_listed_is_an_error(tmp_path: Path) -> None:
    source = WebdatasetSource(of_files(tmp_path, {"a.jpg": JPEG, "a.txt": b"A."}))
    (record,) = list_balanced(source).records
    (tmp_path / "s.tar").write_bytes((tmp_path / "s.tar").read_bytes()[:600])
    with pytest.raises(OSError, match=r"88 bytes at 512 of .*s\.tar, expected \d+"):
        source.read_image(record.locator)


def test_webdataset_identity_changes_with_captions_and_sizes(tmp_path: Path) -> None:
    files = {"a.jpg": b"picture", "a.txt": b"A dog.", "a.json": b"{}"}
    one = of_files(tmp_path, files)

    def identity(**changes: bytes) -> dict[str, Any]:
        write_tar(tmp_path / "s.tar", {**files, **{k.replace("_", "."): v for k, v in changes.items()}})
        return WebdatasetSource(one).identity()

    before = identity()
    assert identity() == before
    assert identity(a_jpg=b"PICTURE") == before
    assert identity(a_txt=b"A cat.") != before
    assert identity(a_jpg=b"a larger picture") != before
    assert identity(b_jpg=b"one more") != before
    source = WebdatasetSource(one)
    list_balanced(source)  # what was read by it is not read again
    assert source.identity() == WebdatasetSource(one).identity()


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"shards": {}}, "webdataset.shards"),
        ({"shards": {"val": ["nowhere-*.tar"]}}, "webdataset.shards.val"),
        (
            {"shards": {"train": ["{tmp}/shard-000.tar", "{tmp}/more/shard-000.tar"]}},
            "webdataset.shards.train",
        ),
        ({"image_suffixes": []}, "webdataset.image_suffixes"),
    ],
)
def test_webdataset_wrong_setting_is_named(tmp_path: Path, changes: dict[str, Any], setting: str) -> None:
    write_webdataset(tmp_path)
    write_webdataset(tmp_path / "more")
    if "shards" in changes:
        changes = {"shards": {k: [n.format(tmp=tmp_path) for n in v] for k, v in changes["shards"].items()}}
    with pytest.raises(SettingError) as caught:
        WebdatasetSource(WebdatasetConfig(**{"shards": {"train": [str(tmp_path)]}, **changes}))
    assert caught.value.setting == setting


def test_webdataset_txt_has_a_caption_a_line_as_clip_benchmark_writes_retrieval_sets(tmp_path: Path) -> None:
    files: dict[str, bytes] = {}
    for i in range(200):
        files[f"s{i:07d}.webp"] = JPEG
        files[f"s{i:07d}.txt"] = "\n".join(f"Caption {k} of {i}." for k in range(5)).encode()
    listing = listed(of_files(tmp_path, files))
    assert listing.rejects == []
    assert len(listing.records) == 200
    captions = [c for record in listing.records for c in record.captions]
    assert len(captions) == 1_000
    assert captions[6].sample_id == "train/s/s0000001#1"
    assert captions[6].caption == "Caption 1 of 1."


@pytest.mark.parametrize(
    ("content", "captions"),
    [
        (b"A dog.\r\nA cat.\r\n", ["A dog.", "A cat."]),
        (b"\n\nA dog.\n \n\t\nA cat.\n\n", ["A dog.", "A cat."]),
        (b"A dog.\rA cat.", ["A dog.", "A cat."]),
        (b"\xef\xbb\xbfA dog.\nA cat.", ["A dog.", "A cat."]),
        (b"A dog.\n", ["A dog."]),
        ("A dog\u2028and a cat.\x85".encode(), ["A dog\u2028and a cat.\x85"]),  # no ends of lines of a file
    ],
)
def test_webdataset_lines_of_a_txt_in_every_form(tmp_path: Path, content: bytes, captions: list[str]) -> None:
    listing = listed(of_files(tmp_path, {"a.jpg": JPEG, "a.txt": content}))
    assert listing.rejects == []
    assert [" ".join(text.split()) for text in texts(listing.records[0])] == [
        " ".join(text.split()) for text in captions
    ]


def test_webdataset_txt_as_one_caption_where_the_setting_says_so(tmp_path: Path) -> None:
    files = {"a.jpg": JPEG, "a.txt": b"A dog that\r\nis wet.\n"}
    listing = listed(of_files(tmp_path, files, caption_per_line=False))
    assert [" ".join(text.split()) for text in texts(listing.records[0])] == ["A dog that is wet."]
