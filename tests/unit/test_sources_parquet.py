"""Parquet files as a source: Hugging Face's, plain bytes and paths, good and bad."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from degla_ray.config import ParquetConfig
from degla_ray.errors import DataError, SettingError
from degla_ray.sources import parquet
from degla_ray.sources.base import Unit
from degla_ray.sources.parquet import ParquetSource
from degla_ray.sources.prepare import Listing
from tests.fixtures_sources import (
    encode,
    list_balanced,
    noise,
    rejected,
    write_huggingface,
    write_parquet,
)


def listed(config: ParquetConfig, limit: int | None = None) -> Listing:
    return list_balanced(ParquetSource(config), limit)


def from_rows(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> ParquetConfig:
    """One file of `rows`; those without an image get one."""
    for index, row in enumerate(rows):
        row.setdefault("image", encode(noise(seed=index)))
    return ParquetConfig(files={"train": [str(write_parquet(folder / "d.parquet", rows))]}, **settings)


def with_paths(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> ParquetConfig:
    """One file whose column `image` holds paths below a folder with a.jpg and deep/b.jpg."""
    (folder / "Images" / "deep").mkdir(parents=True)
    for name in ("a.jpg", "deep/b.jpg"):
        (folder / "Images" / name).write_bytes(encode(noise()))
    return from_rows(folder, rows, images=str(folder / "Images"), **settings)


def test_parquet_of_hugging_face_gives_every_row_and_the_very_bytes(tmp_path: Path) -> None:
    source = ParquetSource(write_huggingface(tmp_path))
    listing = list_balanced(source)
    assert listing.rejects == []
    assert [r.image_id for r in listing.records] == [
        f"all-{file:05d}-{row:07d}" for file in (0, 1) for row in (0, 1, 2)
    ]
    assert listing.records[5].locator == f"{tmp_path}/data-00003.parquet:1:0"
    assert [c.sample_id for c in listing.records[5].captions] == [f"all-00001-0000002#{i}" for i in (0, 1)]
    assert {c.split for c in listing.records[5].captions} == {"val"}
    assert {c.split for c in listing.records[4].captions} == {"train"}
    for index in (5, 0, 3, 4):
        assert source.read_image(listing.records[index].locator) == encode(noise(seed=index))


def test_parquet_images_of_one_large_row_group_are_read_in_any_order(tmp_path: Path) -> None:
    rows = [{"image": b"image %d" % i, "caption": f"Caption {i}."} for i in range(100)]
    path = write_parquet(tmp_path / "d.parquet", rows, group_rows=100)
    source = ParquetSource(ParquetConfig(files={"train": [str(path)]}))
    locators = [record.locator for record in list_balanced(source).records]
    for index in (0, 1, 15, 16, 40, 39, 31, 99, 98, 2, 2):
        assert source.read_image(locators[index]) == b"image %d" % index
    write_parquet(path, rows[:50], group_rows=100)
    with pytest.raises(OSError, match="50 rows in row group 0, and row 60 was listed"):
        ParquetSource(ParquetConfig(files={"train": [str(path)]})).read_image(locators[60])


def test_parquet_source_travels_without_the_images_it_read(tmp_path: Path) -> None:
    source = ParquetSource(write_huggingface(tmp_path))
    locator = list_balanced(source).records[0].locator
    before = len(pickle.dumps(source))
    data = source.read_image(locator)
    assert len(pickle.dumps(source)) == before
    assert pickle.loads(pickle.dumps(source)).read_image(locator) == data


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), pa.struct([("path", pa.string()), ("bytes", pa.large_binary())])]
)
def test_parquet_images_of_any_binary_type_are_read(tmp_path: Path, kind: pa.DataType) -> None:
    data = encode(noise())
    cell = {"bytes": data, "path": None} if pa.types.is_struct(kind) else data
    path = write_parquet(tmp_path / "d.parquet", [{"image": cell, "caption": "A dog."}], image=kind)
    source = ParquetSource(ParquetConfig(files={"train": [str(path)]}))
    assert source.read_image(list_balanced(source).records[0].locator) == data


@pytest.mark.parametrize(
    ("kind", "captions"),
    [
        (pa.large_string(), ["A dog."]),
        (pa.dictionary(pa.int32(), pa.string()), ["A dog."]),
        (pa.list_(pa.string()), ["A dog.", "A cat."]),
        (pa.large_list(pa.large_string()), ["A dog.", "A cat."]),
        (pa.list_(pa.string(), 2), ["A dog.", "A cat."]),
    ],
)
def test_parquet_captions_of_any_text_type_are_read(
    tmp_path: Path, kind: pa.DataType, captions: list[str]
) -> None:
    row = {"image": encode(noise()), "caption": captions if len(captions) > 1 else captions[0]}
    path = write_parquet(tmp_path / "d.parquet", [row], caption=kind)
    listing = listed(ParquetConfig(files={"train": [str(path)]}))
    assert [c.caption for c in listing.records[0].captions] == captions


def test_parquet_rows_of_one_id_and_one_image_are_one_image(tmp_path: Path) -> None:
    rows = [{"caption": f"Caption {i}.", "id": i % 2, "image": encode(noise(seed=i % 2))} for i in range(5)]
    rows[0]["image"] = None  # the image is then that of the next row of the id
    source = ParquetSource(from_rows(tmp_path, rows, image_id_column="id"))
    listing = list_balanced(source)
    assert [(r.image_id, len(r.captions)) for r in listing.records] == [("0", 3), ("1", 2)]
    assert [c.caption for c in listing.records[1].captions] == ["Caption 1.", "Caption 3."]
    assert [source.read_image(r.locator) for r in listing.records] == [encode(noise(seed=i)) for i in (0, 1)]
    assert listing.notes == ["5 rows in = 2 with an image of their own + 3 with an earlier row's + 0 rejects"]


@pytest.mark.parametrize("kind", [pa.int64(), pa.string()])
def test_parquet_ids_that_begin_anew_in_each_file_join_no_caption_to_another_image(
    tmp_path: Path, kind: pa.DataType
) -> None:
    for file in range(2):
        rows = [
            {
                "id": str(i) if kind == pa.string() else i,
                "image": encode(noise(seed=10 * file + i)),
                "caption": f"File {file} row {i}.",
            }
            for i in range(6)
        ]
        write_parquet(tmp_path / f"{file}.parquet", rows)
    config = ParquetConfig(files={"train": [str(tmp_path)]}, image_id_column="id")
    source = ParquetSource(config)
    listing = list_balanced(source)
    assert [(r.image_id, [c.caption for c in r.captions]) for r in listing.records] == [
        (str(i), [f"File 0 row {i}."]) for i in range(6)
    ]
    assert (listing.images_in, listing.captions_in) == (12, 12)
    assert listing.notes == [
        "12 rows in = 6 with an image of their own + 0 with an earlier row's + 6 rejects"
    ]
    assert rejected(listing, Unit.IMAGE) == [(f"1.parquet[{i}]", "duplicate_id") for i in range(6)]
    assert rejected(listing, Unit.CAPTION) == [
        (f"1.parquet[{i}]#0", "caption_without_image") for i in range(6)
    ]
    assert "id '3', first in 0.parquet[3], has other bytes here" in listing.rejects[6].detail
    assert not {r.reason for r in listing.rejects} & listing.spare
    own = listed(ParquetConfig(files=config.files))
    assert (len(own.records), own.rejects) == (12, [])


def test_parquet_images_that_are_paths_alone_say_what_to_do(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"image": {"bytes": None, "path": f"{i}.jpg"}, "caption": "A dog."} for i in range(3)
    ]
    path = write_parquet(
        tmp_path / "d.parquet", rows, image=pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    with pytest.raises(SettingError, match=r"whose images have no bytes .*embed them \(Hugging Face"):
        ParquetSource(ParquetConfig(files={"train": [str(path)]}))
    only = write_parquet(tmp_path / "e.parquet", [{"image": {"path": "a.jpg"}, "caption": "A dog."}])
    with pytest.raises(SettingError, match=r"struct<path: string>.*embed them \(Hugging Face"):
        ParquetSource(ParquetConfig(files={"train": [str(only)]}))


def test_parquet_columns_go_by_the_names_of_the_settings(tmp_path: Path) -> None:
    data = encode(noise())
    path = write_parquet(tmp_path / "d.parquet", [{"pic": data, "text": "A dog.", "key": "k", "part": "val"}])
    config = ParquetConfig(
        files={"x": [str(path)]},
        image_column="pic",
        caption_column="text",
        image_id_column="key",
        split_column="part",
    )
    (record,) = listed(config).records
    assert (record.image_id, record.captions[0].split) == ("k", "val")


def test_parquet_paths_are_found_below_the_folder_and_one_path_is_one_image(tmp_path: Path) -> None:
    rows = [
        {"image": name, "caption": f"Caption {i}."}
        for i, name in enumerate(["a.jpg", "deep/b.jpg", "./a.jpg"])
    ]
    source = ParquetSource(with_paths(tmp_path, rows))
    listing = list_balanced(source)
    assert listing.rejects == []
    assert [(r.image_id, r.locator, len(r.captions)) for r in listing.records] == [
        ("a.jpg", "a.jpg", 2),
        ("deep/b.jpg", "deep/b.jpg", 1),
    ]
    assert source.read_image("deep/b.jpg") == encode(noise())


def test_parquet_bad_paths_are_rejected(tmp_path: Path) -> None:
    names = ["a.jpg", "gone.jpg", "../d.parquet", None, "", "deep"]
    listing = listed(with_paths(tmp_path, [{"image": name, "caption": "A dog."} for name in names]))
    assert len(listing.records) == 1
    assert set(rejected(listing, Unit.IMAGE)) == {
        ("gone.jpg", "missing_image"),
        ("../d.parquet", "outside_folder"),
        ("d.parquet[3]", "malformed_row"),
        ("d.parquet[4]", "malformed_row"),
        ("deep", "missing_image"),
    }
    assert {reason for _, reason in rejected(listing, Unit.CAPTION)} == {"caption_without_image"}


def test_parquet_one_id_with_two_paths_is_rejected(tmp_path: Path) -> None:
    rows = [
        {"image": "a.jpg", "caption": "One.", "id": "x"},
        {"image": "deep/b.jpg", "caption": "Two.", "id": "x"},
        {"image": None, "caption": "Three.", "id": "x"},
    ]
    listing = listed(with_paths(tmp_path, rows, image_id_column="id"))
    assert rejected(listing, Unit.IMAGE) == [("d.parquet[1]", "duplicate_id")]
    assert rejected(listing, Unit.CAPTION) == [("d.parquet[1]#0", "caption_without_image")]
    found = "id 'x', first in d.parquet[0], is 'a.jpg' there, 'deep/b.jpg' here"
    assert found in listing.rejects[0].detail
    assert [c.sample_id for c in listing.records[0].captions] == ["x#0", "x#1"]


@pytest.mark.parametrize(
    ("caption", "reason"), [("", "empty_caption"), (" \n", "empty_caption"), (None, "not_a_string")]
)
def test_parquet_caption_that_is_none_is_rejected_with_its_image(
    tmp_path: Path, caption: str | None, reason: str
) -> None:
    listing = listed(from_rows(tmp_path, [{"caption": "A dog."}, {"caption": caption}]))
    assert rejected(listing, Unit.CAPTION) == [("train-00000-0000001#0", reason)]
    assert rejected(listing, Unit.IMAGE) == [("train-00000-0000001", "image_without_caption")]


def test_parquet_list_without_a_good_caption_leaves_its_image_out(tmp_path: Path) -> None:
    rows = [{"caption": c} for c in (["A dog.", None, ""], [], None, [None])]
    listing = listed(from_rows(tmp_path, rows))
    assert [c.sample_id[-2:] for c in listing.records[0].captions] == ["#0"]
    assert rejected(listing, Unit.CAPTION) == [
        ("train-00000-0000000#1", "not_a_string"),
        ("train-00000-0000000#2", "empty_caption"),
        ("train-00000-0000003#0", "not_a_string"),
    ]
    images = rejected(listing, Unit.IMAGE)
    assert images == [(f"train-00000-000000{i}", "image_without_caption") for i in (1, 2, 3)]


@pytest.mark.parametrize("bad", [None, "", "a\nb"])
def test_parquet_row_without_an_id_is_malformed_by_file_and_index(tmp_path: Path, bad: str | None) -> None:
    rows = [{"caption": ["A dog.", "A cat."], "id": image_id} for image_id in ("x", bad)]
    listing = listed(from_rows(tmp_path, rows, image_id_column="id"))
    assert rejected(listing, Unit.IMAGE) == [("d.parquet[1]", "malformed_row")]
    assert rejected(listing, Unit.CAPTION) == [
        (f"d.parquet[1]#{i}", "caption_without_image") for i in range(2)
    ]


@pytest.mark.parametrize("bad", [None, "", "a\nb"])
def test_parquet_row_without_a_split_is_malformed(tmp_path: Path, bad: str | None) -> None:
    rows = [{"caption": "A dog.", "part": split} for split in ("train", bad)]
    listing = listed(from_rows(tmp_path, rows, split_column="part"))
    assert rejected(listing, Unit.CAPTION) == [("train-00000-0000001#0", "malformed_row")]
    (image,) = [r for r in listing.rejects if r.unit is Unit.IMAGE]
    assert image.detail == "d.parquet[1]: all of its 1 captions were rejected"


def test_parquet_image_in_two_splits_stays_in_its_first(tmp_path: Path) -> None:
    shared = {"caption": "A dog.", "id": 1, "image": encode(noise())}
    rows = [{**shared, "part": split} for split in ("train", "val")]
    listing = listed(from_rows(tmp_path, rows, image_id_column="id", split_column="part"))
    assert rejected(listing, Unit.CAPTION) == [("1#1", "duplicate_id")]


def test_parquet_text_that_is_not_utf8_is_rejected_and_its_neighbours_are_not(tmp_path: Path) -> None:
    texts = pa.array([b"A dog.", b"caf\xe9", b"A cat."], pa.binary()).view(pa.string())
    images = pa.array([encode(noise(seed=i)) for i in range(3)])
    lists = pa.ListArray.from_arrays([0, 2, 3, 3], texts)
    for name, captions in (("plain", texts), ("lists", lists)):
        pq.write_table(pa.table({"image": images, "caption": captions}), tmp_path / f"{name}.parquet")
        config = ParquetConfig(files={"train": [str(tmp_path / f"{name}.parquet")]})
        listing = listed(config)
        (reject,) = [r for r in listing.rejects if r.unit is Unit.CAPTION]
        assert (reject.reason.value, reject.text) == ("not_a_string", repr(b"caf\xe9"))
        assert [c.caption for r in listing.records for c in r.captions] == ["A dog.", "A cat."]
        assert ParquetSource(config).identity()


def test_parquet_row_without_bytes_is_missing_when_it_is_read(tmp_path: Path) -> None:
    rows = [
        {"image": {"bytes": encode(noise()), "path": None}, "caption": "A dog."},
        {"image": {"bytes": None, "path": "elsewhere.jpg"}, "caption": "A cat."},
        {"image": None, "caption": "A bird."},
    ]
    source = ParquetSource(from_rows(tmp_path, rows))
    records = list_balanced(source).records
    assert source.read_image(records[0].locator) == encode(noise())
    found = ("only the path 'elsewhere.jpg', no bytes of an image,", "no image")
    for record, what in zip(records[1:], found, strict=True):
        with pytest.raises(FileNotFoundError, match=what + r" in row \d of row group \d of .*d\.parquet"):
            source.read_image(record.locator)


def damage(path: Path, name: str) -> None:
    """Overwrites the beginning of a column's data in the first row group."""
    group = pq.ParquetFile(path).metadata.row_group(0)
    (column,) = [c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == name]
    data = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + 20] = bytes(20)
    path.write_bytes(data)


