"""Several evaluations set against the first: differences and their tests. Pure.

The test is of the difference that is printed, a mean of means where that is one, and resamples images, which
have the same weight for both models. There is one only where both models saw the same test sets.
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
from degla_ray.evaluation.statistics import Difference, Mean, difference, holm
from degla_ray.evaluation.summary import ZERO_SHOT, Score, Summary, mean_of_rows

Means = Mapping[str, Mean]  # of `benchmark/subset`
SAMPLES = 10_000  # resamples behind a test

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
    test: Difference | None
    """Paired test against the first model; none for the first, and on other test sets."""
    corrected_p: float | None = None
    """The test's p, corrected for the comparisons of its table; the larger one where two tables show it."""

    @property
    def stars(self) -> str:
        """`*` p < 0.05, `**` p < 0.01, `***` p < 0.001, corrected."""
        if self.corrected_p is None:
            return ""
        return "*" * sum(self.corrected_p < level for level in (0.05, 0.01, 0.001))

    @property
    def trend(self) -> str:
        """`up` or `down` for a difference that has a star, else nothing."""
        return ("up" if (self.delta or 0) > 0 else "down") if self.stars else ""


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

    def comparisons(self, names: Sequence[str]) -> int:
        """Tests in a table of those scores."""
        return sum(cell.test is not None for (_, name), cell in self.cells.items() if name in names)

    def items(self, name: str) -> int:
        """Items that a score is over: the first model's that was evaluated on it."""
        return next(s.n for s in (self.cells[m, name].score for m in range(len(self.labels))) if s)


def title(name: str) -> str:
    """Heading of an average or subset."""
    return TITLES.get(name, name)


def means_of(scores: pa.Table) -> Means:
    """Accuracy of each subset of a SCORES table, of which the columns DECISION are enough."""
    means = {}
    for benchmark in pc.unique(scores["benchmark"]).to_pylist():
        own = scores.filter(pc.equal(scores["benchmark"], benchmark))
        for subset in pc.unique(own["subset"]).to_pylist():
            means[f"{benchmark}/{subset}"] = mean_of_rows(own.filter(pc.equal(own["subset"], subset)))
    return means


def set_side_by_side(summaries: Sequence[Summary], means: Sequence[Means]) -> Comparison:
    """Compares evaluations; `means[i]` belongs to `summaries[i]`."""
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
                test = difference(before, after, score.weights or (1.0,), SAMPLES, name)
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


def _delta(first: Score | None, second: Score | None) -> float | None:
    """Their difference, if both are of the same subsets and have a value."""
    if first is None or second is None or first.of != second.of:
        return None
    return None if first.value is None or second.value is None else second.value - first.value


def _correct(cells: dict[tuple[int, str], Cell], names: Sequence[str]) -> None:
    """Corrects the p of one table's tests for their number; a cell of two tables keeps the larger one."""
    tests = {key: cell.test for key, cell in cells.items() if key[1] in names and cell.test is not None}
    for key, p in zip(tests, holm([test.p_value for test in tests.values()]), strict=True):
        cells[key] = dataclasses.replace(cells[key], corrected_p=max(p, cells[key].corrected_p or 0.0))


def _unique(labels: Sequence[str]) -> tuple[str, ...]:
    """Labels, the second of a name as `name (2)`."""
    seen: dict[str, int] = {}
    unique = []
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
        unique.append(label if seen[label] == 1 else f"{label} ({seen[label]})")
    return tuple(unique)
