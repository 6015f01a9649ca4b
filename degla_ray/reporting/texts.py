"""Texts that every form of a report shares: scores, intervals, differences and notes.

Numbers are percent with their 95 % interval. Differences are percentage points against the first model, with
stars if the table's paired test finds them significant. `†` marks a number that lacks some of its items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from degla_ray.evaluation.comparison import Cell, Comparison
from degla_ray.evaluation.summary import Score, has_random_weights
from degla_ray.number_formats import percent, percent_interval, points, signed
from degla_ray.reporting.disagreements import Disagreement

Disagreements = Mapping[int, Sequence[Disagreement]]  # model number -> items, the largest difference first
LEGEND = (
    "Percent with 95 % intervals (bootstrap over images; Wilson's if fewer than 10 images decide). "
    "Differences are percentage points against the first row; * p < 0.05, ** p < 0.01, *** p < 0.001 (paired "
    "bootstrap over images of the printed difference, Holm-corrected for the comparisons of its table). "
    "Gained and lost are significant differences, unchanged are the others. At chance: the interval contains "
    "the accuracy of guessing."
)
DISAGREEMENTS = (
    "Items that exactly one of the two models gets right: from each subset in turn, those whose margins "
    "differ most, half of them improved and half worse where there are enough. A margin is the true "
    "candidate's score minus the best other's, divided by the standard deviation of the model's margins over "
    "the benchmark's items that both models scored, so that neither a model's nor a benchmark's scale "
    "decides. Scores are cosine similarities, or values that the protocol derives from them."
)
PARTIAL = "† some items are left out: images were missing or unreadable (listed in summary.json)."
OTHER_INPUTS = (
    "‡ evaluated on other test sets than the first row: no paired test and no disagreements; compare with "
    "care."
)
RANDOM_WEIGHTS = " (random weights)"


def value_text(score: Score | None) -> str:
    """Return a score as percent, followed by `†` if it is partial; a dash without a value."""
    return percent(None) if score is None else percent(score.value, partial=score.partial)


def interval_text(score: Score | None) -> str:
    """Return the interval of a score, e.g. `81.0–85.6`; an empty string without one."""
    return "" if score is None else percent_interval(score.low, score.high)


def margin_text(margin: float) -> str:
    """Return a margin in standard deviations, e.g. `+1.25`."""
    return signed(margin, digits=2)


def test_text(cell: Cell) -> str:
    """Return the interval and p value of a difference; an empty string if it is not tested."""
    if cell.test is None or cell.corrected_p is None:
        return ""
    test = cell.test
    return (
        f"95 % interval {points(test.low)} to {points(test.high)}, p = {test.p_value:.2g}, corrected "
        f"{cell.corrected_p:.2g}; the models differ on {test.differing:,} of {test.images:,} images"
    )


def footnotes(comparison: Comparison) -> list[str]:
    """Return the legend, and the notes on the marks that occur."""
    notes = [LEGEND]
    if any(s.partial for s in comparison.summaries):
        notes.append(PARTIAL)
    if not all(comparison.same_inputs):
        notes.append(OTHER_INPUTS)
    return notes


def comparisons_text(comparison: Comparison, names: Sequence[str]) -> str:
    """Return the number of tests in a table of these scores as a note; an empty string if there are none."""
    count = comparison.comparisons(names)
    tests = f"{count:,} comparison{'s' if count > 1 else ''} with {comparison.labels[0]}"
    return f"{tests}; stars by Holm-corrected p." if count else ""


def p_text(cell: Cell) -> str:
    """Return the corrected p value of a difference, e.g. `p = 0.012`; an empty string if it is not tested."""
    if cell.corrected_p is None:
        return ""
    return "p < 0.001" if cell.corrected_p < 0.001 else f"p = {cell.corrected_p:.2g}"


def label_suffix(comparison: Comparison, model: int) -> str:
    """Return the suffix of a model's label: random weights, or other test sets than the first model's."""
    random = RANDOM_WEIGHTS if has_random_weights(comparison.summaries[model]) else ""
    return random + ("" if comparison.same_inputs[model] else " ‡")


def label_suffixes(comparison: Comparison) -> list[str]:
    """Return the suffix of each model's label."""
    return [label_suffix(comparison, model) for model in range(len(comparison.labels))]
