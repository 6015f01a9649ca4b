"""Several evaluations set against the first: differences and paired tests. Pure.

The test of a subset pairs the two models' decisions item by item; that of an average pools its members'
items. Items are paired only where both models saw the same test sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from degla_ray.evaluation.benchmarks.aro import ARO, ARO_MEMBERS
from degla_ray.evaluation.benchmarks.zero_shot import PREFIX
from degla_ray.evaluation.statistics import McNemar, mcnemar
from degla_ray.evaluation.summary import ZERO_SHOT, Score, Summary

Decisions = Mapping[str, Mapping[str, bool]]  # `benchmark/subset` -> item id -> correct

TITLES = {
    "composition": "Composition",
    "zero_shot": "Zero-shot",
    "retrieval": "Retrieval R@1",
    "negatives": "Own negatives",
    "sugarcrepe": "SugarCrepe",
    "sugarcrepe_pp_itt": "SugarCrepe++",
    "valse": "VALSE",
    ARO: "ARO",
    ZERO_SHOT: "Zero-shot, 11 sets",
}  # the averages that a report begins with
SCENES_FAMILY, ARO_FAMILY, ZERO_SHOT_FAMILY = "scenes", "ARO", "zero-shot sets"


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
class Group:
    """Scores that are shown in one table: a benchmark's, or those of a family of small benchmarks."""

    title: str
    names: tuple[str, ...]
    """Subsets, then the averages of the benchmark itself."""
    headings: tuple[str, ...]
    """What to call each of them there."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything a report shows."""

    labels: tuple[str, ...]
    """One a model, unique; the first is the base."""
    summaries: tuple[Summary, ...]
    averages: tuple[str, ...]
    """Names of the averages that any model has and that are shown first."""
    groups: tuple[Group, ...]
    """The subsets, and the averages within one benchmark, by benchmark."""
    cells: Mapping[tuple[int, str], Cell]
    """(model number, name) -> result."""
    same_inputs: tuple[bool, ...]
    """Whether what each model and the first were both evaluated on is the same."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of every score, the averages that are shown first before the others."""
        return tuple(dict.fromkeys((*self.averages, *(name for g in self.groups for name in g.names))))

    def cell(self, model: int, name: str) -> Cell:
        return self.cells[model, name]

    def items(self, name: str) -> int:
        """Items that a score is over: the first model's that was evaluated on it."""
        return next(s.n for s in (self.cells[m, name].score for m in range(len(self.labels))) if s)


def title(name: str) -> str:
    """Heading of an average or subset."""
    return TITLES.get(name, name)


def decisions_of(scores: pa.Table) -> dict[str, dict[str, bool]]:
    """Decisions of a SCORES table by subset and item."""
    decisions: dict[str, dict[str, bool]] = {}
    columns = (scores[name].to_pylist() for name in ("benchmark", "subset", "item_id", "correct"))
    for benchmark, subset, item_id, correct in zip(*columns, strict=True):
        decisions.setdefault(f"{benchmark}/{subset}", {})[item_id] = correct
    return decisions


def set_side_by_side(summaries: Sequence[Summary], decisions: Sequence[Decisions]) -> Comparison:
    """Compares evaluations; `decisions[i]` belongs to `summaries[i]`."""
    same = tuple(_same_inputs(summaries[0].inputs, s.inputs) for s in summaries)
    found = {score.name: score for s in summaries for score in s.averages}
    subsets = list(dict.fromkeys(score.name for s in summaries for score in s.subsets))
    groups = _groups(subsets, list(found))
    within = {name for group in groups for name in group.names}
    averages = [name for name in TITLES if name in found]
    averages += [name for name in found if name not in TITLES and name not in within]
    cells = {}
    for model, summary in enumerate(summaries):
        scores = {score.name: score for score in (*summary.averages, *summary.subsets)}
        firsts = {score.name: score for score in (*summaries[0].averages, *summaries[0].subsets)}
        for name in (*averages, *within):
            score, first = scores.get(name), firsts.get(name)
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
        groups=groups,
        cells=cells,
        same_inputs=same,
    )


def _same_inputs(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether what both were evaluated on is the same; what only one was does not count."""
    for key in first.keys() & second.keys():
        a, b = first[key], second[key]
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            if not _same_inputs(a, b):
                return False
        elif a is not None and b is not None and a != b:
            return False
    return True


def _family(benchmark: str) -> str:
    """What a benchmark is shown together with: itself, or a family of benchmarks with few subsets."""
    if benchmark.startswith(PREFIX):
        return ZERO_SHOT_FAMILY
    if benchmark in {member.partition("/")[0] for member in ARO_MEMBERS}:
        return ARO_FAMILY
    return SCENES_FAMILY if benchmark.startswith("scenes") else benchmark


def _groups(subsets: Sequence[str], averages: Sequence[str]) -> tuple[Group, ...]:
    by_family: dict[str, list[str]] = {}
    for name in subsets:
        by_family.setdefault(_family(name.partition("/")[0]), []).append(name)
    owner = {}  # of `sugarcrepe_pp_itt`, sugarcrepe_pp and not sugarcrepe
    for name in averages:
        fitting = [title for title in by_family if name == title or name.startswith(f"{title}_")]
        owner[name] = max(fitting, key=len, default="")
    groups = []
    for title, names in by_family.items():
        own = [name for name in averages if owner[name] == title]
        benchmarks = {name.partition("/")[0] for name in names}
        short = benchmarks == {title}
        headings = [name.partition("/")[2] if short else name.removeprefix(PREFIX) for name in names]
        groups.append(Group(title=title, names=(*names, *own), headings=(*headings, *own)))
    return tuple(groups)


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
