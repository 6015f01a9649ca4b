"""Several evaluations set against the first: differences and paired tests. Pure.

The test of a subset pairs the two models' decisions item by item; that of an average pools its members'
items. Items are paired only where both models saw the same test sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from degla_ray.evaluation.statistics import McNemar, mcnemar
from degla_ray.evaluation.summary import Score, Summary

Decisions = Mapping[str, Mapping[str, bool]]  # `benchmark/subset` -> item id -> correct

TITLES = {
    "composition": "Composition",
    "zero_shot": "Zero-shot",
    "retrieval": "Retrieval R@1",
    "negatives": "Own negatives",
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One model's result in one column."""

    score: Score | None
    """None where the model was not evaluated on it."""
    delta: float | None
    """Difference to the first model, in 0..1; none for the first, and where one of them has no value."""
    test: McNemar | None
    """Paired test against the first model; none for the first, and on other test sets."""

    @property
    def stars(self) -> str:
        """`*` p < 0.05, `**` p < 0.01, `***` p < 0.001; uncorrected for the number of tests."""
        if self.test is None:
            return ""
        return "*" * sum(self.test.p_value < level for level in (0.05, 0.01, 0.001))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything a report shows."""

    labels: tuple[str, ...]
    """One a model, unique; the first is the base."""
    summaries: tuple[Summary, ...]
    averages: tuple[str, ...]
    """Names of the averages that any model has."""
    subsets: tuple[str, ...]
    """Names of the subsets that any model has."""
    cells: Mapping[tuple[int, str], Cell]
    """(model number, name) -> result."""
    same_inputs: tuple[bool, ...]
    """Whether each model was evaluated on the first one's test sets."""

    def cell(self, model: int, name: str) -> Cell:
        return self.cells[model, name]


def decisions_of(scores: pa.Table) -> dict[str, dict[str, bool]]:
    """Decisions of a SCORES table by subset and item."""
    decisions: dict[str, dict[str, bool]] = {}
    columns = (scores[name].to_pylist() for name in ("benchmark", "subset", "item_id", "correct"))
    for benchmark, subset, item_id, correct in zip(*columns, strict=True):
        decisions.setdefault(f"{benchmark}/{subset}", {})[item_id] = correct
    return decisions


def set_side_by_side(summaries: Sequence[Summary], decisions: Sequence[Decisions]) -> Comparison:
    """Compares evaluations; `decisions[i]` belongs to `summaries[i]`."""
    same = tuple(s.inputs == summaries[0].inputs for s in summaries)
    averages = [name for name in TITLES if any(name in {a.name for a in s.averages} for s in summaries)]
    subsets = list(dict.fromkeys(score.name for s in summaries for score in s.subsets))
    cells = {}
    for model, summary in enumerate(summaries):
        for name in (*averages, *subsets):
            score, first = summary.score(name), summaries[0].score(name)
            delta = None
            if model and score and first and score.value is not None and first.value is not None:
                delta = score.value - first.value
            test = None
            if delta is not None and score is not None and same[model]:
                test = _paired(decisions[0], decisions[model], score.of or (name,))
            cells[model, name] = Cell(score=score, delta=delta, test=test)
    return Comparison(
        labels=_unique([s.label for s in summaries]),
        summaries=tuple(summaries),
        averages=tuple(averages),
        subsets=tuple(subsets),
        cells=cells,
        same_inputs=same,
    )


def _paired(first: Decisions, second: Decisions, names: Sequence[str]) -> McNemar:
    pairs = [
        (first[name][item], right)
        for name in names
        for item, right in second.get(name, {}).items()
        if item in first.get(name, {})
    ]
    return mcnemar([a for a, _ in pairs], [b for _, b in pairs])


def _unique(labels: Sequence[str]) -> tuple[str, ...]:
    """Labels, the second of a name as `name (2)`."""
    seen: dict[str, int] = {}
    unique = []
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
        unique.append(label if seen[label] == 1 else f"{label} ({seen[label]})")
    return tuple(unique)