def test_parquet_damaged_images_are_an_os_error(tmp_path: Path) -> None:
    config = from_rows(tmp_path, [{"caption": "A dog."}])
    damage(tmp_path / "d.parquet", "image")
    source = ParquetSource(config)
    (record,) = list_balanced(source).records
    with pytest.raises(OSError, match="page header"):
        source.read_image(record.locator)


@pytest.mark.parametrize("captions", [["A dog.", "A cat."], "A dog."])
@pytest.mark.parametrize("ids", [{}, {"image_id_column": "id"}])
def test_parquet_damaged_row_group_is_rejects_and_the_others_are_read(
    tmp_path: Path, captions: str | list[str], ids: dict[str, str]
) -> None:
    config = from_rows(tmp_path, [{"caption": captions, "id": i} for i in range(5)], **ids)
    before = ParquetSource(config).identity()
    name = "caption.list.element" if isinstance(captions, list) else "caption"
    damage(tmp_path / "d.parquet", name)  # the first of three groups, of two rows
    source = ParquetSource(config)
    listing = list_balanced(source)
    assert (len(listing.records), listing.images_in) == (3, 5)
    assert rejected(listing, Unit.IMAGE) == [(f"d.parquet[{i}]", "unreadable") for i in (0, 1)]
    assert rejected(listing, Unit.CAPTION) == [(f"d.parquet[{i}]#0", "caption_without_image") for i in (0, 1)]
    assert (
        listing.notes[0] == "5 rows in = 3 with an image of their own + 0 with an earlier row's + 2 rejects"
    )
    where = f"row group 0 of {tmp_path}/d.parquet cannot be read ("
    assert listing.notes[1].startswith(where)
    assert listing.notes[1].endswith("); its 2 rows are rejects")
    assert not {r.reason for r in listing.rejects} & listing.spare
    assert [source.read_image(r.locator) for r in listing.records] == [
        encode(noise(seed=i)) for i in (2, 3, 4)
    ]
    assert source.identity() != before


