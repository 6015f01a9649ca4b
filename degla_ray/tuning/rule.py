"""The rule by which the best trial is picked, and what can be said of the pick. Pure, apart from reading the
evaluations' answers for the intervals.

The pick is the highest in the first objective among the trials that keep the condition; ties go to the other
objective, then to the score of the condition. So no other trial that keeps it is better in one of them and
not worse in the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from degla_ray.config import Keep, TuneConfig
from degla_ray.errors import DeglaError, SettingError
from degla_ray.evaluation.comparison import SAMPLES, means_of
from degla_ray.evaluation.statistics import LEVEL, Difference, Mean, paired_difference
from degla_ray.evaluation.summary import (
    DECISION,
    SCENES_ZERO_SHOT,
    ZERO_SHOT,
    Summary,
    read_evaluation,
)
from degla_ray.number_formats import percent, points
from degla_ray.schema import SCORES
from degla_ray.tuning.ledger import Trial

KEPT_POINTS = 2.0
"""Percentage points of zero-shot accuracy that the best trial may lose, unless `keep` says otherwise."""
ROUNDING = 1e-9
"""Accuracies are fractions of a few hundred items; rounding must not reject a loss of exactly the limit."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What trials are compared by.

    Attributes:
        objectives: names of one or two scores, the more important first.
        keep: condition on the pick; None if there is none.
        base: scores of the starting model, 0 to 1.
    """

    objectives: tuple[str, ...]
    keep: Keep | None
    base: Mapping[str, float]

    @classmethod
    def of(cls, config: TuneConfig, base: Summary) -> Rule:
        """Return the rule that the settings and the starting model's scores make.

        Raises:
            SettingError: a score that the evaluation does not have.
        """
        scores = base.metrics()
        measured = [name for name in (SCENES_ZERO_SHOT, ZERO_SHOT) if name in scores]
        objectives = tuple(config.objectives) or tuple(dict.fromkeys([base.headline, *measured[:1]]))
        keep = None if config.keep is None else Keep.parse(config.keep)
        if config.keep is None and measured:
            keep = Keep(score=measured[0], points=KEPT_POINTS, below_base=True)
        named = [("objectives", name) for name in objectives]
        for setting, name in [*named, *([("keep", keep.score)] if keep else [])]:
            if name not in scores:
                near = get_close_matches(name, scores) or [score.name for score in base.averages]
                expected = f"a score of this evaluation, such as {', '.join(near or list(scores)[:5])}"
                raise SettingError(setting, name, expected)
        return cls(objectives=objectives, keep=keep, base=scores)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all scores that the rule uses."""
        return tuple(dict.fromkeys((*self.objectives, *([self.keep.score] if self.keep else []))))

    @property
    def least(self) -> float | None:
        """Least value of the kept score, 0 to 1."""
        if self.keep is None:
            return None
        limit = self.keep.points / 100
        return self.base[self.keep.score] - limit if self.keep.below_base else limit

    def keeps(self, scores: Mapping[str, float]) -> bool:
        """Return whether a trial with these scores keeps the condition."""
        return self.keep is None or scores[self.keep.score] >= (self.least or 0) - ROUNDING

    def order(self, scores: Mapping[str, float]) -> tuple[float, ...]:
        """Return a key that is the higher the better: what the rule compares first comes first."""
        values = tuple(scores[name] for name in self.names)
        if self.keeps(scores):
            return (1.0, *values)
        assert self.keep is not None
        return (0.0, scores[self.keep.score], *values)

    def describe(self) -> str:
        said = f"highest {self.objectives[0]}"
        if self.keep is not None:
            limit = f" ({percent(self.least)} %)" if self.keep.below_base else ""
            said += f" among trials that keep {self.keep}{limit}"
        ties = self.names[1:]
        return said + (f"; ties go to the higher {', then '.join(ties)}" if ties else "")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What came of a sweep.

    Attributes:
        trials: all trials, sorted by the rule: finished, stopped, then those without result.
        best: the pick; None if no trial keeps the condition.
        closest: without a pick, the trial that comes closest to the condition.
        lines: what is to be said, for people.
        over_runner_up: the pick's first objective minus the runner-up's; None without a runner-up.
        over_base: the pick's first objective minus the starting model's.
    """

    trials: tuple[Trial, ...]
    best: Trial | None
    closest: Trial | None
    lines: tuple[str, ...]
    over_runner_up: Difference | None = None
    over_base: Difference | None = None


def verdict(rule: Rule, trials: Sequence[Trial], base: str) -> Verdict:
    """Apply the rule.

    Args:
        rule: the rule.
        trials: all trials of the sweep.
        base: URI of the starting model's evaluation.

    Raises:
        DeglaError: no trial has finished.
    """
    ranked = ranking(rule, trials)
    done = [trial for trial in ranked if trial.state == "finished"]
    if not done:
        reasons = sorted({trial.error for trial in trials if trial.error})
        because = f": {'; '.join(reasons)}" if reasons else ""
        raise DeglaError(f"none of {len(trials)} trials finished{because}")
    said = [f"rule: {rule.describe()}"]
    if not rule.keeps(done[0].scores):
        assert rule.keep is not None
        value = percent(done[0].scores[rule.keep.score])
        said.append(
            f"no trial keeps {rule.keep} ({percent(rule.least)} %); closest: {done[0].name}, {value} %"
        )
        return Verdict(trials=tuple(ranked), best=None, closest=done[0], lines=tuple(said))
    best, name = done[0], rule.objectives[0]
    said.append(f"best: {best.name}, {', '.join(f'{n} {percent(best.scores[n])} %' for n in rule.names)}")
    answers = {trial.number: [run.evaluation for run in trial.runs] for trial in done[:2]}
    over_base = difference([base], answers[best.number], name)
    if best.scores[name] <= rule.base[name] + ROUNDING:
        said.append(f"none beats the base in {name} ({percent(rule.base[name])} %)")
    said.append(f"{best.name} minus base: {_said(name, over_base)}")
    over_next = None
    if len(done) > 1 and rule.keeps(done[1].scores):
        over_next = difference(answers[done[1].number], answers[best.number], name)
        said.append(f"{best.name} minus the runner-up, {done[1].name}: {_said(name, over_next)}")
    return Verdict(
        trials=tuple(ranked),
        best=best,
        closest=None,
        lines=tuple(said),
        over_runner_up=over_next,
        over_base=over_base,
    )


def ranking(rule: Rule, trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials sorted by the rule; equal ones by number."""
    states = ("finished", "stopped", "running", "failed")

    def key(trial: Trial) -> tuple[object, ...]:
        scored = all(name in trial.scores for name in rule.names)
        order = tuple(-value for value in rule.order(trial.scores)) if scored else ()
        return (states.index(trial.state), not scored, order, trial.number)

    return sorted(trials, key=key)


