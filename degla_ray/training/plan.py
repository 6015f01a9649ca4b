"""What `train` would do, for a dry run: inputs are read, no folder is made and no worker started."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

from degla_ray import ray_setup, resources
from degla_ray.config import DryRunConfig, ModelConfig, TrainConfig
from degla_ray.dry_run import Plan, Rate, given
from degla_ray.errors import SettingError
from degla_ray.loader.samples import load_samples
from degla_ray.model.source import SourceKind, check_model, find_model
from degla_ray.storage import Storage
from degla_ray.training import checkpoint_folders, validation
from degla_ray.training.job import CONFIG, PROGRESS, schedule
from degla_ray.training.ray_train import needs
from degla_ray.training.run_identity import absolute, run_folder, run_identity
from degla_ray.training.trainer import RESULT

NUMBER_BYTES = 4
"""A weight, or one of the optimizer's two moments of it, in a checkpoint."""


def plan(config: TrainConfig, options: DryRunConfig, captions: Mapping[str, int] | None = None) -> Plan:
    """Return what `train` would do.

    Args:
        config: settings of the job.
        options: speeds and price.
        captions: captions by split, if the inputs are not written yet; None reads them.

    Raises:
        SettingError, DataError: as `train`, before its workers start.
    """
    check_model(config.model)
    config = absolute(config)
    stage, output, done, rate = f"train {config.name}", config.output, 0, given(options, "samples_per_s")
    if captions is None:
        run = Storage(run_folder(config, run_identity(config)))
        if config.resume == "never" and run.exists(CONFIG):
            raise SettingError("resume", "never", f"auto, or another name: {run.uri} exists")
        if run.exists(RESULT):
            return Plan(stage=stage, output=run.uri)
        validation.check(config)
        rows = len(load_samples(config.data, with_negatives=config.objective.num_negatives > 0))
        output, done = run.uri, checkpoint_folders.latest(run)
        rate = rate or _measured(run)
    elif config.data.split in captions:
        rows = captions[config.data.split]
    else:
        raise SettingError("data.split", config.data.split, f"one of {sorted(captions)}")
    ray_setup.start(config.ray)
    resources.check(needs(config))
    _, steps = schedule(config, rows)
    resumes = f" after step {done:,}" if done else ""
    return Plan(
        stage=stage,
        output=output,
        work=f"{steps - done:,} steps of {config.global_batch_size:,}{resumes}, from {rows:,} captions",
        amount=(steps - done) * config.global_batch_size,
        unit="samples",
        option="samples_per_s",
        rate=rate,
        workers=config.worker_counts[-1],
        gpus=int(config.compute.use_gpu),
        size=_bytes(config),
    )


def _measured(run: Storage) -> Rate | None:
    """Return the speed at which an interrupted run last trained."""
    if not run.exists(PROGRESS):
        return None
    found = run.read_json(PROGRESS)
    return Rate(
        per_second=found["samples_per_s"] / found["workers"],
        origin=f"measured by this run at step {found['step']:,}",
    )


def _bytes(config: TrainConfig) -> float:
    """Return the bytes of the checkpoints that exist at once and of the exports; 0 for a model on the Hub."""
    weights = _parameters(config.model) * NUMBER_BYTES
    models = 2 if config.objective.wants_teacher else 1  # student and teacher
    return weights * ((models + 2) * (config.checkpoint.keep + 1) + models)


@functools.cache  # a chain's runs start from the same model
def _parameters(model: ModelConfig) -> int:
    from degla_ray.model.build import build  # imports open_clip, which takes seconds

    if find_model(model.name).kind is SourceKind.HUB:
        return 0  # only a download would tell
    built = build(dataclasses.replace(model, pretrained=None, random_init=True)).model
    return sum(parameter.numel() for parameter in built.parameters())