def test_parquet_store_that_does_not_give_the_bytes_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = from_rows(tmp_path, [{"caption": "A dog."}])
    damage(tmp_path / "d.parquet", "caption")
    source = ParquetSource(config)
    real, asked = parquet.open_file, []

    def fails_at_the_second(uri: str) -> pa.NativeFile:
        asked.append(uri)
        if len(asked) == 2:
            raise OSError("AWS Error NETWORK_CONNECTION")
        return real(uri)

    monkeypatch.setattr(parquet, "open_file", fails_at_the_second)
    with pytest.raises(
        DataError, match=r"d\.parquet: found AWS Error NETWORK_CONNECTION; expected a file that"
    ):
        list_balanced(source)


@pytest.mark.parametrize("data", [b"", b"no parquet at all", b"PAR1 cut"])
def test_parquet_file_that_is_none_stops(tmp_path: Path, data: bytes) -> None:
    config = write_huggingface(tmp_path)
    (tmp_path / "data-00009.parquet").write_bytes(data)
    with pytest.raises(DataError, match=r"data-00009\.parquet: .*expected a whole Parquet file"):
        listed(config)


def test_parquet_files_of_different_kinds_stop(tmp_path: Path) -> None:
    config = write_huggingface(tmp_path)
    other = write_parquet(tmp_path / "e.parquet", [{"image": "a.jpg", "caption": ["A."], "split": "train"}])
    with pytest.raises(DataError, match=r"e\.parquet: found paths in column 'image'; expected bytes, as in"):
        listed(config)
    pq.write_table(pq.read_table(tmp_path / "data-00000.parquet").drop_columns("split"), other)
    with pytest.raises(SettingError, match=r"^parquet\.split_column: found 'split'; .*e\.parquet"):
        listed(config)


