"""VG-Relation and VG-Attribution from made-up files: what counts, what is left out, what ties."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from degla_ray.encoding.features import FeatureTable
from degla_ray.errors import DataError
from degla_ray.evaluation.benchmarks.aro import (
    ARO_MEMBERS,
    load_vg_attribution,
    load_vg_relation,
)
from degla_ray.storage import Storage
from tests.published_files import (
    annotations,
    decisions,
    printed_rows,
    similarity,
    summary_of,
    tied_features,
    value,
    write_json,
)

RELATIONS = ["on", "on", "on", "behind", "next to", "holding", "with"]  # by turns, so of unequal size
PAIRS = [["white", "black"]] * 6 + [["round", "old"]] * 3 + [["old", "round"]]


def made_up(i: int) -> dict[str, Any]:
    return {
        "image_path": f"{i % 4}.jpg",
        "bbox_x": i % 3,
        "bbox_y": 2,
        "bbox_w": 20 + i % 2,
        "bbox_h": 30,
        "true_caption": f"the dog is on the mat {i}",
        "false_caption": f"the {'dog is on the mat' if i % 10 == 0 else 'mat is on the dog'} {i}",
        "relation_name": RELATIONS[i % len(RELATIONS)],
        "attributes": PAIRS[i % len(PAIRS)],
    }


ITEMS = [made_up(i) for i in range(120)]


def write_aro(folder: Path, items: object = ITEMS) -> Storage:
    write_json(folder, "aro/visual_genome_relation.json", items)
    write_json(folder, "aro/visual_genome_attribution.json", items)
    write_json(folder, "aro/symmetric_relations.json", ["next to", "with", "unseen"])
    return Storage(str(folder))


def key(item: dict[str, Any]) -> str:
    return f"vg:{item['image_path']}#{item['bbox_x']},{item['bbox_y']},{item['bbox_w']},{item['bbox_h']}"


def official_correct(features: FeatureTable, items: list[dict[str, Any]]) -> np.ndarray:
    """As ARO's `evaluate_scores`: the options are [false, true], and argmax has to be 1."""
    options = [
        [similarity(features, key(i), i["false_caption"]), similarity(features, key(i), i["true_caption"])]
        for i in items
    ]
    return np.argmax(np.array(options), axis=-1) == 1


@pytest.mark.parametrize("seed", range(3))
def test_vg_relation_equals_the_official_rule_and_mean(tmp_path: Path, seed: int) -> None:
    storage = write_aro(tmp_path)
    benchmark = load_vg_relation(storage)
    features = tied_features(benchmark, seed)
    correct = official_correct(features, ITEMS)
    relations = np.array([item["relation_name"] for item in ITEMS])
    symmetric = ("next to", "with")
    scored = benchmark.score(features)
    assert decisions(scored) == {
        ("symmetric" if r in symmetric else "relations", f"{r}/{i}"): bool(correct[i])
        for i, r in enumerate(relations)
    }
    means = [correct[relations == r].mean() for r in np.unique(relations) if r not in symmetric]
    summary = summary_of(benchmark, scored)
    assert value(summary, "vg_relation/relations") == pytest.approx(100 * np.mean(means))
    over_items = correct[~np.isin(relations, symmetric)].mean()
    assert over_items != pytest.approx(np.mean(means), abs=1e-4)
    micro = load_vg_relation(storage, average="micro")
    assert value(summary_of(micro, micro.score(features)), "vg_relation/relations") == pytest.approx(
        100 * over_items
    )
    assert (benchmark.protocol, micro.protocol) == (
        "strict; mean over relations",
        "strict; mean over items",
    )


@pytest.mark.parametrize("seed", range(3))
def test_vg_attribution_equals_the_official_rule_and_mean(tmp_path: Path, seed: int) -> None:
    benchmark = load_vg_attribution(write_aro(tmp_path))
    features = tied_features(benchmark, seed)
    correct = official_correct(features, ITEMS)
    pairs = np.array([f"{item['attributes'][0]}_{item['attributes'][1]}" for item in ITEMS])
    scored = benchmark.score(features)
    counts = Counter(pairs)
    assert counts == {"white_black": 72, "round_old": 36, "old_round": 12}
    assert decisions(scored) == {
        ("rare_pairs" if counts[p] < 25 else "pairs", f"{p}/{i}"): bool(correct[i])
        for i, p in enumerate(pairs)
    }
    means = [correct[pairs == p].mean() for p in np.unique(pairs) if (pairs == p).sum() >= 25]
    assert value(summary_of(benchmark, scored), "vg_attribution/pairs") == pytest.approx(100 * np.mean(means))


