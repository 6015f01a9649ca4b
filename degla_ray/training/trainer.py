"""The driver of a training run: identity, run folder, and Ray Train.

A run's folder is `<output>/<name>-<fingerprint>`. The fingerprint covers exactly what determines the result
(data, model weights, objective, schedule, seed). The number of workers, the interval of checkpoints and the
MLflow store may therefore change when a run resumes. `train` with the same settings resumes a run however
it ended, and returns at once if it is finished.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray
from ray.train import (
    CheckpointConfig,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    UserCallback,
    ValidationConfig,
)
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

import degla_ray
from degla_ray import ray_setup, tracking
from degla_ray.config import ModelConfig, TrainConfig
from degla_ray.errors import DeglaError, SettingError
from degla_ray.identity import canonical, fingerprint
from degla_ray.lease import Lease
from degla_ray.loader import tokens
from degla_ray.loader.feed import DECODER_CPUS, end_decoders, start_decoders
from degla_ray.loader.samples import load_samples
from degla_ray.model.source import check_model, find_model, find_weights, in_any_folder, starts_random
from degla_ray.stage import read_complete
from degla_ray.storage import Storage
from degla_ray.training import checkpoint, validation
from degla_ray.training.job import ERROR, EXPORT_STUDENT, EXPORT_TEACHER, PROGRESS, TRACE, Job, schedule
from degla_ray.training.progress import Monitor

CONFIG, RESULT = "config.json", "result.json"
RESULT_VERSION = 1
"""Part of a run's identity. Increase it when the same settings would give another result: when a loss, the
order of batches, augmentation, the drawing of negatives or the optimizer's arithmetic changes."""
MAX_FAILURES = 2
"""Times that Ray Train restarts lost workers before it gives up."""
_LIBRARIES = ("torch", "open_clip_torch", "ray", "numpy", "pillow", "pyarrow")


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """The outputs of a finished run.

    Attributes:
        run_folder: URI of the run's folder.
        export_student: URI of a folder that `degla_ray.model.load` opens.
        export_teacher: the same for the EMA teacher; None if there is no EMA teacher.
        steps: steps done.
        mlflow_run_id: None if tracking is off.
        trace_path: URI of the loss trace, JSON lines.
    """

    run_folder: str
    export_student: str
    export_teacher: str | None
    steps: int
    mlflow_run_id: str | None
    trace_path: str


def train(
    config: TrainConfig, *, callbacks: Sequence[UserCallback] = (), parent_run_id: str | None = None
) -> TrainResult:
    """Train or resume a run and return its result; a finished run with the same settings is not repeated.

    Args:
        config: the run's config.
        callbacks: Ray Train callbacks, e.g. the one that reports to Ray Tune.
        parent_run_id: MLflow run of the sweep that this run belongs to.

    Raises:
        SettingError: a setting cannot work, the run exists although `resume` is `never`, there are too few
            CPUs, or the loss is not finite.
        DataError: an input cannot be used.
        LeaseHeld: another driver trains in this folder.
    """
    check_model(config.model)
    config = absolute(config)
    identity = run_identity(config)
    mark = fingerprint(identity)
    name = f"{config.name}-{mark}"
    run = Storage(f"{config.output.rstrip('/')}/{name}")
    if config.resume == "never" and run.exists(CONFIG):
        raise SettingError("resume", "never", f"auto, or another name: {run.uri} exists")
    if not run.exists(RESULT):
        with Lease(run):
            if not run.exists(RESULT):  # the previous owner may just have finished it
                return _train(config, identity, run, callbacks, parent_run_id)
    print(f"{name}: finished already")
    return read_result(run)