def test_parquet_identity_changes_with_captions_and_files_only(tmp_path: Path) -> None:
    config = write_huggingface(tmp_path)
    before = ParquetSource(config).identity()
    assert ParquetSource(config).identity() == before
    path = tmp_path / "data-00003.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[0]["image"]["bytes"] = b"another image"
    write_parquet(path, rows)
    assert ParquetSource(config).identity() == before
    rows[2]["caption"][1] = "Another caption."
    write_parquet(path, rows)
    after = ParquetSource(config).identity()
    assert after != before
    path.rename(tmp_path / "data-00004.parquet")
    assert ParquetSource(config).identity() not in (before, after)


def test_parquet_limit_takes_the_first_of_each_split(tmp_path: Path) -> None:
    listing = listed(write_huggingface(tmp_path), limit=3)
    assert len(listing.records) == 3
    assert listing.images_in == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"files": {}}, r"^parquet\.files: "),
        ({"files": {"train": ["nowhere.parquet"]}}, r"^parquet\.files\.train: found 'nowhere\.parquet'"),
        ({"image_column": "photo"}, r"^parquet\.image_column: .*one of the columns \['image', 'caption', "),
        ({"image_column": "caption"}, r"^parquet\.image_column: .*not list<"),
        ({"caption_column": "image"}, r"^parquet\.caption_column: .*string or list of string, not struct<"),
        ({"image_id_column": "caption"}, r"^parquet\.image_id_column: .*string or integer, not list<"),
        ({"split_column": "image"}, r"^parquet\.split_column: .*of type string, not struct<"),
        ({"images": "."}, r"^parquet\.images: .*none: there are the bytes of images in column 'image'"),
        ({"image_column": "split"}, r"^parquet\.images: found '';"),
    ],
)
def test_parquet_wrong_setting_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    good = write_huggingface(tmp_path)
    settings: dict[str, Any] = {"files": good.files, "split_column": "split", **changes}
    with pytest.raises(SettingError, match=message):
        ParquetSource(ParquetConfig(**settings))
