"""Evaluation during training: every n-th checkpoint is scored by tasks beside the workers.

Worker 0 requests it (`request`, and `ray.train.report(validation=True)`). Ray Train's controller then calls
`validate` as a task, one checkpoint at a time in step order, and keeps a checkpoint until its validation has
ended. `validate` only waits; the evaluation is a task of its own. In Ray 2.60 the whole run ends if
`validate` ends other than by an exception, e.g. by an out-of-memory kill. The price is one more idle process.

    <run>/evaluations/step-000000120.json    waiting, done (with metrics) or failed (with the reason)
    <run>/evaluations/step-000000120/        a folder as written by `jobs/evaluate.py`; `compare` reads it too
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import ray
from ray.exceptions import GetTimeoutError

from degla_ray.config import (
    EvaluateConfig,
    ModelConfig,
    TrackingConfig,
    TrainConfig,
    ValidationSettings,
    evaluation_of,
)
from degla_ray.errors import SettingError, one_line
from degla_ray.resources import Need
from degla_ray.storage import Storage

if TYPE_CHECKING:
    import ray.train

    from degla_ray.model.loaded import LoadedModel

EVALUATIONS = "evaluations"
TASK_CPUS = 0.5
"""Logical CPUs of the evaluation task, which mostly waits for its encoding actors."""
_FILE = re.compile(r"step-(\d{9})\.json")


@dataclass(frozen=True, kw_only=True)
class Validation:
    """The state of one validation.

    Attributes:
        step: training steps at the checkpoint.
        metrics: accuracy (0 to 1) by name of an average or benchmark/subset.
        headline: name of the metric to show; see `Summary.headline`.
        seconds: duration, without waiting in the queue.
        error: reason for a failure.
        logged: whether the metrics are in MLflow.
    """

    step: int
    state: Literal["waiting", "done", "failed"]
    metrics: dict[str, float] = field(default_factory=dict)
    headline: str = ""
    seconds: float = 0.0
    error: str = ""
    logged: bool = False

    def describe(self) -> str:
        return f"validation of step {self.step}: {self.headline} {self.metrics[self.headline]:.1%}"


def needs(settings: ValidationSettings) -> list[Need]:
    """Return what a validation reserves, in addition to workers and decoders; [] without validations."""
    if settings.every_steps is None:
        return []
    compute = settings.compute
    actor = {"CPU": compute.cpus} | ({"GPU": 1.0} if compute.use_gpu else {})
    expected = "a cluster with a GPU, or false"
    return [
        Need(
            setting="validation.num_actors",
            value=settings.num_actors,
            unit=[{"CPU": TASK_CPUS}, *([actor] * settings.num_actors)],
            detail=f" ({TASK_CPUS} and validation.compute for each actor)",
            without_gpu=SettingError("validation.compute.use_gpu", True, expected),
        )
    ]


def gpus(settings: ValidationSettings) -> int:
    """Return the GPUs that a validation uses at most."""
    return settings.num_actors if settings.every_steps and settings.compute.use_gpu else 0


def check(config: TrainConfig) -> None:
    """Check the settings before training, because otherwise every validation would fail later.

    Raises:
        SettingError: a setting is wrong, e.g. a benchmark that does not exist.
    """
    if config.validation.every_steps is None:
        return
    from degla_ray.evaluation.run import check_tests  # torch: seconds

    try:
        check_tests(_evaluate_config(config, "", 0))
    except SettingError as error:
        raise SettingError(f"validation.{error.setting}", error.found, error.expected) from error


def request(run: Storage, step: int) -> None:
    """Record that the checkpoint of `step` waits for validation, unless it is already waiting or done."""
    known = _read(run, step)
    if known is None or known.state == "failed":
        _write(run, Validation(step=step, state="waiting"))


def read_all(run: Storage, without: set[int] | None = None) -> Iterator[Validation]:
    """Yield the validations of a run in step order, except those of the steps in `without`."""
    for name in run.names(EVALUATIONS):
        found = _FILE.fullmatch(name)
        if found and int(found[1]) not in (without or set()):
            validation = _read(run, int(found[1]))
            assert validation is not None
            yield validation


def set_logged(run: Storage, validation: Validation) -> None:
    """Record that the metrics are in MLflow."""
    _write(run, dataclasses.replace(validation, logged=True))


def tidy(run: Storage, steps: set[int]) -> list[int]:
    """Delete waiting validations whose checkpoint no longer exists; return their steps.

    A kill within two seconds of a save leaves a checkpoint that Ray Train does not know. Only the latest such
    checkpoint is reported again; the others are deleted.

    Args:
        run: the run's folder.
        steps: steps of the existing checkpoints.
    """
    lost = [v.step for v in read_all(run) if v.state == "waiting" and v.step not in steps]
    for step in lost:
        run.delete_file(EVALUATIONS, f"{_name(step)}.json")
    return lost


def validate(checkpoint: ray.train.Checkpoint, *, config: TrainConfig, run_folder: str) -> dict[str, float]:
    """Evaluate a checkpoint in a task and record the result; a failure is recorded, not raised.

    Called by Ray Train.

    Args:
        checkpoint: checkpoint in the run's folder.
        config: the run's config.
        run_folder: URI of the run's folder.

    Returns:
        The metrics for Ray Train's record; {} after a failure.
    """
    run, name = Storage(run_folder), Path(checkpoint.path).name
    step = int(name.rpartition("_")[2])
    known = _read(run, step)
    if known is not None and known.state == "done":  # but the run was killed before Ray Train recorded it
        return _for_ray(known)
    started = time.monotonic()
    # SPREAD also leaves the placement group of a sweep's trial, which has no CPUs for this task.
    options = {"num_cpus": TASK_CPUS, "max_retries": 0, "scheduling_strategy": "SPREAD"}
    task = ray.remote(_evaluate).options(**options).remote(config, run_folder, name, step)
    limit = config.validation.timeout_minutes
    result = Validation(step=step, state="failed")
    try:
        result = ray.get(task, timeout=60 * limit)
    except GetTimeoutError:
        ray.cancel(task, force=True)  # also ends its actors
        result = dataclasses.replace(
            result, error=f"not finished after {limit:g} minutes (validation.timeout_minutes)"
        )
    except Exception as error:  # no error of a validation may end training
        result = dataclasses.replace(result, error=one_line(error))
    result = dataclasses.replace(result, seconds=time.monotonic() - started)
    _write(run, result)
    if result.state == "failed":
        run.delete_folder(EVALUATIONS, _name(step))
    return _for_ray(result)


def _evaluate(config: TrainConfig, run_folder: str, checkpoint_name: str, step: int) -> Validation:
    from degla_ray.evaluation.run import evaluate

    loaded = _load(config, run_folder, checkpoint_name)
    with contextlib.redirect_stdout(io.StringIO()):  # hide its tables: the console shows the training
        summary = evaluate(_evaluate_config(config, run_folder, step), loaded)
    return Validation(step=step, state="done", metrics=summary.metrics(), headline=summary.headline)


def _load(config: TrainConfig, run_folder: str, checkpoint_name: str) -> LoadedModel:
    """Return the student of a checkpoint, as the run would export it."""
    from degla_ray.model.adapt import adapt, merged
    from degla_ray.model.build import build
    from degla_ray.training.checkpoint import load_student

    loaded = build(config.model)
    adapt(loaded.model, config.adapt)
    load_student(Storage(run_folder), checkpoint_name, loaded.model)
    return dataclasses.replace(loaded, model=merged(loaded.model), source=f"{run_folder}/{checkpoint_name}")


def _evaluate_config(config: TrainConfig, run_folder: str, step: int) -> EvaluateConfig:
    settings, label = config.validation, f"{config.name} step {step}"
    return evaluation_of(
        settings,
        model=ModelConfig(name=label),  # only a label: the weights come from the checkpoint
        output=f"{run_folder}/{EVALUATIONS}/{_name(step)}",
        label=label,
        stall_minutes=settings.timeout_minutes,
        tracking=TrackingConfig(enabled=False),  # the metrics go to the training run
        ray=config.ray,
    )


def _for_ray(validation: Validation) -> dict[str, float]:
    return {f"validation/{name}": value for name, value in validation.metrics.items()}


def _name(step: int) -> str:
    return f"step-{step:09d}"


def _read(run: Storage, step: int) -> Validation | None:
    name = f"{_name(step)}.json"
    return Validation(**run.read_json(EVALUATIONS, name)) if run.exists(EVALUATIONS, name) else None


def _write(run: Storage, validation: Validation) -> None:
    run.write_json(dataclasses.asdict(validation), EVALUATIONS, f"{_name(validation.step)}.json")
