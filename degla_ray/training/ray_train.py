"""A run on Ray Train: the CPUs that it needs, its workers, failures and validations."""

from __future__ import annotations

import contextlib
import logging
from functools import partial
from typing import Any

import ray
from ray.train import (
    CheckpointConfig,
    RunConfig,
    ScalingConfig,
    ValidationConfig,
)
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError

from degla_ray import ray_setup
from degla_ray.cli import user_error
from degla_ray.config import TrainConfig
from degla_ray.devices import Devices, free_gpus, resolve_precision
from degla_ray.errors import DeglaError
from degla_ray.loader.decoders import DECODER_CPUS, number_of_decoders
from degla_ray.resources import Bundle, Need
from degla_ray.storage import Storage, disk_errors
from degla_ray.training import checkpoint_folders, stopping, validation
from degla_ray.training.elastic import LOOK_S, Elastic, WorkerChanges
from degla_ray.training.job import ERROR, Job
from degla_ray.training.recovery import Recovery
from degla_ray.training.rendezvous import torch_config

_ABORT_S = 5.0
"""Seconds that the controller has to end the workers when the driver is told to end."""


def unit(config: TrainConfig) -> list[Bundle]:
    """Return what a worker and its decoders reserve."""
    compute = config.compute
    worker = {"CPU": compute.cpus} | ({"GPU": 1.0} if compute.use_gpu else {})
    # On a cluster, this machine's cores say nothing about the worker's node.
    known = ray_setup.is_local() or config.data.decode_tasks is not None
    most = config.worker_counts[-1]
    decoders = number_of_decoders(config.data.decode_tasks, most, compute.cpus) if known else 1
    return [worker, *([{"CPU": DECODER_CPUS}] * decoders)]


def needs(config: TrainConfig) -> list[Need]:
    """Return what a run reserves: without CPUs for its decoders or a validation, it would wait for them."""
    workers = Need(
        setting="num_workers",
        value=config.num_workers_given,
        unit=unit(config),
        count=config.worker_counts[0],
        wanted=config.worker_counts[-1],
        detail=f" (compute.cpus, and {DECODER_CPUS:g} for each of data.decode_tasks)",
    )
    return [workers, *validation.needs(config.validation)]


def describe(config: TrainConfig) -> str:
    """Return the run's workers, their devices and precision, and any GPUs that stand idle."""
    workers = Devices(
        process="worker",
        setting="num_workers",
        count=config.worker_counts[-1],
        use_gpu=config.compute.use_gpu,
        precision=resolve_precision(config.compute, config.ray),
    )
    described = workers.describe(free_gpus() - validation.gpus(config.validation))
    if isinstance(config.num_workers, int):
        return described
    counts, (least, most) = config.worker_counts, config.worker_range
    skipped = len(counts) <= most - least
    why = f"; the others do not divide global_batch_size {config.global_batch_size}" if skipped else ""
    return f"at most {described}; as many as there is room for: {', '.join(map(str, counts))}{why}"


class _Trainer(TorchTrainer):
    """A TorchTrainer with this project's policies, whose controller `end` finds.

    It leaves out Ray 2.60's PlacementGroupCleaner, which asks the dashboard every second whether the run is
    alive. Without a dashboard it prints a warning every second, and a traceback where a second Ray runs on
    the machine. The placement groups that it would remove end with the driver anyway, or by `end`.
    """

    recovery: Recovery
    changes: WorkerChanges
    elastic: Elastic | None = None
    run: Storage

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        arguments["failure_policy"] = self.recovery
        arguments["callbacks"] = [*arguments["callbacks"], self.changes]
        if self.elastic is not None:
            arguments["scaling_policy"] = self.elastic
        return super()._initialize_and_run_controller(**arguments)

    def _register_sigint_handler(self, controller: Any) -> None:
        """Leave Ctrl-C to `fit`: Ray Train's own handler ends the workers before they can save."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = [*super()._create_default_callbacks(), _Announce(self.run.uri)]
        return [c for c in callbacks if type(c).__name__ != "PlacementGroupCleanerCallback"]


class _Announce(ControllerCallback):
    """Puts the controller's handle where `end` finds it, which no driver has outside its main thread."""

    def __init__(self, run: str) -> None:
        self._run = run

    def after_controller_start(self, train_run_context: object) -> None:
        stopping.set_controller(self._run, ray.get_runtime_context().current_actor)


