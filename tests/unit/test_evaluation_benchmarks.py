"""Decisions of every benchmark family against plain re-implementations; ties made to happen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from degla_ray.encoding.features import FeatureTable
from degla_ray.errors import DataError
from degla_ray.evaluation.benchmarks import suite
from degla_ray.evaluation.benchmarks.base import Rule, decide
from degla_ray.evaluation.benchmarks.choice import Choice, ChoiceProtocol
from degla_ray.evaluation.benchmarks.classification import Classification, ClassPrompts
from degla_ray.evaluation.benchmarks.negatives import own_negatives
from degla_ray.evaluation.benchmarks.retrieval import Retrieval
from degla_ray.schema import CAPTIONS, CHOICE_ITEMS, CLASS_ITEMS, NEGATIVES, SCORES
from tests.evaluation_suite import CLASSES, TEMPLATES, choice_rows, write_suite


def unit_rows(rng: np.random.Generator, rows: int, width: int = 16) -> np.ndarray:
    features = rng.normal(size=(rows, width)).astype(np.float32)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def random_features(keys: set[str], texts: set[str], seed: int = 0) -> FeatureTable:
    rng = np.random.default_rng(seed)
    return FeatureTable(
        img_ND=unit_rows(rng, len(keys)),
        txt_MD=unit_rows(rng, len(texts)),
        image_row={key: i for i, key in enumerate(sorted(keys))},
        text_row={text: i for i, text in enumerate(sorted(texts))},
    )


def plain_score(features: FeatureTable, key: str, text: str) -> float:
    img = features.img_ND[features.image_row[key]]
    txt = features.txt_MD[features.text_row[text]]
    return float(sum(float(a) * float(b) for a, b in zip(img, txt, strict=True)))


@pytest.mark.parametrize(
    ("scores", "strict", "first_argmax"),
    [
        ([0.5, 0.4], True, True),
        ([0.4, 0.5], False, False),
        ([0.5, 0.5], False, True),
        ([0.5, 0.1, 0.5, 0.2], False, True),
        ([0.5, 0.1, 0.6, 0.5], False, False),
        ([float("nan"), 0.1], False, False),
        ([0.5, float("nan")], False, False),
    ],
)
def test_decide_ties_and_nan_follow_the_rule(scores: list[float], strict: bool, first_argmax: bool) -> None:
    row = np.array([scores], dtype=np.float32)
    assert decide(row, Rule.STRICT).tolist() == [strict]
    assert decide(row, Rule.FIRST_ARGMAX).tolist() == [first_argmax]


@pytest.mark.parametrize("seed", range(3))
def test_choice_decisions_equal_a_plain_loop_and_the_stored_scores(tmp_path: Path, seed: int) -> None:
    for benchmark in suite.load_suite(str(write_suite(tmp_path / "suite", items=30)))[:2]:
        assert isinstance(benchmark, Choice)
        features = random_features(benchmark.image_keys(), benchmark.texts(), seed)
        result = benchmark.score(features)
        assert result.scores.schema.equals(SCORES)
        rows = {(r["subset"], r["item_id"]): r for r in result.scores.to_pylist()}
        items = [r for r in choice_rows(30) if r["benchmark"] == benchmark.name]
        assert len(rows) == len(items)
        ties = 0
        for item in items:
            texts: list[str] = item["texts"]
            row = rows[str(item["subset"]), str(item["item_id"])]
            expected = [plain_score(features, f"suite:{item['image_id']}", text) for text in texts]
            np.testing.assert_allclose(row["candidate_scores"], expected, atol=1e-6)
            rivals = [s for s, text in zip(expected[1:], texts[1:], strict=True) if text != texts[0]]
            tied = texts[0] in texts[1:]  # the same text must tie exactly, wherever it stands
            ties += tied
            best = all(expected[0] > s for s in rivals)
            assert row["correct"] == (best and (benchmark.rule is Rule.FIRST_ARGMAX or not tied))
            stored = np.array([row["candidate_scores"]], dtype=np.float32)
            assert row["correct"] == decide(stored, benchmark.rule)[0]
        assert ties > 5


def test_choice_items_with_unequal_numbers_of_foils_are_scored_each_on_its_own() -> None:
    rows = [
        {"benchmark": "b", "subset": "s", "item_id": str(i), "image_id": f"i{i % 3}", "texts": texts}
        for i, texts in enumerate([[f"t{k}" for k in range(2 + i)] for i in range(7)])
    ]
    benchmark = Choice(
        "b", pa.Table.from_pylist(rows, schema=CHOICE_ITEMS), ChoiceProtocol(rule=Rule.STRICT), "suite"
    )
    features = random_features(benchmark.image_keys(), benchmark.texts())
    scored = benchmark.score(features).scores.to_pylist()
    assert [len(r["candidate_scores"]) for r in scored] == [2 + i for i in range(7)]
    for i, row in enumerate(scored):
        expected = [plain_score(features, f"suite:i{i % 3}", f"t{k}") for k in range(2 + i)]
        assert row["correct"] == (expected[0] > max(expected[1:]))


def test_choice_missing_image_is_counted_by_subset_and_not_scored(tmp_path: Path) -> None:
    benchmark = suite.load_suite(str(write_suite(tmp_path / "suite", items=24)))[0]
    features = random_features(benchmark.image_keys() - {"suite:img-3"}, benchmark.texts())
    result = benchmark.score(features)
    assert dict(result.missing) == dict.fromkeys(benchmark.subsets, 2)
    assert len(result.scores) == 7 * 22
    assert not any(r["item_id"].endswith("-3") for r in result.scores.to_pylist())


def test_choice_without_items_has_its_subsets_and_no_rows() -> None:
    empty = pa.Table.from_pylist([], schema=CHOICE_ITEMS)
    benchmark = Choice("b", empty, ChoiceProtocol(rule=Rule.STRICT, subsets=("x", "y")), "suite")
    result = benchmark.score(random_features(set(), set()))
    assert benchmark.subsets == ("x", "y")
    assert len(result.scores) == 0
    assert result.scores.schema.equals(SCORES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts": ["only the true one"]}, "at least one foil"),
        ({"texts": ["a", ""]}, "at least one foil"),
        ({"texts": ["a", None]}, "at least one foil"),
        ({"texts": None}, "at least one foil"),
        ({"item_id": None}, "an empty subset, item_id or image_id"),
        ({"image_id": ""}, "an empty subset, item_id or image_id"),
        ({"item_id": "0"}, "the same item twice"),
    ],
)
def test_choice_broken_item_is_refused_by_name(change: dict[str, object], message: str) -> None:
    row = {"benchmark": "b", "subset": "s", "image_id": "i", "texts": ["a", "b"]}
    rows = [row | {"item_id": "0"}, row | {"item_id": "1"} | change]
    with pytest.raises(DataError, match=message) as caught:
        Choice(
            "b",
            pa.Table.from_pylist(rows, schema=CHOICE_ITEMS),
            ChoiceProtocol(rule=Rule.STRICT),
            "suite",
            where="FILE",
        )
    assert "FILE, b/s" in str(caught.value)


def test_classification_averages_normalised_templates_then_takes_the_first_maximum() -> None:
    rows = [{"benchmark": "z", "item_id": str(i), "image_id": f"i{i}", "label": i % 12} for i in range(200)]
    table = pa.Table.from_pylist(rows, schema=CLASS_ITEMS)
    benchmark = Classification("z", table, ClassPrompts(classes=CLASSES, templates=TEMPLATES), "suite")
    assert (benchmark.subsets, benchmark.protocol) == (("top1",), "standard")
    features = random_features(benchmark.image_keys(), benchmark.texts())
    weights = []
    for name in CLASSES:
        prompts = [features.txt_MD[features.text_row[t.format(name)]] for t in TEMPLATES]
        mean = sum(p.astype(np.float64) for p in prompts) / len(prompts)
        weights.append(mean / np.sqrt((mean**2).sum()))
    for i, row in enumerate(benchmark.score(features).scores.to_pylist()):
        image = features.img_ND[features.image_row[f"suite:i{i}"]].astype(np.float64)
        expected = [float((image * w).sum()) for w in weights]
        np.testing.assert_allclose(row["candidate_scores"], expected, atol=1e-6)
        assert row["correct"] == (expected.index(max(expected)) == i % 12)


def test_classification_two_classes_that_tie_the_first_wins() -> None:
    rows = [{"benchmark": "z", "item_id": str(i), "image_id": "i", "label": i} for i in range(2)]
    benchmark = Classification(
        "z",
        pa.Table.from_pylist(rows, schema=CLASS_ITEMS),
        ClassPrompts(classes=["a", "b"], templates=["{}"]),
        "s",
    )
    same = unit_rows(np.random.default_rng(0), 1)
    features = FeatureTable(
        img_ND=same, txt_MD=np.repeat(same, 2, axis=0), image_row={"s:i": 0}, text_row={"a": 0, "b": 1}
    )
    assert benchmark.score(features).scores["correct"].to_pylist() == [True, False]


@pytest.mark.parametrize(
    ("classes", "templates", "label", "message"),
    [
        (["a"], ["{}"], 0, "at least two"),
        (["a", "a"], ["{}"], 0, "each once"),
        (["a", "b"], [], 0, "at least one"),
        (["a", "b"], ["an image"], 0, "each with {}"),
        (["a", "b"], ["{}"], 2, "label 2 of item"),
        (["a", "b"], ["{}"], -1, "label -1 of item"),
        (["a", "b"], ["{}"], None, "label None of item"),
    ],
)
def test_classification_broken_description_is_refused(
    classes: list[str], templates: list[str], label: int | None, message: str
) -> None:
    rows = [{"benchmark": "z", "item_id": "1", "image_id": "i", "label": label}]
    with pytest.raises(DataError, match=message):
        Classification(
            "z",
            pa.Table.from_pylist(rows, schema=CLASS_ITEMS),
            ClassPrompts(classes=classes, templates=templates),
            "suite",
        )


def captions_table(pairs: list[tuple[str, str]], split: str = "val") -> pa.Table:
    rows = [
        {"sample_id": f"s{i}", "image_id": image, "caption": text, "split": split}
        for i, (image, text) in enumerate(pairs)
    ]
    return pa.Table.from_pylist(rows, schema=CAPTIONS)


@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_retrieval_recalls_equal_a_plain_loop_for_any_chunk(
    monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr("degla_ray.evaluation.benchmarks.retrieval.CHUNK", chunk)
    # some captions are shared by several images, and one image has a caption twice
    pairs = [(f"i{i}", f"t{(i * 7 + k * 3) % 50}") for i in range(30) for k in range(3)] + [("i0", "t0")]
    benchmark = Retrieval("r", captions_table(pairs), "p")
    features = random_features(benchmark.image_keys(), benchmark.texts(), seed=chunk)
    rows = benchmark.score(features).scores.to_pylist()
    images, texts = sorted({i for i, _ in pairs}), sorted({t for _, t in pairs})
    score = {(i, t): plain_score(features, f"p:{i}", t) for i in images for t in texts}
    true = set(pairs)
    expected: dict[tuple[str, str], bool] = {}
    for k in (1, 5, 10):
        for i in images:
            best = max(score[i, t] for t in texts if (i, t) in true)
            wrong = sum(score[i, t] >= best for t in texts if (i, t) not in true)
            expected[f"i2t_r{k}", i] = wrong < k
        for t in texts:
            best = max(score[i, t] for i in images if (i, t) in true)
            wrong = sum(score[i, t] >= best for i in images if (i, t) not in true)
            expected[f"t2i_r{k}", t] = wrong < k
    assert {(r["subset"], r["item_id"]): r["correct"] for r in rows} == expected
    assert 0 < sum(expected.values()) < len(expected)
    for row in rows:
        true_score, *rival = row["candidate_scores"]
        assert row["correct"] == (not rival or true_score > rival[0])


def test_retrieval_tie_with_another_image_counts_against() -> None:
    benchmark = Retrieval("r", captions_table([("a", "x"), ("b", "y")]), "p")
    one = unit_rows(np.random.default_rng(0), 1)
    both = np.repeat(one, 2, axis=0)  # both images and both captions look the same
    features = FeatureTable(
        img_ND=both, txt_MD=both, image_row={"p:a": 0, "p:b": 1}, text_row={"x": 0, "y": 1}
    )
    rows = benchmark.score(features).scores.to_pylist()
    assert {r["subset"]: r["correct"] for r in rows if r["item_id"] in "ax"} == {
        "i2t_r1": False, "i2t_r5": True, "i2t_r10": True, "t2i_r1": False, "t2i_r5": True, "t2i_r10": True,
    }  # fmt: skip


def test_retrieval_missing_image_leaves_both_directions_and_is_counted() -> None:
    pairs = [("a", "x"), ("b", "y"), ("b", "shared"), ("c", "shared")]
    benchmark = Retrieval("r", captions_table(pairs), "p")
    result = benchmark.score(random_features({"p:a", "p:c"}, benchmark.texts()))
    assert result.missing == dict.fromkeys(benchmark.subsets, 1)  # image b; caption y (shared has c)
    assert {r["item_id"] for r in result.scores.to_pylist()} == {"a", "c", "x", "shared"}


def test_own_negatives_pairs_each_caption_with_each_of_its_negatives() -> None:
    captions = captions_table([("i0", "a red dog"), ("i1", "two cats")])
    made = [
        ("s0", "swap_nouns", "n0"),
        ("s0", "swap_nouns", "n1"),
        ("s1", "reshuffle", "n2"),
        ("other", "reshuffle", "n3"),
    ]
    rows = [{"sample_id": s, "kind": k, "negative": n} for s, k, n in made]
    benchmark = own_negatives(captions, pa.Table.from_pylist(rows, schema=NEGATIVES), "prepared", "DIR")
    assert benchmark.subsets == ("reshuffle", "swap_nouns")
    assert benchmark.texts() == {"a red dog", "two cats", "n0", "n1", "n2"}
    scored = benchmark.score(random_features(benchmark.image_keys(), benchmark.texts())).scores.to_pylist()
    assert [r["subset"] for r in scored] == ["swap_nouns", "swap_nouns", "reshuffle"]
    assert len({r["item_id"] for r in scored}) == 3
    with pytest.raises(DataError, match="no negatives of this split"):
        own_negatives(captions.slice(0, 0), pa.Table.from_pylist(rows, schema=NEGATIVES), "prepared", "DIR")
