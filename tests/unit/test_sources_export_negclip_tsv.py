"""Captions and negatives as NegCLIP's training file, and back again."""

from __future__ import annotations

import ast
import random
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from degla_ray.config import ExportNegclipTsvConfig, NegclipTsvConfig
from degla_ray.errors import DataError, SettingError
from degla_ray.schema import CAPTIONS, NEGATIVES, NEIGHBOURS
from degla_ray.sources.export_negclip_tsv import export_negclip_tsv, filepath
from degla_ray.sources.negclip_tsv import NegclipTsvSource
from degla_ray.stage import StageFolder
from tests.fixtures_sources import list_balanced, write_coco_images

COCO = "val2014/COCO_val2014_{number:012d}.jpg"
HARD = ["It's „one“.", 'Say "it\'s".', "tab\there", "two\nlines", "back\\slash", "雪 é", "['x' 'y']", "a''b"]
"""Texts whose quotes, tabs and line breaks a list in a cell of a table may lose."""


def write_folders(
    folder: Path, negatives: dict[str, list[str]], near: dict[str, list[str]]
) -> dict[str, str]:
    """Write finished folders of the three stages. A sample_id is `<image_id>#<i>`."""
    captions = [(s, s.partition("#")[0], f"Caption of {s}.", "train") for s in negatives]
    captions.append(("7#0", "7", "A fish.", "val"))
    wrong = [(s, "swap_nouns", text, "rules", "", "", 0) for s, texts in negatives.items() for text in texts]
    prepared = StageFolder(str(folder / "prepared"), "prepare", {"made": "by hand"}, 1)
    made_from = {"prepared": prepared.fingerprint, "split": "train"}
    parts: dict[str, tuple[StageFolder, str, pa.Schema, list[Any]]] = {
        "prepared": (prepared, "captions", CAPTIONS, captions),
        "negatives": (
            StageFolder(str(folder / "negatives"), "negatives", made_from, 1),
            "negatives",
            NEGATIVES,
            [(*row, None) for row in wrong],
        ),
        "neighbours": (
            StageFolder(str(folder / "neighbours"), "neighbours", made_from, 1),
            "neighbours",
            NEIGHBOURS,
            list(near.items()),
        ),
    }
    for stage, dataset, schema, rows in parts.values():
        table = pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema)
        stage.write_part(dataset, 0, table)
        stage.write_receipt(0, {})
        stage.finish()
    return {name: str(folder / name) for name in parts} | {"output": str(folder / "out" / "negclip.tsv")}


def small(folder: Path, **settings: Any) -> ExportNegclipTsvConfig:
    negatives = {"9#0": HARD, "9#1": ["One."], "100#0": ["Two."], "25#0": [], "30#0": ["Three."]}
    near = {"9": ["25", "100"], "100": ["9", "25"], "25": ["9", "100"], "30": ["25"]}
    return ExportNegclipTsvConfig(**{**write_folders(folder, negatives, near), "filepath": COCO, **settings})


def read_as_negclip(path: str) -> pd.DataFrame:
    """Read the file as NegCLIP's CsvDataset does."""
    converters = {"neg_caption": ast.literal_eval, "neg_image": ast.literal_eval}
    return pd.read_csv(path, sep="\t", converters=converters)


def test_negclip_export_writes_what_the_source_reads_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small(tmp_path, neighbours=None)
    assert export_negclip_tsv(config) == {"captions": 5, "written": 4, "left_out": 1}
    first, note = capsys.readouterr().out.splitlines()
    assert first == "captions in 5 = written 4 + left out 1 (fewer than 1 negatives)"
    assert note.startswith("note: neg_image is empty, ")
    write_coco_images(tmp_path / "coco", [9, 30, 100])
    source = NegclipTsvSource(
        NegclipTsvConfig(images=str(tmp_path / "coco"), annotations={"train": config.output})
    )
    listing = list_balanced(source)
    assert listing.rejects == []
    found = {c.caption: sorted(c.given) for r in listing.records for c in r.captions}
    assert found == {
        "Caption of 9#0.": sorted(HARD),
        "Caption of 9#1.": ["One."],
        "Caption of 100#0.": ["Two."],
        "Caption of 30#0.": ["Three."],
    }
    assert {r.image_id for r in listing.records} == {COCO.format(number=n) for n in (9, 30, 100)}


def test_negclip_export_can_be_trained_on_by_negclips_own_code(tmp_path: Path) -> None:
    config = small(tmp_path)
    # Image 30's only neighbour has no negatives and so no row to be drawn.
    assert export_negclip_tsv(config) == {"captions": 5, "written": 3, "left_out": 2}
    table = read_as_negclip(config.output)
    assert list(table.columns) == ["Unnamed: 0", "title", "filepath", "neg_caption", "neg_image"]
    for number, row in table.iterrows():
        assert random.choice(row["neg_caption"])
        other = table.loc[random.choice(row["neg_image"])]
        assert other["filepath"] != row["filepath"], number
        assert random.choice(other["neg_caption"])
    assert table[table["title"] == "Caption of 9#0."]["neg_caption"].map(sorted).tolist() == [sorted(HARD)]


@pytest.mark.parametrize(
    ("pattern", "image_id", "path"),
    [
        ("{image_id}", "a/b {0}.jpg", "a/b {0}.jpg"),
        ("/data/{image_id}", "a.PNG", "/data/a.PNG"),
        (COCO, "9", "val2014/COCO_val2014_000000000009.jpg"),
        (COCO, "x/000000000009.jpg", "val2014/COCO_val2014_000000000009.jpg"),
        ("{image_id}", "9", "'9'; expected the path of an image file"),
        ("{number}.jpg", "a.jpg", "'a.jpg': KeyError.'number'"),
        ("{}.jpg", "a", "IndexError"),
        ("{image_id.nothing}.jpg", "a", "AttributeError"),
        ("{image_id", "a.jpg", "ValueError"),
    ],
)
def test_negclip_filepath_is_the_pattern_filled_in_or_an_error(
    pattern: str, image_id: str, path: str
) -> None:
    if path.lower().endswith((".jpg", ".png")):
        assert filepath(pattern, image_id) == path
    else:
        with pytest.raises(SettingError, match=f"filepath: found .*{path}"):
            filepath(pattern, image_id)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"split": "test"}, SettingError, r"split: found 'test'; expected one of \['train', 'val'\]"),
        ({"split": "val"}, DataError, r"neighbours: found neighbours of another folder or split"),
        ({"min_negatives": 9}, DataError, "no caption with 9 negatives"),
        ({"filepath": "{image_id}"}, SettingError, "filepath: found '100'; expected"),
        ({"output": "{tmp}"}, SettingError, "output: .*the name of a TSV file"),
        ({"neighbours": "{tmp}/nowhere"}, DataError, r"no manifest\.json"),
    ],
)
def test_negclip_export_that_cannot_work_says_why(
    tmp_path: Path, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    settings = {
        k: v.replace("{tmp}", str(tmp_path)) if isinstance(v, str) else v for k, v in settings.items()
    }
    with pytest.raises(error, match=message):
        export_negclip_tsv(small(tmp_path, **settings))
    with pytest.raises(SettingError, match="min_negatives"):
        ExportNegclipTsvConfig(prepared="p", negatives="n", output="o", min_negatives=0)
