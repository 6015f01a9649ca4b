"""The trials of a sweep, one JSON file each, written by the driver; a restart and a warm start read them.

Ray Tune's own snapshot is taken every ten seconds and does not know the trials drawn since; a file of a trial
is there before the trial trains.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from degla_ray.identity import canonical
from degla_ray.stage import absolute_from
from degla_ray.storage import Storage, relative_to

TRIALS = "trials"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run of a trial, and its evaluation.

    Attributes:
        folder: URI of the run's folder.
        evaluation: URI of the evaluation's folder.
        run_id: MLflow run; None if tracking is off.
    """

    folder: str
    evaluation: str
    run_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One point of the search space, and what came of it.

    Attributes:
        number: 1 for the first of the sweep.
        settings: dotted train setting -> drawn value.
        state: `running` also if the sweep ended meanwhile; `stopped`: by ASHA; `failed`: see `error`.
        scores: score -> value, 0 to 1, the mean over the runs; of a stopped trial, its latest validation's.
        curve: validations of the first run, as [step, scores].
        runs: the finished runs, one per seed.
        error: reason of a failure.
        seconds: duration so far, interruptions left out.
    """

    number: int
    settings: Mapping[str, Any]
    state: Literal["running", "finished", "stopped", "failed"] = "running"
    scores: Mapping[str, float] = field(default_factory=dict)
    curve: Sequence[tuple[int, Mapping[str, float]]] = field(default_factory=list)
    runs: Sequence[Run] = field(default_factory=list)
    error: str = ""
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return f"trial {self.number}"

    @property
    def step(self) -> int | None:
        """Step of the latest validation."""
        return self.curve[-1][0] if self.curve else None


class Ledger:
    """The trials of a sweep's folder.

    Args:
        sweep: the folder.
    """

    def __init__(self, sweep: Storage) -> None:
        self._sweep = sweep
        found = [self._read(name) for name in sweep.names(TRIALS) if name.endswith(".json")]
        self.trials = {trial.number: trial for trial in sorted(found, key=lambda t: t.number)}
        self._waiting = {t.number for t in self.unfinished}

    @property
    def unfinished(self) -> list[Trial]:
        """Trials that a restart goes on with: the interrupted and the failed ones."""
        return [t for t in self.trials.values() if t.state in ("running", "failed")]

    @property
    def over(self) -> list[Trial]:
        """Trials that are finished or were stopped by ASHA."""
        return [t for t in self.trials.values() if t.state in ("finished", "stopped")]

    def begin(self, settings: Mapping[str, Any]) -> int:
        """Return the number of a trial that begins: that of an unfinished one with its settings, or a new
        one."""
        drawn = canonical(settings)
        for number in sorted(self._waiting):
            if canonical(self.trials[number].settings) == drawn:
                self._waiting.remove(number)
                return number
        number = max(self.trials, default=0) + 1
        self.write(Trial(number=number, settings=dict(settings)))
        return number

    def write(self, trial: Trial) -> None:
        """Keep a trial's present state."""
        self.trials[trial.number] = trial
        row = dataclasses.asdict(trial)
        for run in row["runs"]:  # so that a moved or copied folder of runs stays valid
            run |= relative_to(self._sweep.uri, run)
        self._sweep.write_json(row, TRIALS, f"{trial.number:04d}.json")

    def _read(self, name: str) -> Trial:
        row = self._sweep.read_json(TRIALS, name)
        runs = [Run(**absolute_from(self._sweep.uri, run)) for run in row["runs"]]
        curve = [(step, scores) for step, scores in row["curve"]]
        return Trial(**row | {"runs": runs, "curve": curve})