def end(run: str) -> int | None:
    """Save a run that trains if it can, end its workers, and free what they reserve.

    Ray Train frees the workers of a run whose driver ended only where the dashboard's State API runs.

    Returns:
        Step of the checkpoint; None if no worker trained.
    """
    saved = stopping.save_now(run)
    _abort(run)
    return saved


def _abort(run: str) -> None:
    """End a run's workers, and withdraw Ray Train's request to the autoscaler."""
    controller = stopping.controller(run)
    if controller is not None:
        # The controller ends in the middle of the call.
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(controller.abort.remote(), timeout=_ABORT_S)


def fit(config: TrainConfig, name: str, job: Job, run: Storage) -> None:
    """Run the workers to the end.

    Args:
        config: the run's config.
        name: name of the run's folder.
        job: arguments of every worker.
        run: the run's folder.

    Raises:
        DeglaError: the error that a worker wrote to the run's folder, or the controller was lost.
        TrainingFailedError: workers were lost too often (recovery.py), or something else failed.
        SystemExit, KeyboardInterrupt: the driver, or the run by `end`, was told to end; the workers have
            saved a checkpoint if they could.
    """
    stopping.forget(run.uri)
    output = Storage(config.output)
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    counts = config.worker_counts
    scaling = ScalingConfig(
        num_workers=config.num_workers if isinstance(config.num_workers, int) else (counts[0], counts[-1]),
        use_gpu=config.compute.use_gpu,
        resources_per_worker=dict(unit(config)[0]),
        elastic_resize_monitor_interval_s=LOOK_S,
    )
    trainer = _Trainer(
        _work,
        train_loop_config={"job": job},
        torch_config=torch_config(),
        scaling_config=scaling,
        run_config=RunConfig(
            name=name,
            # its own client gives up after six seconds
            **({} if output.is_local else {"storage_filesystem": output.filesystem}),
            storage_path=output.path(),
            checkpoint_config=CheckpointConfig(num_to_keep=config.checkpoint.keep),
            # Recovery tells what happened in a line; Ray Train's logs would repeat it with tracebacks.
            logging_config=ray.train.LoggingConfig(log_level="CRITICAL"),
        ),
        validation_config=_validation(config, run),
    )
    trainer.recovery, trainer.run = Recovery(config, needs(config)[0], name, run), run
    trainer.changes = WorkerChanges(config, run)
    if scaling.elasticity_enabled:
        trainer.elastic = Elastic(scaling, config, needs(config), name, run)
    failure: TrainingFailedError | None = None
    try:
        trainer.fit()
    except (SystemExit, KeyboardInterrupt):  # SIGTERM, Ctrl-C
        try:
            saved = stopping.save_now(run.uri)
            print(f"{name}: ends; " + ("nothing new is saved" if saved is None else f"saved step {saved}"))
        finally:  # a second Ctrl-C does not wait for the checkpoint
            _abort(run.uri)
        raise
    except TrainingFailedError as error:
        failure = error
    except ray.exceptions.RayActorError as error:  # the controller's; a worker's is in a TrainingFailedError
        if stopping.asked(run.uri):  # another thread ended the run
            raise SystemExit(f"{name}: was ended") from None
        raise DeglaError(f"{name}: Ray Train's controller was lost; the same command continues") from error
    stopping.forget(run.uri)  # nothing is left to end
    if run.exists(ERROR):
        raise DeglaError(run.read_json(ERROR)["message"]) from failure
    if failure is not None:
        inner = failure.controller_failure if isinstance(failure, ControllerError) else None
        with disk_errors(run.path(checkpoint_folders.RAY_SNAPSHOT)):  # Ray Train's own file
            raise user_error(failure) or (inner if isinstance(inner, OSError) else failure)


def _validation(config: TrainConfig, run: Storage) -> ValidationConfig | None:
    if config.validation.every_steps is None:
        return None
    # The function only waits for a task of its own. If its process is lost, Ray Train gets an exception that
    # it does not expect and ends the run; hence unlimited retries.
    return ValidationConfig(
        fn=partial(validation.validate, config=config, run_folder=run.uri),
        ray_remote_kwargs={"num_cpus": 0, "max_retries": -1, "scheduling_strategy": "SPREAD"},
    )


def _work(arguments: dict[str, Any]) -> None:
    from degla_ray.training.loop import train_worker  # imports open_clip, which takes the driver seconds

    train_worker(arguments)
