"""Negatives that a source brought along become a negatives folder like any other."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from degla_ray.config import NegativesConfig
from degla_ray.errors import DataError
from degla_ray.negatives.pipeline import generate
from degla_ray.schema import CAPTIONS, GIVEN, NEGATIVES, REJECTS
from degla_ray.stage import StageFolder
from degla_ray.storage import Storage

CAPTION_ROWS = [
    ("a", "i", "A dog runs.", "train"),
    ("b", "i", "Two cats.", "train"),
    ("c", "j", "X.", "train"),
]
GIVEN_ROWS = [
    ("a", "given", "A cat runs."),
    ("a", "given", "a dog  runs"),
    ("a", "given", "The cat runs!"),
    ("a", "given", "A dog sits."),
    ("b", "given", "two cats"),
]


def table(rows: list[tuple[str, ...]], schema: pa.Schema) -> pa.Table:
    return pa.table([list(column) for column in zip(*rows, strict=True)], schema=schema)


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    folder = StageFolder(str(tmp_path / "prepared"), "prepare", {"source": "test"}, 1)
    folder.write_part("captions", 0, table(CAPTION_ROWS, CAPTIONS))
    folder.write_part("given", 0, table(GIVEN_ROWS, GIVEN))
    folder.write_receipt(0, {"captions": 3})
    folder.finish()
    return tmp_path / "prepared"


def test_generate_given_keeps_their_order_and_rejects_what_says_nothing_else(
    prepared: Path, tmp_path: Path
) -> None:
    config = NegativesConfig(
        prepared=str(prepared), output=str(tmp_path / "out"), engine="given", num_shards=2
    )
    counts = generate(config)
    storage = Storage(config.output)
    rows = storage.read_dataset("negatives", NEGATIVES).to_pylist()
    assert [(r["sample_id"], r["kind"], r["negative"]) for r in rows] == [
        ("a", "given", "A cat runs."),
        ("a", "given", "A dog sits."),
    ]
    rejects = storage.read_dataset("rejects", REJECTS).to_pylist()
    assert sorted((r["sample_id"], r["text"], r["reason"]) for r in rejects) == [
        ("a", "The cat runs!", "duplicate_negative"),
        ("a", "a dog  runs", "same_as_caption"),
        ("b", "two cats", "same_as_caption"),
    ]
    states = {s: counts[f"captions.given.{s}"] for s in ("ok", "rejected", "not_applicable")}
    assert states == {"ok": 1, "rejected": 1, "not_applicable": 1}
    assert len(rows) + len(rejects) == len(GIVEN_ROWS)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["complete"]


def test_generate_given_of_a_source_without_any_says_which_have_some(prepared: Path, tmp_path: Path) -> None:
    for part in (prepared / "given").iterdir():
        part.unlink()
    with pytest.raises(DataError, match="degla_json or negclip_tsv"):
        generate(NegativesConfig(prepared=str(prepared), output=str(tmp_path / "out"), engine="given"))