def front(rule: Rule, trials: Sequence[Trial]) -> set[int]:
    """Return the numbers of the finished trials that no other one dominates in the rule's scores."""
    points = {t.number: [t.scores[name] for name in rule.names] for t in trials if t.state == "finished"}

    def dominated(own: list[float]) -> bool:
        others = points.values()
        return any(other != own and all(o >= x for o, x in zip(other, own, strict=True)) for other in others)

    return {number for number, own in points.items() if not dominated(own)}


def difference(first: Sequence[str], second: Sequence[str], name: str) -> Difference:
    """Return how much higher a score is in the second evaluations, with its interval over test images.

    Args:
        first, second: URIs of evaluations on the same test sets; several are seeds, whose mean counts.
        name: the score.
    """
    (before, weights), (after, _) = [
        _members(uris, name, max(len(first), len(second))) for uris in (first, second)
    ]
    return paired_difference(before, after, weights, SAMPLES, name)


def _members(evaluations: Sequence[str], name: str, count: int) -> tuple[list[Mean], list[float]]:
    """Return the means that make up the average of a score over `count` seeds, and their weights."""
    members: list[Mean] = []
    weights: list[float] = []
    for uri in evaluations:
        folder, summary = read_evaluation(uri)
        score = summary.score(name)
        assert score is not None  # it is in the trial's scores
        means = means_of(folder.read_dataset("scores", SCORES, DECISION))
        members += [means[subset] for subset in score.of or (name,)]
        weights += [weight / count for weight in score.weights or (1.0,)]
    repeats = count // len(evaluations)
    return members * repeats, weights * repeats


def _said(name: str, found: Difference) -> str:
    chance = "may be chance" if found.low <= 0 <= found.high else "more than chance"
    interval = f"{points(found.low)} to {points(found.high)}"
    return f"{name} {points(found.value)} points, {LEVEL:.0%} interval {interval}: {chance}"


def objective_keys(objectives: Sequence[str]) -> list[str]:
    """Return the names under which Tune and Optuna know the objectives."""
    return [f"objective_{number}" for number in range(1, len(objectives) + 1)]
