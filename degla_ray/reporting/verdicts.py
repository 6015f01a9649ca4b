"""What a comparison found, in words: which scores a model gained, lost or kept, and which are at chance.

A score is gained or lost only if its paired test finds the difference significant, so that words, stars and
colours say the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from degla_ray.evaluation.comparison import Cell, Comparison, title
from degla_ray.evaluation.summary import Score
from degla_ray.number_formats import percent, points


class Verdict(StrEnum):
    """Outcome of one score against the first model."""

    GAINED = "gained"
    LOST = "lost"
    UNCHANGED = "unchanged"  # the difference is not significant
    UNTESTED = "not tested"  # other test sets


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one model gained and lost.

    Attributes:
        model: number of the model.
        against: label of the first model.
        averages: verdict -> the averages of that verdict in words, in the order of Verdict.
        subsets: verdict -> number of subsets.
        at_chance: subsets whose interval contains chance, with their values.
    """

    model: int
    label: str
    against: str
    averages: dict[Verdict, list[str]]
    subsets: dict[Verdict, int]
    at_chance: list[str]

    @property
    def headline(self) -> str:
        """The averages in one sentence; an empty string without any."""
        parts = [f"{verdict} {_listed(words)}" for verdict, words in self.averages.items() if words]
        return "; ".join(parts)

    @property
    def counts(self) -> str:
        """The subsets in one sentence; an empty string without any that can be compared."""
        total = sum(self.subsets.values())
        parts = [f"{count:,} {verdict}" for verdict, count in self.subsets.items() if count]
        return f"Of {total:,} subsets {', '.join(parts)}." if total else ""

    @property
    def chance(self) -> str:
        """The subsets at chance in one sentence; an empty string without any."""
        return f"At chance: {_listed(self.at_chance)}." if self.at_chance else ""

    @property
    def sentence(self) -> str:
        """All of it on one line."""
        headline = f"{self.label} against {self.against}: {self.headline}." if self.headline else ""
        return " ".join(part for part in (headline, self.counts, self.chance) if part)


def findings(comparison: Comparison) -> list[Finding]:
    """Return a finding for each model but the first that shares a score with it."""
    subsets = [name for name in comparison.names if "/" in name]
    found = []
    for model, label in enumerate(comparison.labels[1:], start=1):
        averages: dict[Verdict, list[str]] = {verdict: [] for verdict in Verdict}
        for name in comparison.averages:
            cell = comparison.cell(model, name)
            verdict = verdict_of(cell)
            if verdict is not None and cell.score is not None:
                said = f"{points(cell.delta)} points to {percent(cell.score.value)} %"
                averages[verdict].append(f"{title(name)} ({said})")
        cells = [comparison.cell(model, name) for name in subsets]
        verdicts = [verdict_of(cell) for cell in cells]
        finding = Finding(
            model=model,
            label=label,
            against=comparison.labels[0],
            averages=averages,
            subsets={verdict: verdicts.count(verdict) for verdict in Verdict},
            at_chance=[
                f"{name} ({percent(cell.score.value)} %)"
                for name, cell in zip(subsets, cells, strict=True)
                if cell.score is not None and is_at_chance(comparison, cell.score)
            ],
        )
        if finding.sentence:
            found.append(finding)
    return found


def verdict_of(cell: Cell) -> Verdict | None:
    """Return the verdict on one result; None for the first model and for a missing value."""
    if cell.delta is None:
        return None
    if cell.test is None:
        return Verdict.UNTESTED
    return {"up": Verdict.GAINED, "down": Verdict.LOST}.get(cell.trend, Verdict.UNCHANGED)


def is_at_chance(comparison: Comparison, score: Score) -> bool:
    """Return whether the interval of a score contains the accuracy of guessing."""
    chance = chance_of(comparison, score.name)
    if chance is None or score.low is None or score.high is None:
        return False
    return score.low <= chance <= score.high


def chance_of(comparison: Comparison, name: str) -> float | None:
    """Return the accuracy of guessing, 0 to 1: of an average, the weighted mean of its subsets'; None where
    it is not defined."""
    scores = {s.name: s for summary in comparison.summaries for s in (*summary.averages, *summary.subsets)}
    score = scores[name]
    if not score.of:
        return score.chance
    parts = [scores[subset].chance if subset in scores else None for subset in score.of]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return sum(weight * part for weight, part in zip(score.weights, known, strict=True))


def made_of(comparison: Comparison, name: str) -> str:
    """Return what an average is the mean of, e.g. `mean of a/b and a/c`; an empty string for a subset."""
    score = next((s for s in (m.score(name) for m in comparison.summaries) if s is not None), None)
    if score is None or not score.of:
        return ""
    if len(score.of) == 1:
        return score.of[0]
    if max(score.weights) - min(score.weights) < 1e-9:
        return f"mean of {_listed(score.of)}"
    weighted = [f"{s} ({percent(w)} %)" for s, w in zip(score.of, score.weights, strict=True)]
    return f"weighted mean of {_listed(weighted)}"


def pair_that_matters(comparison: Comparison) -> int:
    """Return the number of the model whose first average differs most from the first model's, significant
    differences before others; 1 if none has one."""
    models = range(1, len(comparison.labels))

    def weight(model: int) -> tuple[bool, float]:
        cell = next((comparison.cell(model, name) for name in comparison.averages[:1]), None)
        return (False, 0.0) if cell is None else (bool(cell.stars), abs(cell.delta or 0.0))

    return max(models, key=weight, default=1)


def _listed(words: Sequence[str]) -> str:
    """Return words as a list, e.g. `a, b and c`."""
    return " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)
