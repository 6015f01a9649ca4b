"""Intervals, the paired test and the summary against independent references."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, bootstrap

from degla_ray.evaluation.benchmarks.base import Scored, ScoredItems, scores_table
from degla_ray.evaluation.benchmarks.suite import SCENES_SUBSETS
from degla_ray.evaluation.statistics import Mean, holm, interval, mean_of, paired_difference
from degla_ray.evaluation.summary import Summary, summarise


def each_its_own(n: int) -> list[str]:
    return [f"image {i}" for i in range(n)]


def of(right: int, n: int) -> Mean:
    """A mean over n images of one item each."""
    return mean_of(np.arange(n) < right, each_its_own(n))


def resampled(
    correct: np.ndarray, images: np.ndarray, groups: np.ndarray, samples: int
) -> np.ndarray:  # the plain way: images drawn with replacement, and the statistic made anew
    rng, names = np.random.default_rng(3), np.unique(images)
    rows = {name: np.flatnonzero(images == name) for name in names}
    found = []
    for _ in range(samples):
        drawn = np.concatenate([rows[name] for name in rng.choice(names, len(names))])
        found.append(
            [correct[k, drawn][groups[drawn] == g].mean() for k in (0, 1) for g in np.unique(groups)]
        )
    return np.array(found).reshape(samples, 2, -1).mean(axis=2)


def test_interval_agrees_with_scipy_where_each_image_has_one_item() -> None:
    correct = np.random.default_rng(1).random(300) < 0.8
    low, high = interval([mean_of(correct, each_its_own(300))], [1.0], 20_000, "x")
    reference = bootstrap(
        (correct.astype(float),), np.mean, n_resamples=20_000, method="percentile", rng=2
    ).confidence_interval
    assert low == pytest.approx(reference.low, abs=0.004)
    assert high == pytest.approx(reference.high, abs=0.004)


@pytest.mark.parametrize("number_of_groups", [1, 6])
def test_interval_and_difference_agree_with_drawing_images_and_scoring_anew(number_of_groups: int) -> None:
    rng = np.random.default_rng(5)
    images = rng.integers(0, 150, 700)  # 4.7 items an image, whose answers hang together
    easy = rng.random(150) < 0.6
    correct = np.stack([(easy[images] | (rng.random(700) < skill)) for skill in (0.3, 0.5)])
    groups = np.array([f"g{min(i % 11, number_of_groups - 1)}" for i in range(700)])
    first, second = (mean_of(c, [f"i{i}" for i in images], list(groups)) for c in correct)
    reference = resampled(correct, images, groups, 2_000)
    for mean, drawn in zip((first, second), reference.T, strict=True):
        assert interval([mean], [1.0], 10_000, "x") == pytest.approx(
            tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.008
        )
    found = paired_difference([first], [second], [1.0], 10_000, "x")
    drawn = reference[:, 1] - reference[:, 0]
    assert found.value == pytest.approx(second.value - first.value)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.005)
    p_value = 2 * min((drawn <= 0).mean(), (drawn >= 0).mean())
    assert found.p_value == pytest.approx(p_value, abs=0.04)  # the reference has 2,000 draws


def test_items_said_five_times_of_an_image_count_once() -> None:
    correct = np.random.default_rng(2).random((2, 400)) < [[0.6], [0.7]]
    once = [mean_of(c, each_its_own(400)) for c in correct]
    often = [mean_of(np.repeat(c, 5), np.repeat(each_its_own(400), 5).tolist()) for c in correct]
    as_if_apart = mean_of(np.repeat(correct[0], 5), each_its_own(2000))
    assert interval([often[0]], [1.0], 5_000, "x") == pytest.approx(interval([once[0]], [1.0], 5_000, "x"))
    tests = [paired_difference([a], [b], [1.0], 5_000, "x") for a, b in (once, often)]
    assert tests[0].p_value == tests[1].p_value
    low, high = interval([as_if_apart], [1.0], 5_000, "x")
    assert high - low < 0.6 * np.ptp(interval([once[0]], [1.0], 5_000, "x"))


def test_difference_of_an_average_is_tested_as_printed_and_not_pooled() -> None:
    """The small subset gains 8.0 points, the large one loses 2.0: the mean gains, the pooled items lose."""
    small, large = each_its_own(100), [f"other {i}" for i in range(2000)]
    first = [mean_of(np.arange(100) < 50, small), mean_of(np.arange(2000) < 1000, large)]
    second = [mean_of(np.arange(100) < 58, small), mean_of(np.arange(2000) < 960, large)]
    found = paired_difference(first, second, [0.5, 0.5], 10_000, "x")
    assert found.value == pytest.approx(0.03)
    assert binomtest(8, 48).pvalue < 0.001  # what a McNemar test of the pooled items would have starred
    assert 0 < found.low < 0.03 < found.high
    assert 0.001 < found.p_value < 0.05
    back = paired_difference(second, first, [0.5, 0.5], 10_000, "x")
    assert back.value == pytest.approx(-0.03)
    assert back.high < 0


@pytest.mark.parametrize(
    ("won", "lost", "n"),
    [(1, 0, 50), (3, 0, 500), (5, 0, 500), (8, 0, 500), (9, 1, 500), (12, 3, 500), (30, 15, 500), (7, 7, 90)],
)
def test_difference_of_few_items_is_never_far_surer_than_the_exact_test(won: int, lost: int, n: int) -> None:
    first, second = np.zeros((2, n), bool)
    second[:won], first[won : won + lost] = True, True
    means = [mean_of(c, each_its_own(n)) for c in (first, second)]
    exact = binomtest(won, won + lost).pvalue
    found = paired_difference(means[:1], means[1:], [1.0], 10_000, "x")
    assert exact / 2 < found.p_value <= 1.05 * exact
    assert (found.low <= 0 <= found.high) == (found.p_value >= 0.05)
    assert found.differing == won + lost


def test_difference_between_models_that_answer_alike_is_none_and_has_an_interval() -> None:
    found = paired_difference([of(30, 40)], [of(30, 40)], [1.0], 1_000, "x")
    assert (found.value, found.p_value) == (0, 1)
    assert -0.2 < found.low < 0 < found.high < 0.2


def test_difference_far_beyond_every_resample_keeps_the_order_of_its_p_values() -> None:
    p_values = [
        paired_difference([of(0, 900)], [of(k, 900)], [1.0], 1_000, "x").p_value for k in (30, 60, 600)
    ]
    assert 1e-4 > p_values[0] > p_values[1] > p_values[2]


ALL, NONE, HALF = of(500, 500), of(0, 500), of(250, 500)
SHARED = mean_of(np.ones(500, bool), [f"image {i // 5}" for i in range(500)])


@pytest.mark.parametrize(
    ("members", "low", "high"),
    [
        ([ALL], 0.9924, 1),
        ([NONE], 0, 0.0076),
        ([SHARED], 0.963, 1),  # a hundred images
        ([of(499, 500)], 0.9888, 0.9996),
        ([of(1, 1)], 0.2065, 1),
        ([of(0, 1)], 0, 0.7935),
        ([of(1, 2)], 0.0945, 0.9055),
        ([mean_of([True] * 9, ["one image"] * 9)], 0.2065, 1),
        ([ALL, ALL], 0.9946, 1),
        ([ALL, NONE], 0.4962, 0.5038),
        ([ALL, HALF], 0.7277, 0.7722),
        ([mean_of([True] * 100 + [False] * 100, each_its_own(200), ["a"] * 100 + ["b"] * 100)], 0.431, 0.569),
    ],
)
def test_interval_at_the_edges_has_width_holds_the_value_and_stays_inside(
    members: list[Mean], low: float, high: float
) -> None:
    weights = [1 / len(members)] * len(members)
    value = float(np.mean([m.value for m in members]))
    found = interval(members, weights, 5_000, "x")
    assert found == pytest.approx((low, high), abs=0.003)
    assert 0 <= found[0] <= value <= found[1] <= 1
    assert found[0] < found[1]


def test_interval_of_more_right_answers_never_reaches_lower() -> None:
    lows = [interval([of(500 - wrong, 500)], [1.0], 5_000, "x")[0] for wrong in range(30, -1, -1)]
    assert [*lows] == sorted(lows) or max(np.diff(lows) * -1) < 0.002  # resampling's grain


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(0, 3)), min_size=1, max_size=60))
def test_interval_of_any_items_has_width_holds_the_value_and_stays_inside(
    items: list[tuple[bool, int, int]],
) -> None:
    correct, images, groups = zip(*items, strict=True)
    for grouped in (None, [str(g) for g in groups]):
        mean = mean_of(correct, [str(i) for i in images], grouped)
        low, high = interval([mean], [1.0], 200, "x")
        assert 0 <= low <= mean.value <= high <= 1
        assert low < high


def test_bootstrap_same_name_same_draws_other_name_others() -> None:
    mean = of(70, 100)
    assert interval([mean], [1.0], 50, "a") == interval([mean], [1.0], 50, "a")
    assert interval([mean], [1.0], 50, "a") != interval([mean], [1.0], 50, "b")


def test_holm_is_the_step_down_rule_in_the_order_given() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_difference_of_25_010_items_takes_well_under_a_second() -> None:
    rng = np.random.default_rng(0)
    images = [f"coco:{i // 5}" for i in range(25_010)]
    first = rng.random(25_010) < 0.6
    second = first ^ (rng.random(25_010) < 0.1)
    started = time.process_time()
    paired_difference([mean_of(first, images)], [mean_of(second, images)], [1.0], 10_000, "x")
    assert time.process_time() - started < 1


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
            scores_table(
                name,
                ScoredItems(
                    subsets=[s] * n,
                    ids=[f"{i}" for i in range(n)],
                    images=[f"{s}{i}" for i in range(n)],
                ),
                np.ones((n, 2)),
                np.arange(n) < right,
            )
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
