"""A run on Ray Train: the CPUs that it needs, its workers, failures and validations."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
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

from degla_ray import ray_setup
from degla_ray.config import TrainConfig
from degla_ray.errors import DeglaError, SettingError
from degla_ray.loader.decoders import DECODER_CPUS, number_of_decoders
from degla_ray.storage import Storage
from degla_ray.training import validation
from degla_ray.training.job import ERROR, Job
from degla_ray.training.rendezvous import torch_config

MAX_FAILURES = 2
"""Times that Ray Train restarts lost workers before it gives up."""


def cpus(config: TrainConfig) -> float:
    """Return the logical CPUs of a run: workers, decoders and one validation."""
    return config.num_workers * _cpus_of_a_worker(config) + validation.cpus(config.validation)


def _cpus_of_a_worker(config: TrainConfig) -> float:
    decoders = number_of_decoders(config.data.decode_tasks, config.num_workers, config.compute.cpus)
    return config.compute.cpus + decoders * DECODER_CPUS


def require_resources(config: TrainConfig) -> None:
    """Check that the CPUs and GPUs suffice.

    Raises:
        SettingError: the local Ray, which cannot grow, has too few.
    """
    _require_cpus(config)
    if config.compute.use_gpu:
        ray_setup.require_gpus("num_workers", config.num_workers)


def _require_cpus(config: TrainConfig) -> None:
    """Check that the CPUs suffice: a run without CPUs for its decoders would wait for ever.

    A validation without CPUs would wait until its timeout. A local Ray cannot grow, so this raises. Another
    cluster can, so this only prints a line.

    Raises:
        SettingError: the local Ray has too few CPUs.
    """
    each, available = _cpus_of_a_worker(config), ray.cluster_resources().get("CPU", 0.0)
    if cpus(config) <= available:
        return
    setting, found = "num_workers", config.num_workers
    expected = (
        f"at most {int(available / each)}: each takes {each:g} CPUs (compute.cpus, and {DECODER_CPUS:g} for "
        f"each of data.decode_tasks) of the cluster's {available:g}"
    )
    if config.num_workers * each <= available:
        setting, found = "validation.num_actors", config.validation.num_actors
        left = available - config.num_workers * each
        expected = (
            "fewer, or fewer workers, or a larger ray.num_cpus: a validation takes "
            f"{validation.TASK_CPUS} CPUs and 1 for each actor, and workers and "
            f"decoders leave {left:g} of the cluster's {available:g}"
        )
    if ray_setup.is_local():
        raise SettingError(setting, found, expected)
    print(f"{setting} is {found}: the run waits until the cluster grows; otherwise {expected}")


class _Trainer(TorchTrainer):
    """A TorchTrainer that leaves out Ray 2.60's PlacementGroupCleaner if there is no dashboard.

    The cleaner asks the dashboard every second whether the run is alive; without a dashboard it prints a
    warning every second. The placement groups that it would remove end with the driver anyway.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        if ray._private.worker.get_dashboard_url():
            return callbacks
        return [c for c in callbacks if type(c).__name__ != "PlacementGroupCleanerCallback"]


def fit(config: TrainConfig, name: str, job: Job, callbacks: Sequence[UserCallback], run: Storage) -> None:
    """Run the workers to the end.

    Args:
        config: the run's config.
        name: name of the run's folder.
        job: arguments of every worker.
        callbacks: Ray Train callbacks.
        run: the run's folder.

    Raises:
        DeglaError: the error that a worker wrote to the run's folder.
        TrainingFailedError: workers were lost more than MAX_FAILURES times, or something else failed.
    """
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    trainer = _Trainer(
        _work,
        train_loop_config={"job": job},
        torch_config=torch_config(),
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
    # The function only waits for a task of its own. If its process is lost, Ray Train gets an exception that
    # it does not expect and ends the run; hence unlimited retries.
    return ValidationConfig(
        fn=partial(validation.validate, config=config, run_folder=run.uri),
        ray_remote_kwargs={"num_cpus": 0, "max_retries": -1, "scheduling_strategy": "SPREAD"},
    )


def _work(arguments: dict[str, Any]) -> None:
    from degla_ray.training.loop import train_worker  # imports open_clip, which takes the driver seconds

    train_worker(arguments)
