"""Compare several evaluations with the first one: differences and their significance tests. Pure functions.

Each test concerns exactly the printed difference, also that of a mean of means. It resamples images,
and an image has the same weight for both models. Only models that saw the same test sets are tested.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from degla_ray.evaluation.benchmarks.aro import ARO, ARO_MEMBERS
from degla_ray.evaluation.benchmarks.zero_shot import PREFIX
from degla_ray.evaluation.statistics import Difference, Mean, holm, paired_difference
from degla_ray.evaluation.summary import ZERO_SHOT, Score, Summary, mean_of_rows

Means = Mapping[str, Mean]  # `benchmark/subset` -> its mean
SAMPLES = 10_000  # bootstrap resamples per test

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
}  # averages shown at the top of a report
SCENES_FAMILY, ARO_FAMILY, ZERO_SHOT_FAMILY = "scenes", "ARO", "zero-shot sets"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One model's result in one column."""

    score: Score | None
    """None if the model was not evaluated on it."""
    delta: float | None
    """Difference from the first model, as a fraction; None for the first model or if either value is
    missing."""
    test: Difference | None
    """Paired test against the first model; None for the first model or if the test sets differ."""
    corrected_p: float | None = None
    """The test's p value, corrected for the number of tests in its table; the larger value if two tables show
    it."""

    @property
    def stars(self) -> str:
        """Significance by corrected p: `*` for p < 0.05, `**` for p < 0.01, `***` for p < 0.001."""
        if self.corrected_p is None:
            return ""
        return "*" * sum(self.corrected_p < level for level in (0.05, 0.01, 0.001))

    @property
    def trend(self) -> str:
        """`up` or `down` for a significant difference, otherwise an empty string."""
        return ("up" if (self.delta or 0) > 0 else "down") if self.stars else ""


@dataclass(frozen=True, kw_only=True)
class ScoreGroup:
    """Scores shown in one table: those of one benchmark or of a family of small benchmarks."""

    title: str
    names: tuple[str, ...]
    """Subsets first, then the benchmark's own averages."""
    headings: tuple[str, ...]
    """Row heading of each name."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything that a report shows."""

    labels: tuple[str, ...]
    """One unique label per model; the first model is the base."""
    summaries: tuple[Summary, ...]
    averages: tuple[str, ...]
    """Averages shown at the top of the report, if any model has them."""
    groups: tuple[ScoreGroup, ...]
    """Subsets and averages within one benchmark, by benchmark."""
    cells: Mapping[tuple[int, str], Cell]
    """(model number, name) -> result."""
    same_inputs: tuple[bool, ...]
    """Per model: whether the inputs that it shares with the first model are identical."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all scores, with the averages at the top of the report first."""
        return tuple(dict.fromkeys((*self.averages, *(name for g in self.groups for name in g.names))))

    def cell(self, model: int, name: str) -> Cell:
        return self.cells[model, name]

    def comparisons(self, names: Sequence[str]) -> int:
        """Return the number of tests among the given scores."""
        return sum(cell.test is not None for (_, name), cell in self.cells.items() if name in names)

    def items(self, name: str) -> int:
        """Return the number of items behind a score, taken from the first model that was evaluated on it."""
        return next(s.n for s in (self.cells[m, name].score for m in range(len(self.labels))) if s)


def title(name: str) -> str:
    """Return the heading of an average or subset."""
    return TITLES.get(name, name)


def means_of(scores: pa.Table) -> Means:
    """Return the mean of each subset of a SCORES table; the columns DECISION are enough."""
    means = {}
    for benchmark in pc.unique(scores["benchmark"]).to_pylist():
        own = scores.filter(pc.equal(scores["benchmark"], benchmark))
        for subset in pc.unique(own["subset"]).to_pylist():
            means[f"{benchmark}/{subset}"] = mean_of_rows(own.filter(pc.equal(own["subset"], subset)))
    return means


def set_side_by_side(summaries: Sequence[Summary], means: Sequence[Means]) -> Comparison:
    """Compare evaluations with the first of them; `means[i]` belongs to `summaries[i]`."""
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
            delta = _delta(first, score) if model else None
            test = None
            if score is not None and delta is not None and same[model]:
                before, after = (
                    [given[s] for s in score.of or (name,)] for given in (means[0], means[model])
                )
                test = paired_difference(before, after, score.weights or (1.0,), SAMPLES, name)
            cells[model, name] = Cell(score=score, delta=delta, test=test)
    for names in (averages, *(group.names for group in groups)):
        _correct(cells, names)
    return Comparison(
        labels=_unique([s.label for s in summaries]),
        summaries=tuple(summaries),
        averages=tuple(averages),
        groups=groups,
        cells=cells,
        same_inputs=same,
    )


def _same_inputs(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Return whether the inputs that both evaluations have are identical; inputs of only one are ignored."""
    for key in first.keys() & second.keys():
        a, b = first[key], second[key]
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            if not _same_inputs(a, b):
                return False
        elif a is not None and b is not None and a != b:
            return False
    return True


def _family(benchmark: str) -> str:
    """Return the title of the table that shows a benchmark: its own name, or its family's if it has few
    subsets."""
    if benchmark.startswith(PREFIX):
        return ZERO_SHOT_FAMILY
    if benchmark in {member.partition("/")[0] for member in ARO_MEMBERS}:
        return ARO_FAMILY
    return SCENES_FAMILY if benchmark.startswith("scenes") else benchmark


def _groups(subsets: Sequence[str], averages: Sequence[str]) -> tuple[ScoreGroup, ...]:
    by_family: dict[str, list[str]] = {}
    for name in subsets:
        by_family.setdefault(_family(name.partition("/")[0]), []).append(name)
    owner = {}  # the longest prefix wins: `sugarcrepe_pp_itt` belongs to sugarcrepe_pp, not to sugarcrepe
    for name in averages:
        fitting = [title for title in by_family if name == title or name.startswith(f"{title}_")]
        owner[name] = max(fitting, key=len, default="")
    groups = []
    for title, names in by_family.items():
        own = [name for name in averages if owner[name] == title]
        benchmarks = {name.partition("/")[0] for name in names}
        short = benchmarks == {title}
        headings = [name.partition("/")[2] if short else name.removeprefix(PREFIX) for name in names]
        groups.append(ScoreGroup(title=title, names=(*names, *own), headings=(*headings, *own)))
    return tuple(groups)


def _delta(first: Score | None, second: Score | None) -> float | None:
    """Return second minus first if both have a value over the same subsets, otherwise None."""
    if first is None or second is None or first.of != second.of:
        return None
    return None if first.value is None or second.value is None else second.value - first.value


def _correct(cells: dict[tuple[int, str], Cell], names: Sequence[str]) -> None:
    """Correct one table's p values for the number of tests; a cell in two tables keeps the larger value."""
    tests = {key: cell.test for key, cell in cells.items() if key[1] in names and cell.test is not None}
    for key, p in zip(tests, holm([test.p_value for test in tests.values()]), strict=True):
        cells[key] = dataclasses.replace(cells[key], corrected_p=max(p, cells[key].corrected_p or 0.0))


def _unique(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the labels made unique: the second occurrence of a name becomes `name (2)`."""
    seen: dict[str, int] = {}
    unique = []
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
        unique.append(label if seen[label] == 1 else f"{label} ({seen[label]})")
    return tuple(unique)