def _train(
    config: TrainConfig,
    identity: dict[str, Any],
    run: Storage,
    callbacks: Sequence[UserCallback],
    parent_run_id: str | None,
) -> TrainResult:
    mark = fingerprint(identity)
    name = f"{config.name}-{mark}"
    validation.check(config)
    samples = load_samples(config.data, with_negatives=config.objective.num_negatives > 0)
    order, total_steps = schedule(config, len(samples))
    ray_setup.start(config.ray)
    require_resources(config)
    versions = {"degla_ray": degla_ray.__version__} | {lib: version(lib) for lib in _LIBRARIES}
    run.write_json({"fingerprint": mark, "identity": identity, "config": canonical(config)}, CONFIG)
    done = checkpoint.tidy(run)
    for left in (ERROR, PROGRESS):
        run.delete_file(left)
    for step in validation.tidy(run, set(checkpoint.complete(run))):
        print(f"{name}: the validation of step {step} is lost: its checkpoint is gone")
    going_on = f"; continues after step {done}" if done else ""
    print(f"{name}: {total_steps} steps of {config.global_batch_size}, {len(samples)} captions{going_on}")
    start = "random" if starts_random(config.model) else config.model.pretrained or config.model.name
    if start == "random":
        print(f"{name}: starts from random weights")
    decoders = start_decoders(config.num_workers, config.data.decode_tasks)
    with contextlib.ExitStack() as stack:
        stack.callback(end_decoders, decoders)
        samples, texts = tokens.settle(run, samples, config.model, decoders)
        print(f"{name}: {texts.describe()}")
        run_id = stack.enter_context(
            tracking.running(
                config.tracking,
                name,
                mark,
                run.uri,
                params={**canonical(config), "total_steps": total_steps},
                tags={"stage": "train", "degla.weights": start},
                parent_run_id=parent_run_id,
            )
        )
        tracking.log_metrics(
            config.tracking, run_id, {f"tokens/{k}": v for k, v in dataclasses.asdict(texts).items()}
        )
        if fingerprint_of_negatives := identity["data"].get("negatives"):
            tracking.log_dataset(
                config.tracking,
                run_id,
                "negatives",
                fingerprint_of_negatives,
                str(config.data.negatives),
                "training",
            )
        job = Job(
            config=config,
            fingerprint=mark,
            run_folder=run.uri,
            samples=ray.put(samples),
            decoders=decoders,
            order=order,
            total_steps=total_steps,
            versions=versions,
        )
        with Monitor(run, name, total_steps, config.tracking, run_id, done or 0):
            _fit(config, name, job, callbacks, run)
        # Only the small files: weights stay in the run's folder, which a tag of the MLflow run names.
        tracking.log_files(config.tracking, run_id, run, (CONFIG, TRACE))
    run.write_json(
        {
            "export_student": EXPORT_STUDENT,
            "export_teacher": EXPORT_TEACHER if run.exists(EXPORT_TEACHER) else None,
            "steps": total_steps,
            "mlflow_run_id": run_id,
            "trace_path": TRACE,
        },
        RESULT,
    )
    return read_result(run)


def read_result(run: Storage) -> TrainResult:
    """Return the result of a finished run. Its file holds relative paths, so the folder may be moved."""
    found = run.read_json(RESULT)
    for name in ("export_student", "export_teacher", "trace_path"):
        found[name] = found[name] and f"{run.uri}/{found[name]}"
    return TrainResult(run_folder=run.uri, **found)


def run_identity(config: TrainConfig) -> dict[str, Any]:
    """Return everything that determines a run's result, as JSON; its fingerprint is in the folder's name.

    Raises:
        DataError: an input folder is missing, unfinished or the output of another stage.
    """
    _, prepared = read_complete(config.data.prepared, "prepare")
    data = {
        "prepared": prepared["fingerprint"],
        "split": config.data.split,
        "crop_scale_min": config.data.crop_scale_min,
    }
    if config.objective.num_negatives and config.data.negatives is not None:
        _, negatives = read_complete(config.data.negatives, "negatives")
        data["negatives"] = negatives["fingerprint"]
    if config.data.neighbours is not None:
        _, neighbours = read_complete(config.data.neighbours, "neighbours")
        data["neighbours"] = neighbours["fingerprint"]
    length = {"epochs": config.epochs} if config.max_steps is None else {"max_steps": config.max_steps}
    return canonical(
        {
            "version": RESULT_VERSION,
            "data": data,
            "model": _model_identity(config.model),
            "objective": config.objective,
            "teacher": config.teacher,
            "optimizer": config.optimizer,
            "adapt": config.adapt,
            "global_batch_size": config.global_batch_size,
            "precision": config.compute.precision,
            "seed": config.seed,
            **length,
        }
    )


def _model_identity(config: ModelConfig) -> dict[str, Any]:
    """Names, and the SHA-256 of local files instead of their paths: a path may come to hold other weights."""
    model, weights = find_model(config.name), find_weights(config)
    identity: dict[str, Any] = {"name": (model.path and _digests(model.path)) or config.name}
    identity["pretrained"] = weights and ((weights.path and _digests(weights.path)) or weights.where)
    return identity | {"random_init": config.random_init, "resize_positions": config.resize_positions}


