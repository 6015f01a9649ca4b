"""Intervals, the paired test and the summary against independent references."""

from __future__ import annotations

from math import comb

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap

from degla_ray.evaluation.benchmarks.base import Scored, scores_table
from degla_ray.evaluation.benchmarks.suite import SCENES_SUBSETS
from degla_ray.evaluation.statistics import bootstrap_means, interval, mcnemar
from degla_ray.evaluation.summary import Summary, summarise


def test_bootstrap_interval_agrees_with_scipy_resampling() -> None:
    correct = np.random.default_rng(1).random(300) < 0.8
    low, high = interval(bootstrap_means(correct, 20_000, "x"))
    reference = bootstrap(
        (correct.astype(float),), np.mean, n_resamples=20_000, method="percentile", rng=2
    ).confidence_interval
    assert low == pytest.approx(reference.low, abs=0.004)
    assert high == pytest.approx(reference.high, abs=0.004)


def test_bootstrap_same_name_same_draws_other_name_others() -> None:
    correct = np.array([True, False, True])
    assert np.array_equal(bootstrap_means(correct, 50, "a"), bootstrap_means(correct, 50, "a"))
    assert not np.array_equal(bootstrap_means(correct, 50, "a"), bootstrap_means(correct, 50, "b"))
    assert interval(bootstrap_means(np.ones(9, bool), 50, "a")) == (1.0, 1.0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=40))
def test_mcnemar_equals_the_binomial_sum(pairs: list[tuple[bool, bool]]) -> None:
    result = mcnemar([a for a, _ in pairs], [b for _, b in pairs])
    only_a, only_b = sum(a > b for a, b in pairs), sum(b > a for a, b in pairs)
    n, k = only_a + only_b, min(only_a, only_b)
    expected = min(1.0, 2 * sum(comb(n, i) for i in range(k + 1)) / 2**n) if n else 1.0
    assert (result.only_first, result.only_second) == (only_a, only_b)
    assert result.p_value == pytest.approx(expected)


def test_mcnemar_unequal_lengths_raise() -> None:
    with pytest.raises(ValueError, match="not the same items"):
        mcnemar([True], [True, False])


class Fixed:
    """A benchmark of which only name, subsets and chance matter."""

    def __init__(self, name: str, subsets: tuple[str, ...]) -> None:
        self.name, self.subsets, self.protocol, self.averages = name, subsets, "", {}

    def chance(self, subset: str) -> float | None:
        return 0.5


def summary_of(
    accuracy: dict[str, dict[str, tuple[int, int]]], missing: dict[str, int] | None = None
) -> Summary:
    """Summary of benchmark -> subset -> (right, items)."""
    benchmarks, scored = [], []
    for name, subsets in accuracy.items():
        benchmarks.append(Fixed(name, tuple(subsets)))
        tables = [
            scores_table(name, [s] * n, [f"{i}" for i in range(n)], np.ones((n, 2)), np.arange(n) < right)
            for s, (right, n) in subsets.items()
        ]
        scored.append(Scored(scores=pa.concat_tables(tables), missing=missing or {}))
    base = Summary(label="m", model={"name": "m"}, inputs={}, fingerprint="f")
    return summarise(base, benchmarks, scored, {}, bootstrap_samples=200)  # type: ignore[arg-type]


def scenes(right: list[int]) -> dict[str, dict[str, tuple[int, int]]]:
    subsets = {s: (k, 10) for s, k in zip(SCENES_SUBSETS, right, strict=True)}
    return {"scenes": subsets, "scenes_order": {"order": (2, 40)}}


def test_summary_composition_is_the_unweighted_mean_of_eight() -> None:
    summary = summary_of(scenes([1, 2, 3, 4, 5, 6, 7]))
    composition = summary.score("composition")
    assert composition is not None
    assert composition.value == pytest.approx((0.1 + 0.2 + 0.3 + 0.4 + 0.5 + 0.6 + 0.7 + 0.05) / 8)
    assert len(composition.of) == 8
    assert composition.n == 110
    low, high = composition.low, composition.high
    assert low is not None
    assert high is not None
    assert composition.value is not None
    assert low < composition.value < high
    assert high - low < 0.25  # narrower than any one subset's
    assert not summary.partial


def test_summary_empty_member_leaves_the_average_out_instead_of_averaging_the_rest() -> None:
    accuracy = scenes([1, 2, 3, 4, 5, 6, 7])
    accuracy["scenes"]["add_att"] = (0, 0)
    summary = summary_of(accuracy)
    empty, composition = summary.score("scenes/add_att"), summary.score("composition")
    assert empty is not None
    assert (empty.value, empty.n) == (None, 0)
    assert composition is not None
    assert composition.value is None
    assert "composition" not in summary.metrics()
    assert "scenes/add_obj" in summary.metrics()


def test_summary_composition_without_order_test_is_absent_not_a_mean_of_seven() -> None:
    summary = summary_of({"scenes": scenes([5] * 7)["scenes"]})
    composition = summary.score("composition")
    assert composition is not None
    assert composition.value is None


def test_summary_missing_items_make_subset_average_and_whole_partial() -> None:
    summary = summary_of(scenes([5] * 7), missing={"swap_att": 3})
    flagged = {s.name: s.missing for s in (*summary.subsets, *summary.averages) if s.partial}
    assert flagged == {"scenes/swap_att": 3, "composition": 3}
    assert summary.partial


def test_summary_other_averages_name_their_members() -> None:
    recalls = {f"{way}_r{k}": (k, 10) for way in ("i2t", "t2i") for k in (1, 5, 10)}
    summary = summary_of(
        {
            "scenes_zeroshot": {"top1": (9, 10)},
            "scenes_retrieval": recalls,
            "prepared_retrieval": dict.fromkeys(recalls, (0, 10)),
            "negatives": {"reshuffle": (5, 10), "swap_nouns": (10, 10)},
        }
    )
    assert {a.name: a.value for a in summary.averages} == {
        "zero_shot": 0.9,
        "retrieval": 0.1,
        "negatives": 0.75,
    }
    retrieval = summary.score("retrieval")
    assert retrieval is not None
    assert retrieval.of == ("scenes_retrieval/i2t_r1", "scenes_retrieval/t2i_r1")


def test_summary_survives_json() -> None:
    import json

    summary = summary_of(scenes([1, 2, 3, 4, 5, 6, 7]))
    assert Summary.from_json(json.loads(json.dumps(summary.to_json()))) == summary
