"""NLVR as a choice between images."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from degla_ray.encoding.features import FeatureTable
from degla_ray.errors import DataError
from degla_ray.evaluation.benchmarks.base import Rule, Shown
from degla_ray.evaluation.benchmarks.image_choice import ImageChoice
from degla_ray.evaluation.benchmarks.nlvr import load_nlvr
from degla_ray.storage import Storage
from tests.published_files import decisions, similarity, tied_features, write_json

# presentation -> labels of its examples; the second has no false one, the last no true one
LABELS = {10: "ttff", 11: "tttt", 12: "tf", 13: "tfff", 14: "f"}


def made_up() -> list[dict[str, Any]]:
    return [
        {
            "sentence": "There is a tower" if n in (10, 12) else f"There are {n} boxes",
            "label": {"t": "true", "f": "false"}[label],
            "identifier": f"{n}-{m}",
            "directory": str(n % 2),
            "evals": {},
        }
        for n, labels in LABELS.items()
        for m, label in enumerate(labels)
    ]


def write_nlvr(folder: Path, records: list[dict[str, Any]]) -> Storage:
    write_json(folder, "dev.json", "\n".join(json.dumps(record) for record in records) + "\n")
    return Storage(str(folder))


@pytest.mark.parametrize("seed", range(3))
def test_nlvr_decisions_equal_a_plain_loop_over_all_pairs(tmp_path: Path, seed: int) -> None:
    records = made_up()
    benchmark = load_nlvr(write_nlvr(tmp_path, records))
    features = tied_features(benchmark, seed)

    def score(record: dict[str, Any], k: int) -> float:
        image = f"nlvr:images/{record['directory']}/dev-{record['identifier']}-{k}.png"
        return similarity(features, image, record["sentence"])

    expected = {
        ("pairs", f"{a['identifier']}/{b['identifier']}/{k}"): score(a, k) > score(b, k)
        for a in records
        for b in records
        for k in range(6)
        if a["identifier"].split("-")[0] == b["identifier"].split("-")[0]
        and (a["label"], b["label"]) == ("true", "false")
    }
    assert len(expected) == (4 + 1 + 3) * 6
    assert decisions(benchmark.score(features)) == expected
    assert 0 < sum(expected.values()) < len(expected)
    assert benchmark.chance("pairs") == 1 / 2


def test_nlvr_real_file_pairs_every_sentence_and_every_image_is_there(real_data: Path) -> None:
    folder = real_data / "nlvr" / "dev"
    if not folder.is_dir():
        pytest.skip(f"no NLVR at {folder}")
    benchmark = load_nlvr(Storage(str(folder)))
    items = list(benchmark.shown())
    assert len(items) == 834 * 6
    per_sentence = Counter(item.item_id.partition("-")[0] for item in items)
    assert max(per_sentence.values()) == 4 * 6
    assert all((folder / key.removeprefix("nlvr:")).is_file() for key in benchmark.image_keys())


@pytest.mark.parametrize("rule", Rule)
def test_image_choice_of_unequal_numbers_of_images_follows_the_rule(rule: Rule) -> None:
    items = [
        Shown(
            subset="s",
            item_id=str(i),
            images=tuple(f"p:{(i * 3 + k) % 25}" for k in range(2 + i % 3)),
            texts=(f"t{i}",),
        )
        for i in range(60)
    ]
    benchmark = ImageChoice("b", items, rule)
    features: FeatureTable = tied_features(benchmark, 3, missing=["p:4"])
    expected, ties = {}, 0
    for item in items:
        if "p:4" not in item.images:
            true, *others = (similarity(features, key, item.texts[0]) for key in item.images)
            best = max(others)
            expected["s", item.item_id] = true > best if rule is Rule.STRICT else true >= best
            ties += true == best
    result = benchmark.score(features)
    assert decisions(result) == expected
    assert ties > 3
    assert result.missing["s"] == 60 - len(expected) > 0
    assert benchmark.chance("s") == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3)
    assert benchmark.chance("other") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "yes"}, "dev.json, item '10-1': found label 'yes'; expected true or false"),
        ({"sentence": "Another"}, r"dev.json, items 10-…: found 2 sentences, \['Another', 'There is"),
        ({"identifier": "10-0"}, "item 'line 2': found identifier '10-0' a second time"),
        ({"directory": 3}, "item 'line 2': found directory 3"),
    ],
)
def test_nlvr_broken_record_is_refused_by_name(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    records = made_up()
    records[1] |= change
    with pytest.raises(DataError, match=message):
        load_nlvr(write_nlvr(tmp_path, records))


def test_nlvr_without_any_pair_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no sentence with a true and a false scene"):
        load_nlvr(write_nlvr(tmp_path, [r for r in made_up() if r["label"] == "true"]))
