"""VALSE: counts from the real files, the printed averages from their parts, rules from made-up items."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from degla_ray.errors import DataError
from degla_ray.evaluation.benchmarks.valse import AVERAGES, SUBSETS, load_valse
from degla_ray.storage import Storage
from tests.published_files import (
    annotations,
    decisions,
    printed_rows,
    similarity,
    summary_at,
    summary_of,
    tied_features,
    value,
    write_json,
)

COUNTS = {
    "existence": 505, "plurals": 851, "counting-hard": 868, "counting-small-quant": 900,
    "counting-adversarial": 691, "relations": 535, "action-replacement": 648, "actant-swap": 949,
    "coreference-standard": 708, "coreference-hard": 104, "foil-it": 943,
}  # fmt: skip
IMAGES = [  # dataset, original_split, image_file, image_key
    ("visual7w", "test", "v7w_1.jpg", "visual7w:v7w_1.jpg"),
    ("coco2017", "val", "000000000001.jpg", "coco_val2017:000000000001.jpg"),
    ("coco_2017", "val", "000000000002.jpg", "coco_val2017:000000000002.jpg"),
    ("SWiG", "test", "eating_1.jpg", "swig:eating_1.jpg"),
    ("FOIL dataset", "test", "COCO_val2014_1.jpg", "coco_val2014:COCO_val2014_1.jpg"),
    ("VisDial_v1.0", "train", "COCO_val2014_1.jpg", "coco_val2014:COCO_val2014_1.jpg"),
    ("VisDial_v1.0", "train", "COCO_train2014_1.jpg", "coco_train2014:COCO_train2014_1.jpg"),
    ("VisDial_v1.0", "val", "VisualDialog_val2018_1.jpg", "visdial:VisualDialog_val2018_1.jpg"),
]


def made_up(subset: str, i: int) -> dict[str, Any]:
    dataset, split, file, _ = IMAGES[i % len(IMAGES)]
    return {
        "dataset": dataset,
        "original_split": split,
        "image_file": file,
        "caption": f"{subset} {i}",
        "foil": f"{subset} {i}" if i % 9 == 0 else f"no {subset} {i}",
        "mturk": {"caption": i % 4, "foil": 0, "other": 0},
    }


def write_valse(folder: Path, items: int = 48) -> Storage:
    for subset in SUBSETS:
        content = {f"{subset}_{i}": made_up(subset, i) for i in range(items)}
        write_json(folder, f"valse/{subset}.json", content)
    return Storage(str(folder))


@pytest.mark.parametrize(("min_votes", "seed"), [(2, 0), (2, 1), (0, 2), (3, 3)])
def test_valse_decisions_equal_the_official_rule(tmp_path: Path, min_votes: int, seed: int) -> None:
    benchmark = load_valse(write_valse(tmp_path), min_votes=min_votes)
    features = tied_features(benchmark, seed)
    expected, ties = {}, 0
    for subset in SUBSETS:
        for i in range(48):
            item = made_up(subset, i)
            if item["mturk"]["caption"] >= min_votes:
                image = IMAGES[i % len(IMAGES)][3]
                true = similarity(features, image, item["caption"])
                foil = similarity(features, image, item["foil"])
                expected[subset, f"{subset}_{i}"] = true > foil
                ties += true == foil
    assert decisions(benchmark.score(features)) == expected
    assert ties > 20
    assert len(expected) == 11 * 48 * (4 - min_votes) // 4


def test_valse_real_files_have_the_published_counts(real_data: Path) -> None:
    benchmark = load_valse(annotations(real_data))
    shown = list(benchmark.shown())
    assert Counter(item.subset for item in shown) == COUNTS
    assert len(shown) == 7702
    everything = list(load_valse(annotations(real_data), min_votes=0).shown())
    assert len(everything) == 8782
    collections = Counter(item.images[0].partition(":")[0] for item in everything)
    assert collections == {
        "visual7w": 534 + 1000 + 1000 + 756,
        "coco_val2017": 1000 + 614,
        "swig": 779 + 1042,
        "coco_val2014": 1000 + 283,
        "coco_train2014": 633,
        "visdial": 141,
    }


def test_valse_averages_of_printed_parts_are_the_printed_averages(tmp_path: Path, real_data: Path) -> None:
    benchmark = load_valse(write_valse(tmp_path, items=4))
    for row in printed_rows(real_data, "valse"):
        # the table prints one number for the three counting instruments: their mean
        parts = {s: float(row["counting" if s.startswith("counting") else s]) for s in SUBSETS}
        summary = summary_at(benchmark, parts)
        assert value(summary, "valse") == pytest.approx(float(row["avg"]), abs=0.0501), row["model"]
        columns = [float(row[name]) for name in row if name not in ("model", "avg")]
        assert value(summary, "valse_printed") == pytest.approx(np.mean(columns))
        assert value(summary, "valse_counting") == pytest.approx(float(row["counting"]))


def test_valse_averages_of_averages_weigh_each_phenomenon_once(tmp_path: Path) -> None:
    benchmark = load_valse(write_valse(tmp_path, items=4))
    parts = dict(zip(SUBSETS, [10, 20, 30, 50, 70, 40, 60, 80, 15, 25, 90], strict=True))
    summary = summary_at(benchmark, parts)
    phenomena = [10, 20, (30 + 50 + 70) / 3, 40, (60 + 80) / 2, (15 + 25) / 2, 90]
    assert value(summary, "valse_phenomena") == pytest.approx(np.mean(phenomena))
    assert value(summary, "valse_printed") == pytest.approx(np.mean([10, 20, 50, 40, 60, 80, 15, 25, 90]))
    assert value(summary, "valse") == pytest.approx(np.mean(list(parts.values())))
    for name in ("valse", "valse_printed", "valse_phenomena"):
        average = summary.score(name)
        assert average is not None
        assert set(average.of) == {f"valse/{subset}" for subset in SUBSETS}  # what a paired test pools
        assert (average.n, len(average.of)) == (11_000, 11)
        assert average.low is not None
        assert average.high is not None
        assert average.value is not None
        assert average.low < average.value < average.high


def test_valse_missing_image_is_counted_once_in_every_average_above(tmp_path: Path) -> None:
    benchmark = load_valse(write_valse(tmp_path))
    assert set(benchmark.averages) == set(AVERAGES)
    scored = benchmark.score(tied_features(benchmark, 0, missing=["swig:eating_1.jpg"]))
    assert dict(scored.missing) == dict.fromkeys(SUBSETS, 6)  # i = 3, 11, 19, ... with three votes
    missing = {average.name: average.missing for average in summary_of(benchmark, scored).averages}
    assert missing == {
        "valse_counting": 18, "valse_actions": 12, "valse_coreference": 12,
        "valse": 66, "valse_printed": 66, "valse_phenomena": 66,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "vqa"}, r"existence.json, item 'x': found 'vqa', split 'test', image 'v7w_1.jpg'"),
        ({"original_split": "train"}, "split 'train'"),
        ({"image_file": "1.jpg"}, "image '1.jpg'; expected one of visual7w test v7w_"),
        ({"mturk": {"foil": 1}}, "votes for the caption"),
        ({"mturk": {"caption": True}}, "votes for the caption"),
        ({"mturk": None}, "found mturk None"),
        ({"mturk": {"caption": 1}}, r"existence.json: found no item whose caption has 2 votes"),
        ({"foil": ""}, "found foil ''"),
    ],
)
def test_valse_broken_item_is_refused_by_name(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    storage = write_valse(tmp_path)
    item = {**made_up("existence", 0), "mturk": {"caption": 3}, **change}
    write_json(tmp_path, "valse/existence.json", {"x": item})
    with pytest.raises(DataError, match=message):
        load_valse(storage)
