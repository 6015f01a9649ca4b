"""The training loop of one worker; Ray Train starts `num_workers` of them.

Every worker takes its contiguous share of each global batch. `step.py` trains on it; DistributedDataParallel
averages the gradients, and objectives/gather.py makes the average equal the single-process gradients. After
each log interval (about a second, `interval.py`) the hooks log, save, request validations and report.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import socket
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train.v2._internal.execution import context as ray_context

from degla_ray import shared_paths
from degla_ray.config import DataConfig, TrainConfig
from degla_ray.errors import DeglaError, SettingError
from degla_ray.identity import canonical
from degla_ray.loader.decode import BatchSpec
from degla_ray.loader.decoders import end_decoders, number_of_decoders, start_decoders
from degla_ray.loader.image_files import CacheSpec
from degla_ray.loader.loader import Loader, LocalBatch
from degla_ray.loader.order import step_seed
from degla_ray.model.adapt import adapt, merged
from degla_ray.model.blocks import compile_blocks
from degla_ray.model.build import build
from degla_ray.model.encode import OpenClipModel, text_end
from degla_ray.model.export import export
from degla_ray.model.frozen import batch_norms
from degla_ray.model.loaded import LoadedModel
from degla_ray.model.packing import GPU_TOKEN_MULTIPLE
from degla_ray.model.teacher import Teacher
from degla_ray.storage import DiskRefuses, Storage
from degla_ray.training import checkpoint, checkpoint_folders, sanity, stopping
from degla_ray.training.forward import freeze_unreached
from degla_ray.training.hooks import Checkpoint, Hook, Log, ReportToRay, Validate
from degla_ray.training.interval import Intervals
from degla_ray.training.job import CONFIG, ERROR, EXPORT_STUDENT, EXPORT_TEACHER, Job
from degla_ray.training.nonfinite import NonfiniteSteps, sample_ids
from degla_ray.training.optimizer import build_optimizer
from degla_ray.training.profiler import profiled
from degla_ray.training.stalled import Watch
from degla_ray.training.state import TrainState
from degla_ray.training.step import TrainStep
from degla_ray.training.workers import Workers


def train_worker(arguments: dict[str, Any]) -> None:
    """Train from the latest checkpoint, or from the start, to the end; worker 0 then exports the models.

    A DeglaError is written to the run's folder as `error.json` for the driver. It would recur after a
    restart, so a restarted worker group that finds this file ends at once.
    """
    # Ray 2.60 logs every report at INFO, through a logger that is named after the file.
    logging.getLogger(ray_context.__file__).setLevel(logging.WARNING)
    job: Job = arguments["job"]
    run = Storage(job.run_folder)
    if not run.exists(CONFIG):  # an ERROR file would not reach the driver either
        found = f"{run.uri}, which node {socket.gethostname()} does not see"
        raise SettingError("output", found, shared_paths.shared())
    if run.exists(ERROR):
        return
    try:
        try:
            _train(job, run)
        except torch.OutOfMemoryError as error:
            world_size = ray.train.get_context().get_world_size()
            raise out_of_memory(job.config, world_size) from error
        except torch._dynamo.exc.BackendCompilerFailed as error:
            raise cannot_compile(error) from error
    except DeglaError as error:
        with contextlib.suppress(DiskRefuses):
            run.write_json({"message": str(error)}, ERROR)
        if ray.train.get_context().get_world_size() > 1 or not run.exists(ERROR):
            raise  # the other workers may wait for this one: only Ray Train can end them


def out_of_memory(config: TrainConfig, world_size: int) -> SettingError:
    """Return the error for a GPU that is full, with the settings that help."""
    compute, share = config.compute, config.global_batch_size // world_size
    rows = min(share, config.micro_batch_size or share)
    remedies = [f"micro_batch_size {max(1, rows // 2)} (the same gradients)"]
    remedies += [] if compute.activation_checkpointing else ["compute.activation_checkpointing true"]
    remedies += ["compute.precision bf16"] if compute.precision == "fp32" else []
    expected = f"what a GPU's memory holds; it takes less with {'; '.join(remedies)}"
    return SettingError("global_batch_size", config.global_batch_size, expected)


def cannot_compile(error: Exception) -> SettingError:
    """Return the error for blocks that torch.compile could not compile; usually it finds no C++ compiler."""
    reason = str(error).strip().partition("\n")[0]
    return SettingError(
        "compute.compile", True, f"false, or a C++ compiler on every worker's node ({reason})"
    )


def _train(job: Job, run: Storage) -> None:
    config, workers = job.config, Workers.current()
    if workers.device.type == "cpu":
        torch.set_num_threads(max(1, int(config.compute.cpus)))
    else:
        torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in fp32
    torch.manual_seed(config.seed)
    decoders = _start_decoders(job)  # ready by the time the model is built
    loaded = build(config.model)
    state, frozen = _initial_state(job, workers, loaded)
    validate, report = Validate(workers, run, config.validation), ReportToRay(workers, config)
    _restore(state, job, run, workers, validate, report)

    step = TrainStep(state, config, loaded.preprocess_cfg, job.total_steps)
    loader = _loader(job, workers, loaded, state.step, decoders)
    notices = [
        sanity.frozen_parameters(frozen),
        sanity.small_images(job.short_side, loaded.preprocess_cfg["size"]),
        sanity.initial_statistics(len(batch_norms(state.student)), is_random=loaded.is_random),
    ]
    nonfinite = NonfiniteSteps(
        workers, run, job, lambda step: sample_ids(ray.get(job.samples), job.order, step)
    )
    log = Log(workers, run, job, nonfinite, [n for n in notices if n], warns_of_loss=not loaded.is_random)
    save = Checkpoint(workers, run, job, loaded.activation)
    if workers.is_first:
        stopping.set_training(run.uri)
    intervals = Intervals(workers, config, job.total_steps, loader, state.step, save)
    steps = config.profile.range if workers.is_first else None
    batches = loader if steps is None else profiled(loader, steps, run)
    with Watch(workers, run.uri, 60 * config.stall_minutes, step):
        _run_steps(job, workers, step, batches, intervals, (log, save, validate, report))
    log.wait()
    _report_last(workers, save, validate, report)
    end_decoders(decoders)
    if workers.is_first:
        _export(state, job, loaded)


def _run_steps(
    job: Job,
    workers: Workers,
    step: TrainStep,
    batches: Iterable[LocalBatch],
    intervals: Intervals,
    hooks: Sequence[Hook],
) -> None:
    """Train on every batch, and call the hooks after each log interval.

    Raises:
        Left: the workers were asked to leave, and the checkpoint of the step just done is written.
    """
    mark = step.usage.clock.mark
    for batch in batches:
        mark("data")
        seed = step_seed(job.config.seed, batch.step, workers.rank)
        intervals.add(step(batch, seed=seed, begins_epoch=job.order.begins_epoch(batch.step)))
        if intervals.is_over(step.state):
            step.settle()
            interval = intervals.finish(step.state, step.usage)
            for hook in hooks:
                hook.after_step(step.state, interval)
            if interval.leave and step.state.step < job.total_steps:
                workers.broadcast([0])  # worker 0 comes here after its checkpoint
                raise stopping.Left
            intervals.begin()
            mark("other")


def _report_last(workers: Workers, save: Checkpoint, validate: Validate, report: ReportToRay) -> None:
    """Report the checkpoints that were written after the last log interval."""
    save.wait()
    while written := workers.broadcast([save.next_written()])[0]:
        validate.request(written)
        report.report_checkpoint(written, {"step": written})


def _initial_state(job: Job, workers: Workers, loaded: LoadedModel) -> tuple[TrainState, list[str]]:
    """Return the state before the first step, and the names of the parameters that no loss reaches."""
    config = job.config
    student: OpenClipModel = loaded.model.to(workers.device).train()
    adapt(student, config.adapt)
    if config.compute.activation_checkpointing:  # open_clip's adapter of Hugging Face ignores False
        student.set_grad_checkpointing()
    if config.compute.compile and not compile_blocks(student):
        raise SettingError("compute.compile", True, "false: the model has no blocks that can be compiled")
    frozen = freeze_unreached(student, loaded)
    state = TrainState(
        student=student,
        teacher=Teacher(student, config.teacher) if config.objective.wants_teacher else None,
        optimizer=build_optimizer(student, config.optimizer, config.adapt, device=workers.device),
        scaler=torch.amp.GradScaler(workers.device.type, enabled=config.compute.precision == "fp16"),
    )
    return state, frozen


def _restore(
    state: TrainState, job: Job, run: Storage, workers: Workers, validate: Validate, report: ReportToRay
) -> None:
    """Restore the latest checkpoint, if there is one, into `state`."""
    # Worker 0's listing decides, because listings lag on some filesystems.
    step = workers.broadcast([checkpoint_folders.latest(run) if workers.is_first else 0])[0]
    if step == 0:
        return
    name = checkpoint_folders.folder_name(step)
    record = checkpoint.load(run, name, state, workers)
    if record["fingerprint"] != job.fingerprint:
        raise SettingError(
            "name", job.config.name, f"another name: {run.path(name)} belongs to a run with other settings"
        )
    known = ray.train.get_checkpoint()
    if known is None or Path(known.path).name < name:
        # Saved, but Ray Train was killed before recording it. (A later, damaged checkpoint stays in
        # Ray Train's record until it is rewritten.)
        validate.request(step)
        report.report_checkpoint(step, {"step": step})


def _start_decoders(job: Job) -> list[Any]:
    here = ray.train.get_context().get_local_world_size()
    return start_decoders(number_of_decoders(job.config.data.decode_tasks, here, job.config.compute.cpus))


def _loader(job: Job, workers: Workers, loaded: LoadedModel, first: int, decoders: list[Any]) -> Loader:
    spec = BatchSpec(
        order=job.order,
        rank=workers.rank,
        world_size=workers.world_size,
        negatives=job.config.objective.num_negatives,
        size=loaded.preprocess_cfg["size"],
        interpolation=loaded.preprocess_cfg["interpolation"],
        crop_scale_min=job.config.data.crop_scale_min,
        cache=_cache(job.config.data),
        micro_batch_size=job.config.micro_batch_size,
        text_end=text_end(loaded.model),
        token_multiple=GPU_TOKEN_MULTIPLE if workers.device.type == "cuda" else 1,
    )
    return Loader(
        job.samples,
        spec,
        first=first,
        last=job.total_steps,
        decoders=decoders,
        prefetch=job.config.data.prefetch_batches,
        device=workers.device,
    )


def _cache(config: DataConfig) -> CacheSpec:
    return CacheSpec(
        folder=config.cache or f"{tempfile.gettempdir()}/degla-ray-parts-{os.getuid()}",
        max_bytes=int(config.cache_gb * 1e9),
        whole_parts=config.block_rows > 0,
    )


def _export(state: TrainState, job: Job, loaded: LoadedModel) -> None:
    extra = {
        "run": job.config.name,
        "fingerprint": job.fingerprint,
        "objective": canonical(job.config.objective),
        "steps": state.step,
        "data": job.data,
    }
    models = {EXPORT_STUDENT: merged(state.student)}
    if state.teacher is not None and job.config.teacher.kind == "ema":
        models[EXPORT_TEACHER] = state.teacher.model
    for folder, model in models.items():
        weights = folder.removeprefix("export_")
        export(
            dataclasses.replace(loaded, model=model, source=f"trained from {loaded.source}"),
            f"{job.run_folder}/{folder}",
            extra | {"weights": weights},
        )
