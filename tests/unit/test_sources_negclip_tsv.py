"""NegCLIP's training files as a source, good and bad."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from degla_ray.config import NegclipTsvConfig
from degla_ray.errors import DataError, SettingError
from degla_ray.sources.base import Refusal, Unit
from degla_ray.sources.negclip_tsv import NegclipTsvSource, parse_tsv
from degla_ray.sources.prepare import Listing
from tests.fixtures_sources import list_balanced, negclip_row, rejected, write_negclip

HEADER = b"\ttitle\tfilepath\tneg_caption\tneg_image\n"


def listed(config: NegclipTsvConfig) -> Listing:
    return list_balanced(NegclipTsvSource(config))


def rows(data: bytes) -> list[tuple[str, str]]:
    """Where each row was, and its title; of a bad one a !."""
    return [
        (where.removeprefix("n.tsv:"), "!" if isinstance(row, Refusal) else row["title"])
        for where, row in parse_tsv(HEADER + data, "x/n.tsv")
    ]


def add_line(config: NegclipTsvConfig, line: bytes) -> None:
    with open(config.annotations["train"], "ab") as file:
        file.write(line + b"\n")


def test_negclip_gives_every_caption_with_its_negatives(tmp_path: Path) -> None:
    config = write_negclip(tmp_path, [negclip_row(9), negclip_row(25), negclip_row(9, 1)], [9, 25])
    listing = listed(config)
    assert listing.rejects == []
    first = listing.records[0]
    # The file's paths begin with coco/, the folder's own do not.
    assert first.image_id == "coco/val2014/COCO_val2014_000000000009.jpg"
    assert first.locator == "val2014/COCO_val2014_000000000009.jpg"
    assert [c.sample_id for c in first.captions] == [f"{first.image_id}#{i}" for i in range(2)]
    assert first.captions[0].given == ("A mirror's sink 9 0.", "Two sinks 9 0 .")
    given = NegclipTsvSource(config).side_tables(listing.records)["given"].to_pylist()
    assert len(given) == 6
    assert given[1] == {
        "sample_id": f"{first.image_id}#0",
        "kind": "given",
        "negative": "Two sinks 9 0 .",
    }


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"0\tOne\ta\t[]\t[]\n1\tTwo\tb\t[]\t[]", [("2", "One"), ("3", "Two")]),
        (b"0\tOne\ta\t[]\t[]\r\n\r\n\n1\tTwo\tb\t[]\t[]\r\n", [("2", "One"), ("5", "Two")]),
        (b'0\tOne\ta\t"[""it\'s""]"\t[]\n', [("2", "One")]),
        (b'0\t"One\n\nmore"\ta\t[]\t[]\n1\tTwo\tb\t[]\t[]\n', [("2", "One\n\nmore"), ("5", "Two")]),
        (b'0\tA 5" pipe\ta\t[]\t[]\n1\tTwo\tb\t[]\t[]\n', [("2", 'A 5" pipe'), ("3", "Two")]),
        (b"0\tH\xc3\xbcndchen\xe2\x80\xa8\ta\t[]\t[]\n", [("2", "Hündchen\u2028")]),
        # bad ones: only their own line is lost
        (b"0\tOne\ta\t[]\n1\tTwo\tb\t[]\t[]\n", [("2", "!"), ("3", "Two")]),
        (b"0\tOne\ta\t[]\t[]\tmore\n1\tTwo\tb\t[]\t[]\n", [("2", "!"), ("3", "Two")]),
        (b'0\t"One\ta\t[]\t[]\n1\tTwo\tb\t[]\t[]\n', [("2", "!"), ("3", "Two")]),
        (b'0\t"One\ta\t[]\t[]\n1\t"Two"\tb\t[]\t[]\n', [("2", "!"), ("3", "Two")]),
        (b'0\t"One" x\ta\t[]\t[]\n1\tTwo\tb\t[]\t[]\n', [("2", "!"), ("3", "Two")]),
        (b"0\tcaf\xe9\ta\t[]\t[]\n1\tTwo\tb\t[]\t[]\n", [("2", "!"), ("3", "Two")]),
        (b"0\tone\rhalf\ta\t[]\t[]\n1\tTwo\tb\t[]\t[]\n", [("2", "!"), ("3", "Two")]),
    ],
)
def test_tsv_rows_are_parsed_as_pandas_writes_them(data: bytes, expected: list[tuple[str, str]]) -> None:
    assert rows(data) == expected


def test_tsv_columns_are_found_by_their_names_and_a_mark_is_taken() -> None:
    data = b"\xef\xbb\xbfneg_image\tneg_caption\tfilepath\ttitle\n[1]\t['a']\tf.jpg\tOne\n"
    ((_, row),) = parse_tsv(data, "n.tsv")
    assert row == {"title": "One", "filepath": "f.jpg", "neg_caption": "['a']"}


@pytest.mark.parametrize(
    "header", [b"", b"title,filepath,neg_caption,neg_image", b"title\tfilepath", b'"title\t']
)
def test_tsv_without_its_header_stops(header: bytes) -> None:
    with pytest.raises(DataError, match=r"n\.tsv:1: .*expected tab-separated columns, among them title, "):
        list(parse_tsv(header + b"\nOne\ta\t[]\t[]\n", "n.tsv"))


@pytest.mark.parametrize(
    ("column", "cell", "detail"),
    [
        (2, "['a'", "neg_caption: \"['a'\" is no Python list (SyntaxError)"),
        (2, "", "neg_caption: '' is no Python list (SyntaxError)"),
        (2, "[__import__('os').getcwd()]", "neg_caption: "),
        (2, "[" * 5000, "neg_caption: "),
        (2, "'a text'", "its negatives are no list but str"),
        (2, "{'a': 1}", "its negatives are no list but dict"),
        (2, "['a', 3]", "negative 1: not_a_string"),
        (2, "['a', ' ']", "negative 1: empty_caption"),
        (2, "['a.' 'b.']", "neg_caption: 2 texts in a list of 1; a comma is missing between two"),
        (2, "['a.'\n 'b.', 'c.']", "neg_caption: 3 texts in a list of 2"),
        (2, "['a.''b.']", "neg_caption: 2 texts in a list of 1"),
        (2, """["a." 'b.']""", "neg_caption: 2 texts in a list of 1"),
        (2, "['a.' r'b.']", "neg_caption: 2 texts in a list of 1"),
        (2, "array(['a.', 'b.'], dtype=object)", "neg_caption: "),
        (2, "['a.', ..., 'z.']", "negative 1: not_a_string"),
    ],
)
def test_negclip_malformed_list_rejects_its_row(tmp_path: Path, column: int, cell: str, detail: str) -> None:
    bad = negclip_row(9, 1)
    bad[column] = cell
    listing = listed(write_negclip(tmp_path, [negclip_row(9), bad, negclip_row(9, 2)], [9]))
    (reject,) = listing.rejects
    assert (reject.row_id.rpartition("#")[2], reject.reason.value) == ("1", "malformed_row")
    assert reject.detail.startswith(f"neg_clip.tsv:3: {detail}")
    assert [c.sample_id[-1] for c in listing.records[0].captions] == ["0", "2"]


def test_negclip_texts_with_quotes_in_them_are_no_glued_ones(tmp_path: Path) -> None:
    row = negclip_row(9)
    texts = ["it's ''quoted''", 'a "" b', "", "' '"]
    row[2] = repr(texts[:2] + texts[3:])
    (record,) = listed(write_negclip(tmp_path, [row], [9])).records
    assert record.captions[0].given == tuple(text.strip() for text in texts if text)


@pytest.mark.parametrize("cell", ["[1, 2", "7", "", "[1, 'a']"])
def test_negclip_neighbours_are_not_read(tmp_path: Path, cell: str) -> None:
    row = negclip_row(9)
    row[3] = cell
    assert listed(write_negclip(tmp_path, [row], [9])).rejects == []


def test_negclip_file_without_neighbours_is_read(tmp_path: Path) -> None:
    config = write_negclip(tmp_path, [], [9])
    header, row = "title\tfilepath\tneg_caption", "A cat.\tCOCO_val2014_000000000009.jpg\t['A dog.']"
    Path(config.annotations["train"]).write_text(f"{header}\n{row}\n")
    listing = listed(config)
    assert (listing.rejects, listing.records[0].captions[0].given) == ([], ("A dog.",))


def test_negclip_line_that_is_no_row_is_rejected_by_file_and_line(tmp_path: Path) -> None:
    config = write_negclip(tmp_path, [negclip_row(9)], [9])
    add_line(config, b"broken")
    assert rejected(listed(config), Unit.CAPTION) == [("neg_clip.tsv:3", "malformed_row")]


@pytest.mark.parametrize("path", ["", "  ", "a\nb.jpg"])
def test_negclip_row_without_a_path_is_malformed(tmp_path: Path, path: str) -> None:
    bad = negclip_row(9)
    bad[1] = path
    listing = listed(write_negclip(tmp_path, [negclip_row(9), bad], [9]))
    assert rejected(listing, Unit.CAPTION) == [("neg_clip.tsv:3", "malformed_row")]


def test_negclip_missing_image_empty_caption_and_path_outside_are_rejected(tmp_path: Path) -> None:
    outside, empty = negclip_row(9), negclip_row(9, 1)
    outside[1], empty[0] = "../secret.jpg", " "
    listing = listed(write_negclip(tmp_path, [negclip_row(9), negclip_row(10), outside, empty], [9]))
    gone, kept = (f"coco/val2014/COCO_val2014_{i:012d}.jpg" for i in (10, 9))
    assert set(rejected(listing, Unit.IMAGE)) == {
        (gone, "missing_image"),
        ("../secret.jpg", "outside_folder"),
    }
    assert set(rejected(listing, Unit.CAPTION)) == {
        (f"{gone}#0", "caption_without_image"),
        ("../secret.jpg#0", "caption_without_image"),
        (f"{kept}#1", "empty_caption"),
    }


def test_negclip_caption_without_negatives_is_kept(tmp_path: Path) -> None:
    row = negclip_row(9)
    row[2] = "[]"
    listing = listed(write_negclip(tmp_path, [row], [9]))
    assert (listing.rejects, listing.records[0].captions[0].given) == ([], ())


def test_negclip_identity_changes_with_the_file(tmp_path: Path) -> None:
    config = write_negclip(tmp_path, [negclip_row(9)], [9])
    before = NegclipTsvSource(config).identity()
    assert NegclipTsvSource(config).identity() == before
    add_line(config, b"")
    assert NegclipTsvSource(config).identity() != before


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"images": ""}, "negclip_tsv.images"),
        ({"annotations": {}}, "negclip_tsv.annotations"),
        ({"annotations": {"val": "nowhere.tsv"}}, "negclip_tsv.annotations.val"),
    ],
)
def test_negclip_wrong_setting_is_named(tmp_path: Path, changes: dict[str, Any], setting: str) -> None:
    good = write_negclip(tmp_path, [negclip_row(9)], [9])
    settings: dict[str, Any] = {"images": good.images, "annotations": good.annotations, **changes}
    with pytest.raises(SettingError) as caught:
        NegclipTsvSource(NegclipTsvConfig(**settings))
    assert caught.value.setting == setting


def test_negclip_real_file_is_parsed_without_a_bad_row(real_data: Path, tmp_path: Path) -> None:
    path = real_data / "annotations" / "negclip" / "valid_neg_clip.tsv"
    # The images are not there: names alone decide what a row would be.
    (tmp_path / "val2014").mkdir()
    for _, row in parse_tsv(path.read_bytes(), str(path)):
        assert not isinstance(row, Refusal)
        (tmp_path / "val2014" / row["filepath"].rpartition("/")[2]).touch()
    listing = listed(NegclipTsvConfig(images=str(tmp_path), annotations={"val": str(path)}))
    assert (len(listing.records), listing.captions_in, listing.rejects) == (4839, 4839, [])
    assert sum(len(r.captions[0].given) for r in listing.records) == 7370
    quoted = next(r for r in listing.records if r.image_id.endswith("000000551952.jpg"))
    assert quoted.captions[0].given == ("A white motorcycle filled with truck on it 's flatbed .",)