def _digests(source: Path) -> dict[str, str]:
    """Return the SHA-256 by name of a file, or of all files of a folder; empty if `source` is missing."""
    files = [source] if source.is_file() else sorted(p for p in source.glob("*") if p.is_file())
    digests = {}
    for file in files:
        with file.open("rb") as stream:
            digests[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return digests


def absolute(config: TrainConfig) -> TrainConfig:
    """Return the config with absolute local paths, because workers run in another working directory."""

    def folder(value: str | None) -> str | None:
        return None if value is None else Storage(value).uri

    data = dataclasses.replace(
        config.data,
        prepared=Storage(config.data.prepared).uri,
        negatives=folder(config.data.negatives),
        neighbours=folder(config.data.neighbours),
    )
    validated = dataclasses.replace(
        config.validation,
        suite=folder(config.validation.suite),
        prepared=folder(config.validation.prepared),
        negatives=folder(config.validation.negatives),
    )
    return dataclasses.replace(
        config,
        data=data,
        model=in_any_folder(config.model),
        validation=validated,
        output=Storage(config.output).uri,
        tracking=tracking.resolved(config.tracking),
    )


def cpus(config: TrainConfig) -> float:
    """Return the logical CPUs of a run: workers, decoders and one validation."""
    return config.num_workers * _cpus_of_a_worker(config) + validation.cpus(config.validation)


def _cpus_of_a_worker(config: TrainConfig) -> float:
    return config.compute.cpus + config.data.decode_tasks * DECODER_CPUS


def require_resources(config: TrainConfig) -> None:
    """Check that the CPUs and GPUs suffice.

    Raises:
        SettingError: the local Ray, which cannot grow, has too few.
    """
    _require_cpus(config)
    if config.compute.use_gpu:
        ray_setup.require_gpus("num_workers", config.num_workers)


def _require_cpus(config: TrainConfig) -> None:
    """Check that the CPUs suffice: without CPUs for its decoders a run would wait for ever.

    A validation without CPUs would wait until its timeout. A local Ray cannot grow, so there this raises;
    another cluster may grow, so there it only prints a line.

    Raises:
        SettingError: the local Ray has too few CPUs.
    """
    each, there = _cpus_of_a_worker(config), ray.cluster_resources().get("CPU", 0.0)
    if cpus(config) <= there:
        return
    setting, found = "num_workers", config.num_workers
    expected = (
        f"at most {int(there / each)}: each takes {each:g} CPUs (compute.cpus, and {DECODER_CPUS} for "
        f"each of data.decode_tasks) of the cluster's {there:g}"
    )
    if config.num_workers * each <= there:
        setting, found = "validation.num_actors", config.validation.num_actors
        left = there - config.num_workers * each
        expected = (
            f"fewer, fewer workers or a larger ray.num_cpus: a validation takes {validation.TASK_CPUS} CPUs "
            f"and 1 for each actor, and workers and decoders leave {left:g} of the cluster's {there:g}"
        )
    if ray_setup.is_local():
        raise SettingError(setting, found, expected)
    print(f"{setting} {found} waits for the cluster to grow, or {expected}")


class _Trainer(TorchTrainer):
    """A TorchTrainer without Ray 2.60's PlacementGroupCleaner if there is no dashboard.

    The cleaner asks the dashboard every second whether the run is alive; without a dashboard it prints a
    warning every second. The placement groups that it would remove end with the driver anyway.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        if ray._private.worker.get_dashboard_url():
            return callbacks
        return [c for c in callbacks if type(c).__name__ != "PlacementGroupCleanerCallback"]


def _fit(config: TrainConfig, name: str, job: Job, callbacks: Sequence[UserCallback], run: Storage) -> None:
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    trainer = _Trainer(
        _work,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=config.num_workers,
            use_gpu=config.compute.use_gpu,
            resources_per_worker={
                "CPU": config.compute.cpus,
                **({"GPU": 1} if config.compute.use_gpu else {}),
            },
        ),
        run_config=RunConfig(
            name=name,
            storage_path=config.output,
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=CheckpointConfig(num_to_keep=config.checkpoint.keep),
            callbacks=list(callbacks),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
        validation_config=_validation(config, run),
    )
    failure: TrainingFailedError | None = None
    try:
        trainer.fit()
    except TrainingFailedError as error:
        failure = error
    if run.exists(ERROR):
        raise DeglaError(run.read_json(ERROR)["message"]) from failure
    if failure is not None:
        raise failure


def _validation(config: TrainConfig, run: Storage) -> ValidationConfig | None:
    if config.validation.every_steps is None:
        return None
    # The function only waits for a task of its own. Losing its process raises an exception that Ray Train
    # does not expect and would end the run, so retries are unlimited.
    return ValidationConfig(
        fn=partial(validation.validate, config=config, run_folder=run.uri),
        ray_remote_kwargs={"num_cpus": 0, "max_retries": -1, "scheduling_strategy": "SPREAD"},
    )


def _work(arguments: dict[str, Any]) -> None:
    from degla_ray.training.loop import train_worker  # imports open_clip, which takes the driver seconds

    train_worker(arguments)
