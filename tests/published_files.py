"""Shared fixtures of the published benchmarks' tests: generated annotation files, tied features, tables."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from degla_ray.encoding.features import FeatureTable
from degla_ray.evaluation.benchmarks.base import Benchmark, Scored, ScoredItems, scores_table
from degla_ray.evaluation.summary import Summary, summarise
from degla_ray.storage import Storage


def write_json(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def annotations(real_data: Path) -> Storage:
    """The official files; skips where they are absent."""
    if not (real_data / "annotations").is_dir():
        pytest.skip(f"no annotation files at {real_data / 'annotations'}")
    return Storage(str(real_data / "annotations"))


def printed_rows(real_data: Path, table: str) -> list[dict[str, str]]:
    """The rows of a published table, which lies beside the real data; skips where it is absent."""
    path = real_data.parent / "paper" / f"{table}.csv"
    if not path.is_file():
        pytest.skip(f"no published table at {path}")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def tied_features(benchmark: Benchmark, seed: int, missing: Collection[str] = ()) -> FeatureTable:
    """FeatureTable of so few directions that many texts, and many images, have the very same."""
    rng = np.random.default_rng(seed)
    keys, texts = sorted(benchmark.image_keys() - set(missing)), sorted(benchmark.texts())
    directions = rng.normal(size=(7, 24)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return FeatureTable(
        img_ND=directions[rng.integers(0, 7, len(keys))],
        txt_MD=directions[rng.integers(0, 7, len(texts))],
        image_row={key: i for i, key in enumerate(keys)},
        text_row={text: i for i, text in enumerate(texts)},
    )


def feature(features: FeatureTable, name: str) -> list[float]:
    """Of an image, by its `image_key`, or of a text."""
    if name in features.image_row:
        return [float(x) for x in features.img_ND[features.image_row[name]]]
    return [float(x) for x in features.txt_MD[features.text_row[name]]]


def similarity(features: FeatureTable, a: str, b: str) -> float:
    return sum(x * y for x, y in zip(feature(features, a), feature(features, b), strict=True))


def decisions(scored: Scored) -> dict[tuple[str, str], bool]:
    """(subset, item id) -> correct, after checking that no item is there twice."""
    rows = {(row["subset"], row["item_id"]): row["correct"] for row in scored.scores.to_pylist()}
    assert len(rows) == len(scored.scores)
    return rows


def summary_of(benchmark: Benchmark, scored: Scored) -> Summary:
    base = Summary(label="m", model={"name": "m"}, inputs={}, fingerprint="f")
    return summarise(base, [benchmark], [scored], {}, bootstrap_samples=50)


def summary_at(benchmark: Benchmark, percent: Mapping[str, float]) -> Summary:
    """The summary if each subset had 1,000 items of which so many per cent, in tenths, are right."""
    parts = [(subset, i, i < round(10 * value)) for subset, value in percent.items() for i in range(1000)]
    subsets, numbers, correct = zip(*parts, strict=True)
    ids = [str(number) for number in numbers]
    scores = scores_table(
        benchmark.name,
        ScoredItems(subsets=subsets, ids=ids, images=ids),
        np.zeros((len(ids), 2)),
        np.array(correct),
    )
    return summary_of(benchmark, Scored(scores=scores, missing={}))


def value(summary: Summary, name: str) -> float:
    """In per cent."""
    score = summary.score(name)
    assert score is not None
    assert score.value is not None, name
    return 100 * score.value