def test_vg_attribution_pair_of_25_items_counts_and_of_24_does_not(tmp_path: Path) -> None:
    for count, subset in ((25, "pairs"), (24, "rare_pairs")):
        rare = [{**made_up(i), "attributes": ["a", "b"]} for i in range(count)]
        common = [{**made_up(i), "attributes": ["c", "d", "e"]} for i in range(30)]
        benchmark = load_vg_attribution(write_aro(tmp_path, rare + common))
        assert {i.subset for i in benchmark.shown() if i.item_id.startswith("a_b/")} == {subset}


def test_vg_missing_image_is_counted_and_its_relation_goes_on_without_it(tmp_path: Path) -> None:
    benchmark = load_vg_relation(write_aro(tmp_path))
    lost = {key(item) for item in ITEMS if item["image_path"] == "0.jpg"}
    features = tied_features(benchmark, 0, missing=lost)
    kept = [item for item in ITEMS if item["image_path"] != "0.jpg"]
    scored = benchmark.score(features)
    symmetric = sum(i["relation_name"] in ("next to", "with") for i in ITEMS if key(i) in lost)
    assert dict(scored.missing) == {"relations": 30 - symmetric, "symmetric": symmetric}
    names = np.array([item["relation_name"] for item in kept])
    correct = official_correct(features, kept)
    means = [correct[names == r].mean() for r in ("on", "behind", "holding")]
    assert value(summary_of(benchmark, scored), "vg_relation/relations") == pytest.approx(
        100 * np.mean(means)
    )


def test_aro_members_of_the_printed_columns_give_the_printed_average(real_data: Path) -> None:
    for row in printed_rows(real_data, "aro"):
        parts = [float(row[member.partition("/")[0]]) for member in ARO_MEMBERS]
        assert np.mean(parts) == pytest.approx(float(row["avg"]), abs=0.0501), row["model"]


def test_aro_real_list_of_symmetric_relations_reads(tmp_path: Path, real_data: Path) -> None:
    storage = write_aro(tmp_path)
    symmetric = annotations(real_data).read_json("aro", "symmetric_relations.json")
    assert len(symmetric) == 157
    write_json(tmp_path, "aro/symmetric_relations.json", symmetric)
    names = {item.item_id.partition("/")[0]: item.subset for item in load_vg_relation(storage).shown()}
    assert names == {
        "on": "relations", "behind": "relations", "holding": "relations",
        "next to": "symmetric", "with": "symmetric",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "load", "message"),
    [
        (
            {"bbox_w": "20"},
            load_vg_relation,
            "relation.json, item '0': found bbox_w '20'; expected bbox_w: a",
        ),
        ({"bbox_w": 20.5}, load_vg_relation, "found bbox_w 20.5"),
        ({"relation_name": ""}, load_vg_relation, "found relation_name ''"),
        ({"relation_name": "with"}, load_vg_relation, "relation.json: found no item of relations"),
        ({"attributes": ["a"]}, load_vg_attribution, r"item '0': found attributes \['a'\]; expected two"),
        ({"attributes": ["a", 1]}, load_vg_attribution, "expected two texts"),
        ({}, load_vg_attribution, "attribution.json: found no item of pairs"),
        ({"false_caption": " "}, load_vg_attribution, "found false_caption ' '"),
    ],
)
def test_vg_broken_file_is_refused_by_name(
    tmp_path: Path, change: dict[str, object], load: Any, message: str
) -> None:
    storage = write_aro(tmp_path, [{**made_up(0), **change}])
    with pytest.raises(DataError, match=message):
        load(storage)


def test_vg_relation_broken_or_absent_list_of_symmetric_ones_is_refused(tmp_path: Path) -> None:
    storage = write_aro(tmp_path)
    path = write_json(tmp_path, "aro/symmetric_relations.json", {"with": 1})
    with pytest.raises(DataError, match=r"symmetric_relations.json: found .*expected a JSON list"):
        load_vg_relation(storage)
    path.unlink()
    with pytest.raises(DataError, match=r"symmetric_relations.json: found no such file"):
        load_vg_relation(storage)
