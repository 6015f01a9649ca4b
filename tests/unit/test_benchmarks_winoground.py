"""Winoground: the official strict rules, from made-up items with ties."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from degla_ray.errors import DataError
from degla_ray.evaluation.benchmarks.winoground import load_winoground
from degla_ray.storage import Storage
from tests.published_files import decisions, similarity, tied_features, write_json

FILE = "winoground/examples.jsonl"


def made_up(i: int) -> dict[str, Any]:
    return {
        "id": i,
        "image_0": f"ex_{i}_img_0",
        "image_1": f"ex_{i}_img_{int(i % 10 != 0)}",  # sometimes the same image twice
        "caption_0": f"the dog chases the cat {i}",
        "caption_1": f"the cat chases the dog {i}",
        "tag": "Object",
    }


def write_winoground(folder: Path, items: int = 120) -> Storage:
    lines = [json.dumps(made_up(i)) for i in range(items)]
    write_json(folder, FILE, "\n".join(lines) + "\n\n")
    return Storage(str(folder))


@pytest.mark.parametrize("seed", range(4))
def test_winoground_decisions_equal_the_official_rules(tmp_path: Path, seed: int) -> None:
    benchmark = load_winoground(write_winoground(tmp_path))
    features = tied_features(benchmark, seed)
    if seed == 0:  # axes: one comparison may tie while the other is won
        rng, axes = np.random.default_rng(0), np.eye(3, dtype=np.float32)
        img_ND, txt_MD = (axes[rng.integers(0, 3, len(x))] for x in (features.image_row, features.text_row))
        features = dataclasses.replace(features, img_ND=img_ND, txt_MD=txt_MD)
    expected, ties = {}, 0
    for i in range(120):
        item = made_up(i)
        score = {
            f"c{c}_i{k}": similarity(features, f"winoground:{item[f'image_{k}']}.png", item[f"caption_{c}"])
            for c in (0, 1)
            for k in (0, 1)
        }
        text = score["c0_i0"] > score["c1_i0"] and score["c1_i1"] > score["c0_i1"]
        image = score["c0_i0"] > score["c0_i1"] and score["c1_i1"] > score["c1_i0"]
        group = text and image
        for subset, correct in (("text", text), ("image", image), ("group", group)):
            expected[subset, str(i)] = correct
        ties += len(set(score.values())) < 4
    result = benchmark.score(features)
    assert decisions(result) == expected
    assert ties > 20
    assert all(any(v for (s, _), v in expected.items() if s == subset) for subset in benchmark.subsets)
    for row in result.scores.to_pylist():
        c0_i0, c1_i0, c0_i1, c1_i1 = row["candidate_scores"]
        if row["subset"] == "text":  # the stored scores alone reproduce the decision
            assert row["correct"] == (c0_i0 > c1_i0 and c1_i1 > c0_i1)


def test_winoground_missing_image_is_counted_in_every_subset(tmp_path: Path) -> None:
    benchmark = load_winoground(write_winoground(tmp_path))
    result = benchmark.score(tied_features(benchmark, 0, missing=["winoground:ex_7_img_1.png"]))
    assert result.missing == {"text": 1, "image": 1, "group": 1}
    assert len(result.scores) == 3 * 119
    assert [benchmark.chance(subset) for subset in benchmark.subsets] == [1 / 4, 1 / 4, 1 / 6]
    shown = list(benchmark.shown())
    assert len(shown) == 120
    assert shown[7].images == ("winoground:ex_7_img_0.png", "winoground:ex_7_img_1.png")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": 1,', r"examples.jsonl, line 2: found broken JSON \(.*\)"),
        (json.dumps({**made_up(1), "id": 0}), "item 'line 2': found id '0' a second time"),
        (json.dumps({**made_up(1), "caption_1": ""}), "item 'line 2': found caption_1 ''"),
        (json.dumps({"id": 1}), "item 'line 2': found no 'image_0'"),
        ("[]", r"item 'line 2': found \[\]; expected an object with id"),
    ],
)
def test_winoground_broken_line_is_refused_by_number(tmp_path: Path, line: str, message: str) -> None:
    write_json(tmp_path, FILE, json.dumps(made_up(0)) + "\n" + line)
    with pytest.raises(DataError, match=message):
        load_winoground(Storage(str(tmp_path)))


def test_winoground_empty_or_absent_file_is_refused(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with pytest.raises(DataError, match=r"examples.jsonl: found no such file"):
        load_winoground(storage)
    write_json(tmp_path, FILE, "\n")
    with pytest.raises(DataError, match="no items"):
        load_winoground(storage)
