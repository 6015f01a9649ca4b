"""A trial: an actor that runs trainings with Ray Train, one per seed, and evaluates each.

The actor takes only 0.01 CPU (Ray refuses 0), because trials could otherwise hold every CPU and no worker
would start. The work is done by a thread, so that Tune gets an answer every few seconds and can stop the
trial at any time; the driver then ends its training (console.py). An actor runs one trial after the other,
which saves each the eight seconds of its imports.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeVar

from ray import tune as ray_tune

from degla_ray import tracking
from degla_ray.config import (
    EvaluateConfig,
    ModelConfig,
    TrackingConfig,
    TrainConfig,
    TuneConfig,
    ValidationSettings,
    evaluation_of,
)
from degla_ray.config.scoring import ScoringConfig
from degla_ray.errors import one_line
from degla_ray.evaluation import mlflow_run
from degla_ray.evaluation.run import evaluate
from degla_ray.lease import LeaseHeld
from degla_ray.storage import Storage
from degla_ray.tracking_store import or_told
from degla_ray.training import validation
from degla_ray.training.run_identity import absolute, run_folder, run_identity, with_precision
from degla_ray.training.trainer import train
from degla_ray.tuning.ledger import TRIALS, Run
from degla_ray.tuning.rule import objective_keys
from degla_ray.tuning.space import with_settings

TRIAL_CPUS = 0.01
TURN_S = 2.0
"""Seconds between attempts of a trial that waits for an identical one."""
ANSWER_S = 2.0
"""Seconds between two answers to Tune."""
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, kw_only=True)
class Work:
    """What all trials share.

    Attributes:
        config: of the sweep, with absolute paths.
        sweep: its folder.
        objectives: names of the scores to raise.
        parent: MLflow run of the sweep; None if tracking is off.
    """

    config: TuneConfig
    sweep: Storage
    objectives: tuple[str, ...]
    parent: str | None


class DeglaTrial(ray_tune.Trainable):
    """Runs the trials of a sweep. Its name and its `repr` are what the dashboard and log lines show."""

    def __repr__(self) -> str:
        return f"trials of {self._work.config.train.name}"

    def setup(self, config: dict[str, Any], *, work: Work) -> None:
        self._work = work
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin the next trial, once the one before, which may have been stopped, has ended."""
        self._thread.join()
        self.cleanup()
        self._begin(new_config)
        return True

    def _begin(self, settings: dict[str, Any]) -> None:
        self._settings, self._name = settings, self.trial_name
        self._runs: list[Run] = []
        self._metrics: list[Mapping[str, float]] = []
        self._curve: list[tuple[int, Mapping[str, float]]] = []
        self._log = sys.stdout = io.StringIO()  # many trials at once would drown the sweep's own lines
        self._error: BaseException | None = None
        self._told = False
        self._folder = self._first = ""  # of the present run, of the first run
        self._thread = threading.Thread(target=self._run, name="trial", daemon=True)
        self._thread.start()

    def step(self) -> dict[str, Any]:
        """Return what is known so far, every ANSWER_S and at the end."""
        self._thread.join(ANSWER_S)
        done = not self._thread.is_alive()
        if done and self._error is not None:
            if self._told:
                raise self._error
            self._told, done = True, False  # once as a result: Tune writes an error down too late to read
        self._look_at_validations()
        return self._result(done)

    def cleanup(self) -> None:
        """Keep what the trial printed."""
        with contextlib.suppress(OSError):
            self._work.sweep.write_bytes(self._log.getvalue().encode(), TRIALS, f"{self._name}.log")

    def _run(self) -> None:
        config = self._work.config
        try:
            for number in range(config.seeds):
                drawn = training(config, self._settings)
                self._one(dataclasses.replace(drawn, seed=drawn.seed + number))
        except BaseException as error:
            self._error = error

    def _one(self, drawn: TrainConfig) -> None:
        """Train and evaluate with one seed."""
        work, ready = self._work, with_precision(absolute(drawn))
        self._folder = run_folder(ready, run_identity(ready))
        self._first = self._first or self._folder
        result = _in_turn(lambda: train(drawn, parent_run_id=work.parent))
        name = result.run_folder.rpartition("/")[2]
        model = ModelConfig(name=result.export_student)
        scoring = evaluation(work.config, model, f"{work.sweep.uri}/{name}", name)
        summary = _in_turn(lambda: evaluate(scoring))
        scores = mlflow_run.metrics(summary)
        with or_told(f"the scores of {result.run_folder} are"):
            tracking.log_metrics(work.config.train.tracking, result.mlflow_run_id, scores, result.steps)
        self._metrics.append(summary.metrics())
        run = Run(folder=result.run_folder, evaluation=scoring.output, run_id=result.mlflow_run_id)
        self._runs.append(run)

    def _look_at_validations(self) -> None:
        """Take the validations of the first run that ended meanwhile; the others only confirm it."""
        if not self._first or self._work.config.asha_every_steps is None:
            return
        known = {step for step, _ in self._curve}
        for found in validation.read_all(Storage(self._first), without=known):
            if found.state == "done":
                self._curve.append((found.step, found.metrics))

    def _result(self, done: bool) -> dict[str, Any]:
        result: dict[str, Any]
        scores = mean(self._metrics) if done else (self._curve[-1][1] if self._curve else {})
        result = {"done": done, "scores": scores, "curve": self._curve, "runs": self._runs}
        result["error"] = "" if self._error is None else one_line(self._error)
        result["folder"] = self._folder  # by which the driver ends the training
        keys = objective_keys(self._work.objectives)
        result |= {
            key: scores[name] for key, name in zip(keys, self._work.objectives, strict=True) if name in scores
        }
        if self._curve and not done:
            result["step"] = self._curve[-1][0]
        return result


def _in_turn(stage: Callable[[], ResultT]) -> ResultT:
    """Run a stage once no other driver holds its folder; of two equal trials, one finds the output
    finished."""
    while True:
        try:
            return stage()
        except LeaseHeld:
            time.sleep(TURN_S)


def training(config: TuneConfig, settings: Mapping[str, Any]) -> TrainConfig:
    """Return the config that trains a trial; with ASHA, it is validated on the sweep's test sets."""
    drawn = with_settings(config.train, settings)
    if config.asha_every_steps is None:
        return drawn
    scoring = {field.name: getattr(config, field.name) for field in dataclasses.fields(ScoringConfig)}
    validated = ValidationSettings(**scoring, every_steps=config.asha_every_steps)
    return dataclasses.replace(drawn, validation=validated)


def mean(metrics: list[Mapping[str, float]]) -> dict[str, float]:
    """Return the means of the scores that all runs of a trial have."""
    if not metrics:
        return {}
    shared = [name for name in metrics[0] if all(name in each for each in metrics)]
    return {name: fmean(each[name] for each in metrics) for name in shared}


def evaluation(config: TuneConfig, model: ModelConfig, output: str, label: str) -> EvaluateConfig:
    """Return the config that evaluates a model of the sweep."""
    return evaluation_of(
        config,
        model=model,
        output=output,
        label=label,
        tracking=TrackingConfig(enabled=False),  # a trial's only MLflow run is that of its training
        ray=config.train.ray,
    )
