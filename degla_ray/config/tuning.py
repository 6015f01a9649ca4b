"""Settings of job `tune`: the search space, what is raised and what is kept, the search and its budget."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from degla_ray.config.scoring import ScoringConfig
from degla_ray.config.shared import require
from degla_ray.config.training import TrainConfig

_KEEP = re.compile(r"(?P<score>\S+)\s*>=\s*(?P<base>base)?\s*(?P<minus>-)?\s*(?P<points>\d+(\.\d+)?)?")


@dataclass(frozen=True, kw_only=True)
class Keep:
    """A condition on a score: `zero_shot >= base - 2` or `zero_shot >= 90`, in percentage points."""

    score: str
    """Name of a subset or an average, as `evaluate` prints it."""
    points: float
    """Least value, or with `below_base` the largest loss."""
    below_base: bool
    """Whether `points` counts down from the score of the starting model."""

    @classmethod
    def parse(cls, text: str) -> Keep:
        """Return the condition that a setting describes.

        Raises:
            SettingError: another form.
        """
        found = _KEEP.fullmatch(text.strip())
        well_formed = found is not None and (
            (found["minus"] is None) == (found["points"] is None)
            if found["base"]
            else found["points"] is not None and found["minus"] is None
        )
        require(well_formed, "keep", text, "SCORE >= base - POINTS, or SCORE >= POINTS, in percentage points")
        assert found is not None
        return cls(
            score=found["score"], points=float(found["points"] or 0), below_base=found["base"] is not None
        )

    def __str__(self) -> str:
        if not self.below_base:
            return f"{self.score} >= {self.points:g}"
        return f"{self.score} >= base" + (f" - {self.points:g}" if self.points else "")


@dataclass(frozen=True, kw_only=True)
class TuneConfig(ScoringConfig):
    """Job `tune`: a Ray Tune sweep whose trials are Ray Train runs."""

    train: TrainConfig
    """Settings shared by all trials; the sweep itself uses `name`, `output`, `tracking` and `ray` too."""
    space: str = "tune_spaces/loss_weights.py"
    """Python file that defines `space()`: Ray Tune domains by dotted train setting, and the train settings
    that they go with. The file is code and is run, unlike every other setting's file: use one that you have
    read."""
    objectives: list[str] = field(default_factory=list)
    """One or two scores to raise, averages or subsets as `evaluate` prints them, the more important first;
    []: the headline score, and zero-shot accuracy where it is measured."""
    keep: str | None = None
    """Condition on the best trial, in percentage points: `SCORE >= base - 2` (`base`: the starting model's
    score) or `SCORE >= 90`; null: `>= base - 2` for zero-shot accuracy where it is measured."""
    search: Literal["tpe", "nsga2", "random", "grid"] = "tpe"
    """Optuna's sampler `tpe` or `nsga2` (evolution, for hundreds of trials), `random` draws, or `grid`: every
    combination of a space without continuous domains."""
    num_trials: int = 4
    """Number of trials of the whole sweep, restarts included; without effect on `grid`."""
    max_hours: float | None = None
    """Hours after which a call of the job stops its trials; the same command goes on with them."""
    max_gpu_hours: float | None = None
    """GPU hours of the whole sweep after which no trial goes on."""
    max_concurrent_trials: int = 1
    """Trials that run at the same time."""
    seeds: int = 1
    """Runs per trial, with the seeds `train.seed`, `train.seed` + 1, …; a trial's scores are their means."""
    asha_every_steps: int | None = None
    """Steps between validations of a trial's first run, at which ASHA stops it unless its first objective is
    in the better half of those seen; null: every trial runs to its end."""
    warm_start: list[str] = field(default_factory=list)
    """Folders of earlier sweeps with the same objectives, whose trials inform the search."""
    seed: int = 0
    """Seed of the draws from the space."""
    num_actors: int = 1
    """Ray Data actors per trial that encode the test sets."""

    def __post_init__(self) -> None:
        self.require_scoring()
        for setting in ("num_trials", "max_concurrent_trials", "seeds"):
            require(getattr(self, setting) >= 1, setting, getattr(self, setting), "at least 1")
        for setting in ("max_hours", "max_gpu_hours", "asha_every_steps"):
            value = getattr(self, setting)
            require(value is None or value > 0, setting, value, "more than 0, or null")
        distinct = len(set(self.objectives)) == len(self.objectives)
        require(distinct and len(self.objectives) <= 2, "objectives", self.objectives, "one or two scores")
        if self.keep is not None:
            Keep.parse(self.keep)
        require(
            isinstance(self.train.num_workers, int),
            "train.num_workers",
            self.train.num_workers_given,
            "one number: trials share the cluster by what each of them reserves",
        )
        require(
            self.max_gpu_hours is None or self.train.compute.use_gpu,
            "max_gpu_hours",
            self.max_gpu_hours,
            "null, or train.compute.use_gpu true",
        )
        require(
            self.asha_every_steps is None or self.train.validation.every_steps is None,
            "train.validation.every_steps",
            self.train.validation.every_steps,
            "null: asha_every_steps validates the trials, on the sweep's test sets",
        )
