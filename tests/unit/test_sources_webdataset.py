"""WebDataset's tar shards as a source, good and bad."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from degla_ray.config import PrepareConfig, WebdatasetConfig
from degla_ray.errors import DataError, SettingError, TooManyRejects
from degla_ray.sources.base import Record, Unit
from degla_ray.sources.prepare import Listing, prepare
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
def test_webdataset_json_without_a_caption_is_rejected_with_its_image(
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
    files = {"a.txt": b"No image.", "b.jpg": JPEG, "c.cls": b"7", "d.seg.png": JPEG, "d.txt": b"No."}
    listing = with_one_more(tmp_path, files)
    assert sorted(rejected(listing, Unit.IMAGE)) == [
        ("train/s/a", "missing_image"),
        ("train/s/b", "image_without_caption"),
        ("train/s/c", "missing_image"),
        ("train/s/d", "missing_image"),  # d.seg.png is of suffix seg.png
    ]
    assert rejected(listing, Unit.CAPTION) == [
        ("train/s/a#0", "caption_without_image"),
        ("train/s/d#0", "caption_without_image"),
    ]
    assert "s.tar:d (txt, seg.png): no image with a suffix of webdataset.image" in str(listing.rejects)


def test_webdataset_names_are_taken_as_webdataset_takes_them(tmp_path: Path) -> None:
    files = {
        "x.y/a.JPG": JPEG,
        "x.y/a.Txt": b"In a folder.",
        "x.y/a.json": b"{",
        "./b.png": b"png",
        "./b.webp": b"webp",
        "./b.txt": b"Two images.",
        ".DS_Store": b"x",
        "._a.jpg": b"x",
        "README": b"x",
    }
    source = WebdatasetSource(of_files(tmp_path, files))
    listing = list_balanced(source)
    assert [(r.row_id, r.reason.value) for r in listing.rejects] == [("train/s/b.webp", "further_image")]
    assert listing.notes == ["inside the shards, of no sample: '.DS_Store', '._a.jpg', 'README'"]
    assert [r.image_id for r in listing.records] == ["train/s/x.y/a", "train/s/b"]
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
    assert rejected(listing, Unit.CAPTION) == [("s.tar:a.txt", "duplicate_id")]
    assert rejected(listing, Unit.IMAGE) == [("s.tar:a.jpg", "duplicate_id")]


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


@pytest.mark.parametrize(
    ("damage", "detail"),
    [
        (cut_in_data, "unexpected end of data in 'b.jpg'; 600 of 3160 bytes unread"),
        (cut_in_header, "unexpected end of data: no end mark at byte 2560; 100 of 2660 bytes unread"),
        (cut_before_header, "unexpected end of data: no end mark at byte 2560; 0 of 2560 bytes unread"),
    ],
)
def test_webdataset_shard_that_is_cut_off_is_used_up_to_there_and_the_rest_rejected(
    tmp_path: Path, damage: Callable[[bytes], bytes], detail: str
) -> None:
    config = of_files(tmp_path, {"a.jpg": b"x" * 1000, "a.txt": b"A.", "b.jpg": b"y" * 1000, "b.txt": b"B."})
    path = tmp_path / "s.tar"
    path.write_bytes(damage(path.read_bytes()))
    source = WebdatasetSource(config)
    listing = list_balanced(source)
    (record,) = listing.records
    assert (texts(record), source.read_image(record.locator)) == (["A."], b"x" * 1000)
    assert rejected(listing, Unit.IMAGE) == [("s.tar:2560#0", "truncated")]
    assert rejected(listing, Unit.CAPTION) == [("s.tar:2560#0", "caption_without_image")]
    assert listing.notes == [f"s.tar: {detail}, in which about 1 samples are lost"]


def numbered(folder: Path, name: str, samples: int) -> Path:
    """A shard of samples with an image, a text and a JSON file each."""
    files = {}
    for i in range(samples):
        files |= {f"{i:03d}.jpg": bytes([i]) * 1500, f"{i:03d}.txt": b"A.", f"{i:03d}.json": b"{}"}
    return write_tar(folder / f"{name}.tar", files)


def test_webdataset_shard_cut_at_a_tenth_counts_what_whole_shards_hold(tmp_path: Path) -> None:
    for name in "abc":
        numbered(tmp_path, name, 40)
    path = tmp_path / "b.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 10])
    listing = listed(WebdatasetConfig(shards={"train": [str(tmp_path)]}))
    held = sum(r.image_id.startswith("train/b/") for r in listing.records)
    assert 3 <= held <= 4
    assert len(listing.records) == 80 + held
    assert len([r for r in listing.rejects if r.reason.value == "truncated"]) >= 39 - held
    assert listing.images_in in (120, 121)  # a sample that the end cuts is there and lost
    assert listing.captions_in in (120, 121)
    (note,) = listing.notes
    assert "b.tar: unexpected end of data" in note
    assert f" of {path.stat().st_size} bytes unread, in which about" in note


@pytest.mark.parametrize("suffix", ["jpg", "txt"])
def test_webdataset_damaged_header_costs_its_own_sample_only(tmp_path: Path, suffix: str) -> None:
    path = numbered(tmp_path, "s", 20)
    data = bytearray(path.read_bytes())
    data[data.index(f"007.{suffix}".encode()) + 148] ^= 255  # of the checksum
    path.write_bytes(data)
    listing = listed(WebdatasetConfig(shards={"train": [str(path)]}))
    assert (len(listing.records), listing.images_in) == (19, 20)
    (reject,) = [r for r in listing.rejects if r.unit is Unit.IMAGE]
    assert reject.row_id == "train/s/007"
    unread = 512 + (1536 if suffix == "jpg" else 512)
    assert "no header at byte" in reject.detail
    assert f"{unread} of {len(data)} bytes unread" in reject.detail


@pytest.mark.parametrize("junk", [b"\0", b"\xa5"])
def test_webdataset_hole_in_a_shard_counts_the_samples_it_swallowed(tmp_path: Path, junk: bytes) -> None:
    path = numbered(tmp_path, "s", 100)
    data = bytearray(path.read_bytes())
    first, last = data.index(b"010.jpg"), data.index(b"060.jpg")
    data[first:last] = junk * (last - first)
    path.write_bytes(data)
    listing = listed(WebdatasetConfig(shards={"train": [str(path)]}))
    assert len(listing.records) == 50
    assert listing.images_in == 100
    assert {r.reason.value for r in listing.rejects if r.unit is Unit.IMAGE} == {"unreadable"}
    # The same up to the end: nothing but zeros, many more than an end mark has.
    data[first:] = junk * (len(data) - first)
    path.write_bytes(data)
    assert listed(WebdatasetConfig(shards={"train": [str(path)]})).images_in == pytest.approx(100, abs=3)


def test_webdataset_broken_first_header_costs_the_first_file_only(tmp_path: Path) -> None:
    path = numbered(tmp_path, "s", 5)
    path.write_bytes(b"\xff" * 512 + path.read_bytes()[512:])
    listing = listed(WebdatasetConfig(shards={"train": [str(path)]}))
    assert [r.image_id for r in listing.records] == [f"train/s/00{i}" for i in range(1, 5)]
    assert listing.images_in == 5


def test_webdataset_shards_written_one_behind_the_other_are_all_read(tmp_path: Path) -> None:
    one = write_tar(tmp_path / "one", {"a.jpg": JPEG, "a.txt": b"A."})
    two = write_tar(tmp_path / "two", {"b.jpg": JPEG, "b.txt": b"B."})
    (tmp_path / "s.tar").write_bytes(one.read_bytes() + two.read_bytes())
    source = WebdatasetSource(WebdatasetConfig(shards={"train": [str(tmp_path / "s.tar")]}))
    listing = list_balanced(source)
    assert [(texts(r), source.read_image(r.locator)) for r in listing.records] == [
        (["A."], JPEG),
        (["B."], JPEG),
    ]
    assert (listing.rejects, listing.notes) == ([], [])


def test_webdataset_keys_may_hold_dots(tmp_path: Path) -> None:
    files = {}
    for i in range(5):
        files |= {f"IMG.{i:04d}.JPG": JPEG, f"IMG.{i:04d}.txt": f"Number {i}.".encode()}
        files |= {f"IMG.{i:04d}.json": b"{}"}
    listing = listed(of_files(tmp_path, {**files, "v1.jpg": JPEG, "v1.txt": b"One."}))
    assert listing.rejects == []
    assert [r.image_id for r in listing.records] == [f"train/s/IMG.{i:04d}" for i in range(5)] + [
        "train/s/v1"
    ]
    assert texts(listing.records[3]) == ["Number 3."]


def test_webdataset_sample_of_several_images_counts_each(tmp_path: Path) -> None:
    files = {"a.left.jpg": JPEG, "a.right.jpg": JPEG, "a.txt": b"Two eyes."}
    files |= {"b.jpg": JPEG, "b.seg.png": JPEG, "b.png": JPEG, "b.txt": b"B."}
    listing = listed(of_files(tmp_path, files))
    assert [r.image_id for r in listing.records] == ["train/s/b"]
    assert listing.images_in == 5
    assert sorted(rejected(listing, Unit.IMAGE)) == [
        ("train/s/a", "missing_image"),
        ("train/s/a.right.jpg", "missing_image"),
        ("train/s/b.png", "further_image"),
        ("train/s/b.seg.png", "further_image"),
    ]
    both = listed(of_files(tmp_path / "x", files, image_suffixes=["left.jpg", "jpg"]))
    assert [r.image_id for r in both.records] == ["train/s/a", "train/s/b"]


@pytest.mark.parametrize(
    ("name", "content", "settings"),
    [
        ("x.caption", b"A dog.", {"caption_suffix": "caption"}),
        ("x.outputs.txt", b"A dog.", {"caption_suffix": ".outputs.TXT"}),
        ("x.json", b'{"meta": {"caption": "A dog."}}', {"json_field": "meta.caption"}),
        ("x.json", b'{"meta.caption": "A dog.", "meta": {"caption": "No."}}', {"json_field": "meta.caption"}),
        ("x.json", b'{"captions": [{"text": "A dog."}]}', {"json_field": "captions.text"}),
        ("x.json", b'[{"a": {"b": ["A dog."]}}]', {"json_field": "a.b"}),
        ("x.meta.json", b'{"t": "A dog."}', {"json_field": "t", "caption_suffix": "meta.json"}),
    ],
)
def test_webdataset_caption_is_found_where_the_settings_say(
    tmp_path: Path, name: str, content: bytes, settings: dict[str, Any]
) -> None:
    listing = listed(of_files(tmp_path, {"x.jpg": JPEG, name: content}, **settings))
    assert listing.rejects == []
    assert [(r.image_id, texts(r)) for r in listing.records] == [("train/s/x", ["A dog."])]


def test_webdataset_list_of_objects_loses_only_its_bad_ones_and_says_what_they_hold(tmp_path: Path) -> None:
    content = json.dumps({"captions": [{"text": "A dog.", "lang": "en"}, {"lang": "en"}]}).encode()
    files = {"a.jpg": JPEG, "a.json": content}
    listing = listed(of_files(tmp_path, files, json_field="captions.text"))
    assert texts(listing.records[0]) == ["A dog."]
    assert rejected(listing, Unit.CAPTION) == [("train/s/a#1", "not_a_string")]
    listing = listed(of_files(tmp_path, files, json_field="captions"))
    assert "an object with the fields text, lang" in listing.rejects[0].detail


def test_webdataset_captions_in_another_file_stop_and_name_the_setting(tmp_path: Path) -> None:
    files = {}
    for i in range(10):
        files |= {f"{i}.jpg": JPEG, f"{i}.caption": b"A dog."}
    config = of_files(tmp_path, {**files, "good.jpg": JPEG, "good.txt": b"Good."})
    with pytest.raises(TooManyRejects) as caught:
        prepare(PrepareConfig(source="webdataset", output=str(tmp_path / "out"), webdataset=config))
    assert "10 of 12 rows rejected" in str(caught.value)
    assert "s.tar:0 (jpg, caption): no txt file (webdataset.caption_suffix)" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_webdataset_further_images_do_not_count_toward_the_limit(tmp_path: Path) -> None:
    files = {"a.jpg": JPEG, "a.seg.png": JPEG, "a.txt": b"A."}
    listing = listed(of_files(tmp_path, files))
    assert rejected(listing, Unit.IMAGE) == [("train/s/a.seg.png", "further_image")]
    assert {r.reason for r in listing.rejects} <= listing.spare


def test_webdataset_other_files_of_a_folder_are_named(tmp_path: Path) -> None:
    numbered(tmp_path, "a", 1)
    numbered(tmp_path, "B", 1).rename(tmp_path / "B.TAR")
    for name in ("c.tar.gz", "d.tgz", "stats.json"):
        (tmp_path / name).write_bytes(b"x")
    write_tar(tmp_path / "e.tar", {})
    listing = listed(WebdatasetConfig(shards={"train": [str(tmp_path)]}))
    assert [r.image_id for r in listing.records] == ["train/B/000", "train/a/000"]
    assert listing.notes[0] == f"{tmp_path}/e.tar holds no sample"
    assert listing.notes[1].startswith("not looked at, for they are no .tar files: ")
    assert all(name in listing.notes[1] for name in ("c.tar.gz", "d.tgz", "stats.json"))


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "truncated"), (b"half a header", "truncated"), (b"no tar at all " * 100, "unreadable")],
)
def test_webdataset_file_that_is_no_tar_is_rejected(tmp_path: Path, data: bytes, reason: str) -> None:
    config = write_webdataset(tmp_path, shards=3)
    (tmp_path / "shard-000.tar").write_bytes(data)
    listing = listed(config)
    assert len(listing.records) == 6
    lost = 3 if reason == "truncated" else 1  # as many as the split's other shard has
    assert [r for _, r in rejected(listing, Unit.IMAGE)] == [reason] * lost


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_webdataset_compressed_shard_stops_and_is_named(tmp_path: Path, mode: Any) -> None:
    with tarfile.open(tmp_path / "s.tar", mode) as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
    with pytest.raises(DataError, match=r"s\.tar: found a file compressed by \w+; expected an uncompressed"):
        listed(WebdatasetConfig(shards={"train": [str(tmp_path / "s.tar")]}))


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
    files = {"a.jpg": b"image", "a.txt": b"A dog.", "a.json": b"{}"}
    one = of_files(tmp_path, files)

    def identity(**changes: bytes) -> dict[str, Any]:
        write_tar(tmp_path / "s.tar", {**files, **{k.replace("_", "."): v for k, v in changes.items()}})
        return WebdatasetSource(one).identity()

    before = identity()
    assert identity() == before
    assert identity(a_jpg=b"IMAGE") == before
    assert identity(a_txt=b"A cat.") != before
    assert identity(a_jpg=b"a larger image") != before
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
