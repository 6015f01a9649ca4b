"""Reading a suite folder: wrong folders and broken files end in one line that says what is right."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from degla_ray.errors import DataError
from degla_ray.evaluation.benchmarks import suite
from degla_ray.schema import CAPTIONS, CHOICE_ITEMS, CLASS_ITEMS
from degla_ray.stage import StageFolder
from degla_ray.storage import Storage
from tests.evaluation_suite import PART, choice_rows, png, write_suite


def refused(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        suite.load_suite(str(folder))
    line = str(caught.value)
    assert "\n" not in line
    assert str(folder) in line
    return line


def test_suite_whole_folder_gives_four_benchmarks(tmp_path: Path) -> None:
    benchmarks = suite.load_suite(str(write_suite(tmp_path)))
    assert [b.name for b in benchmarks] == ["scenes", "scenes_order", "scenes_zeroshot", "scenes_retrieval"]
    assert set(benchmarks[0].subsets) == set(suite.SCENES_SUBSETS)


def test_suite_absent_empty_or_other_folder_is_refused(tmp_path: Path) -> None:
    assert "no such folder" in refused(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "none of choices, classification, retrieval" in refused(tmp_path / "empty")
    StageFolder(str(tmp_path / "negatives"), "negatives", {"a": 1}, num_shards=1)
    assert "the output of stage 'negatives'" in refused(tmp_path / "negatives")
    write_suite(tmp_path / "prepared" / "tests")
    assert "its suite" in refused(tmp_path / "prepared")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{broken", "broken JSON"),
        (b"[]", "no classes and templates of 'scenes_zeroshot'"),
        (b"{}", "no classes and templates of 'scenes_zeroshot'"),
        (b'{"scenes_zeroshot": []}', "no classes and templates"),
        (b'{"scenes_zeroshot": {"classes": "abc", "templates": ["{}"]}}', "no classes and templates"),
        (b'{"scenes_zeroshot": {"classes": ["a", 3], "templates": ["{}"]}}', "no classes and templates"),
        (b'{"scenes_zeroshot": {"classes": ["a", "b"], "templates": ["{}"]}}', "label"),
    ],
)
def test_suite_broken_classes_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    write_suite(tmp_path)
    (tmp_path / "classification" / "classes.json").write_bytes(content)
    line = refused(tmp_path)
    assert message in line
    assert "classes.json" in line


def test_suite_without_classes_file_or_with_foreign_columns_is_refused(tmp_path: Path) -> None:
    write_suite(tmp_path)
    (tmp_path / "classification" / "classes.json").unlink()
    assert "no such file" in refused(tmp_path)
    write_suite(tmp_path)
    table = pa.Table.from_pylist(choice_rows(2), schema=CHOICE_ITEMS).drop_columns("texts")
    Storage(str(tmp_path)).write_table(table, "choices", PART)
    assert "no column ['texts']" in refused(tmp_path)


@pytest.mark.parametrize("field", ["benchmark", "subset"])
def test_suite_unknown_benchmark_or_subset_is_refused(tmp_path: Path, field: str) -> None:
    write_suite(tmp_path)
    rows = choice_rows(2)
    rows[0][field] = "mystery"
    Storage(str(tmp_path)).write_table(pa.Table.from_pylist(rows, schema=CHOICE_ITEMS), "choices", PART)
    assert f"{field} 'mystery'" in refused(tmp_path)


def test_suite_subset_without_items_is_still_reported(tmp_path: Path) -> None:
    write_suite(tmp_path)
    rows = [row for row in choice_rows(2) if row["subset"] != "add_att"]
    Storage(str(tmp_path)).write_table(pa.Table.from_pylist(rows, schema=CHOICE_ITEMS), "choices", PART)
    assert "add_att" in suite.load_suite(str(tmp_path))[0].subsets


def test_suite_null_caption_and_empty_classification_are_handled(tmp_path: Path) -> None:
    write_suite(tmp_path)
    storage = Storage(str(tmp_path))
    storage.write_table(pa.Table.from_pylist([], schema=CLASS_ITEMS), "classification", PART)
    assert "scenes_zeroshot" not in [b.name for b in suite.load_suite(str(tmp_path))]
    rows = [{"sample_id": "s", "image_id": "img-0", "caption": None, "split": "test"}]
    storage.write_table(pa.Table.from_pylist(rows, schema=CAPTIONS), "retrieval", PART)
    assert "null" in refused(tmp_path)


def test_suite_identity_follows_content_and_not_place(tmp_path: Path) -> None:
    first, second = write_suite(tmp_path / "a"), write_suite(tmp_path / "b")
    assert suite.suite_identity(str(first)) == suite.suite_identity(str(second))
    third = write_suite(tmp_path / "c", images={"img-4": png(99)})
    assert suite.suite_identity(str(third)) != suite.suite_identity(str(first))
