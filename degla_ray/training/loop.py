"""The training loop of one worker; Ray Train starts `num_workers` of them.

Every worker takes its contiguous share of each global batch. `gradients.py` computes the gradients and
DistributedDataParallel averages them; objectives/gather.py makes the average equal the single-process
gradients. The workers synchronise once per log interval, about a second: loss terms are averaged there
rather than at every step, so that no step waits for the GPU, and worker 0 decides for all whether to save
and when the next interval ends.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train.v2._internal.execution import context as ray_context
from torch import Tensor, nn

from degla_ray.errors import DeglaError, SettingError
from degla_ray.identity import canonical
from degla_ray.loader.decode import BatchSpec
from degla_ray.loader.feed import Feed, LocalBatch
from degla_ray.loader.order import step_seed
from degla_ray.model.adapt import adapt, merged
from degla_ray.model.build import build
from degla_ray.model.export import export
from degla_ray.model.teacher import Teacher
from degla_ray.objectives import State
from degla_ray.storage import Storage
from degla_ray.training import checkpoint, validation
from degla_ray.training.checkpoint import Parts
from degla_ray.training.gradients import Gradients, freeze_unreached
from degla_ray.training.job import (
    ERROR,
    EXPORT_STUDENT,
    EXPORT_TEACHER,
    PROGRESS,
    PULSE_S,
    REPORT_S,
    TRACE,
    Job,
)
from degla_ray.training.optimizer import build_optimizer, clamp_logit_scale, learning_rate, set_learning_rate
from degla_ray.training.speed import SpeedMeter

MAX_SKIPPED = 25
"""Consecutive steps that fp16's scaler may skip. Each halves its scale: 25 take it from 65,536 to 0.002."""


def train_worker(arguments: dict[str, Any]) -> None:
    """Train from the latest checkpoint, or from the start, to the end; worker 0 then exports the models.

    A DeglaError is written to the run's folder as `error.json` for the driver. It would recur after a
    restart, so a restarted worker group that finds this file ends at once.
    """
    # Ray 2.60 logs every report at INFO, through a logger that is named after the file.
    logging.getLogger(ray_context.__file__).setLevel(logging.WARNING)
    job: Job = arguments["job"]
    run = Storage(job.run_folder)
    if run.exists(ERROR):
        return
    try:
        _Worker(job, run).train()
    except DeglaError as error:
        run.write_json({"message": str(error)}, ERROR)
        if ray.train.get_context().get_world_size() > 1:
            raise  # the other workers may wait for this one: only Ray Train can end them


class _Worker:
    def __init__(self, job: Job, run: Storage) -> None:
        self.job, self.run, self.config = job, run, job.config
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        if self.device.type == "cpu":
            torch.set_num_threads(max(1, int(self.config.compute.cpus)))
        torch.manual_seed(self.config.seed)
        self.loaded = build(self.config.model)
        student = self.loaded.model.to(self.device).train()
        adapt(student, self.config.adapt)
        self.frozen = freeze_unreached(student, self.loaded)
        wants_teacher = self.config.objective.wants_teacher
        self.parts = Parts(
            student=student,
            teacher=Teacher(student, self.config.teacher) if wants_teacher else None,
            optimizer=build_optimizer(student, self.config.optimizer, self.config.adapt, device=self.device),
            scaler=torch.amp.GradScaler(self.device.type, enabled=self.config.compute.precision == "fp16"),
        )
        self.done = 0  # steps: batches consumed
        self.applied = 0  # optimizer steps: fewer than steps if the scaler skipped some
        self.skipped = 0  # consecutive latest steps that the scaler skipped
        self.trace: list[str] = []  # JSON lines; a float's repr round-trips exactly
        objective_state = self._restore()
        self.gradients = Gradients(student, self.parts.teacher, self.config, self.loaded.preprocess_cfg)
        self.gradients.state = objective_state

    def train(self) -> None:
        config, total = self.config, self.job.total_steps
        spec = BatchSpec(
            order=self.job.order,
            rank=self.rank,
            world_size=self.world_size,
            negatives=config.objective.num_negatives,
            size=self.loaded.preprocess_cfg["size"],
            interpolation=self.loaded.preprocess_cfg["interpolation"],
            crop_scale_min=config.data.crop_scale_min,
            tokenizer=self.loaded.tokenizer,
        )
        self.feed = Feed(
            self.job.samples,
            spec,
            first=self.done,
            last=total,
            decoders=self.job.decoders[self.rank],
            prefetch=config.data.prefetch_batches,
        )
        pulse = _Pulse(self)
        for batch in self.feed:
            pulse.add(self._step(batch))
            self.done += 1
            if self.done == pulse.next or self.skipped == MAX_SKIPPED:
                pulse.meet()
        if self.rank == 0:
            self._export()

    def _step(self, batch: LocalBatch) -> dict[str, Tensor | float]:
        """Run one step and return this worker's row of the trace: loss terms and learning rate."""
        config, parts = self.config, self.parts
        lr = learning_rate(config.optimizer, self.applied, self.job.total_steps)
        set_learning_rate(parts.optimizer, lr)
        parts.optimizer.zero_grad(set_to_none=True)
        if self.job.order.begins_epoch(batch.step):
            self.gradients.state = {}
        # Reseeded at every step, so that dropout (if the model has any) is the same in a resumed run.
        terms = self.gradients.compute(batch, parts.scaler, step_seed(config.seed, batch.step, self.rank))
        if config.optimizer.clip_grad_norm is not None:
            parts.scaler.unscale_(parts.optimizer)
            nn.utils.clip_grad_norm_(parts.student.parameters(), config.optimizer.clip_grad_norm)
        stepped = self._optimizer_step()
        self.skipped = 0 if stepped else self.skipped + 1
        if stepped:
            clamp_logit_scale(parts.student)
            if parts.teacher is not None:
                parts.teacher.update(parts.student, config.global_batch_size)
            self.applied += 1
        return {**terms, "lr": lr}

    def _optimizer_step(self) -> bool:
        """Apply the gradients; return False if the scaler skipped the step because some were not finite.

        The result is the same on all workers.
        """
        scaler = self.parts.scaler
        before = scaler.get_scale()
        scaler.step(self.parts.optimizer)
        scaler.update()
        return scaler.get_scale() >= before

    def _restore(self) -> State:
        """Restore the latest checkpoint, if any, and return the objective's state."""
        # Worker 0's listing decides: on some filesystems listings lag.
        steps = self.broadcast([checkpoint.latest(self.run) if self.rank == 0 else 0])[0]
        if steps == 0:
            return {}
        name = checkpoint.folder_name(steps)
        state, self.trace = checkpoint.load(self.run, name, self.parts)
        if state["fingerprint"] != self.job.fingerprint:
            raise SettingError(
                "name", self.config.name, f"another name: {self.run.path(name)} is another run's"
            )
        self.done, self.applied = state["step"], state["applied"]
        known = ray.train.get_checkpoint()
        if known is None or Path(known.path).name < name:
            # Saved, but Ray Train was killed before recording it. (A later, damaged checkpoint stays in
            # Ray Train's record until it is rewritten.)
            self._report({"step": steps}, name)
        return {k: torch.tensor(v, device=self.device) for k, v in state["objective_state"].items()}

    def save(self, metrics: dict[str, Any]) -> None:
        name = checkpoint.folder_name(self.done)
        if self.rank == 0:
            state = {
                "fingerprint": self.job.fingerprint,
                "samples": self.done * self.config.global_batch_size,
                "applied": self.applied,
                "total_steps": self.job.total_steps,
                "learning_rate": learning_rate(self.config.optimizer, self.applied, self.job.total_steps),
                "order": canonical(self.job.order),
                "objective_state": {k: v.tolist() for k, v in self.gradients.state.items()},
                "rng": "torch is seeded at every step from (seed, step, worker)",
                "config": canonical(self.config),
                "versions": self.job.versions,
                "activation": self.loaded.activation,
            }
            checkpoint.save(self.run, self.done, self.parts, state, self.trace)
        self._report(metrics, name)

    def _report(self, metrics: dict[str, Any], name: str) -> None:
        """Report the checkpoint after `done` steps to Ray Train, and request its validation if it is due.

        Every worker calls this, but only worker 0 passes both (Ray refuses a validation alone).
        """
        due = self.rank == 0 and self.config.validation.due(self.done)
        if due:
            validation.ask(self.run, self.done)
        ray.train.report(
            metrics,
            checkpoint=self._handle(name),
            checkpoint_dir_name=name,
            # The checkpoint is already in its final place.
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
            validation=due,
        )

    def _handle(self, name: str) -> ray.train.Checkpoint | None:
        if self.rank != 0:
            return None
        storage = ray.train.get_context().get_storage()
        path = f"{storage.experiment_fs_path}/{name}"
        return ray.train.Checkpoint(path, filesystem=storage.storage_filesystem)

    def broadcast(self, numbers: list[int]) -> list[int]:
        """Return worker 0's numbers on every worker."""
        if self.world_size == 1:
            return numbers
        tensor = torch.tensor(numbers, dtype=torch.int64, device=self.device)
        dist.broadcast(tensor, src=0)
        return tensor.tolist()

    def _export(self) -> None:
        extra = {
            "run": self.config.name,
            "fingerprint": self.job.fingerprint,
            "objective": canonical(self.config.objective),
            "steps": self.done,
        }
        models = {EXPORT_STUDENT: merged(self.parts.student)}
        if self.parts.teacher is not None and self.config.teacher.kind == "ema":
            models[EXPORT_TEACHER] = self.parts.teacher.model
        for folder, model in models.items():
            weights = folder.removeprefix("export_")
            export(
                dataclasses.replace(self.loaded, model=model, source=f"trained from {self.loaded.source}"),
                f"{self.job.run_folder}/{folder}",
                extra | {"weights": weights},
            )


class _Pulse:
    """The work at the end of each log interval: trace, progress, checkpoints, reports.

    Attributes:
        next: step at which the log interval ends, the same on all workers.
    """

    def __init__(self, worker: _Worker) -> None:
        self.worker = worker
        self.next = worker.done + 1
        self._rows: list[dict[str, Tensor | float]] = []
        now = time.monotonic()
        self._began = self._met = self._saved = self._reported = now
        self._first, self._outside_s = worker.done, 0.0
        self._meter = SpeedMeter(now)
        self._waited = 0.0
        self._distance: float | None = None

    def add(self, row: dict[str, Tensor | float]) -> None:
        self._rows.append(row)

    def meet(self) -> None:
        worker = self.worker
        rows = self._average()
        worker.trace += map(json.dumps, rows)
        now = time.monotonic()
        step_s = (now - self._met) / len(rows)
        self._outside_s += self._met - self._began
        self._began = now
        speed = self._meter.measure(now, worker.done - self._first, self._outside_s + worker.feed.wait_s)
        waited, self._waited = worker.feed.wait_s - self._waited, worker.feed.wait_s
        last = worker.done == worker.job.total_steps
        save, report, self.next = worker.broadcast(
            [self._must_save(now, last), last or now - self._reported >= REPORT_S, self._following(step_s)]
        )
        if (save or report) and worker.parts.teacher is not None:
            self._distance = worker.parts.teacher.distance(worker.parts.student)
        progress = {
            "step": worker.done,
            "total_steps": worker.job.total_steps,
            "terms": {k: sum(row[k] for row in rows) / len(rows) for k in rows[0] if k != "step"},
            "samples_per_s": worker.config.global_batch_size / speed.step_s,
            "training_share": speed.training_share,
            "wait_share": min(1.0, waited / (step_s * len(rows))),
            "wait_s": worker.feed.wait_s,
            "first_wait_s": worker.feed.first_wait_s,
            "teacher_distance": self._distance,
            "eta_s": speed.step_s * (worker.job.total_steps - worker.done),
            "last_checkpoint": worker.done if save else None,
            "frozen": worker.frozen,
        }
        if worker.rank == 0:
            worker.run.write_json(progress, PROGRESS)
            if save or report:
                worker.run.write_bytes(checkpoint.as_bytes(worker.trace), TRACE)
        metrics = {"step": worker.done, **rows[-1], "samples_per_s": progress["samples_per_s"]}
        if save:
            worker.save(metrics)
            self._saved = time.monotonic()
        elif report:
            ray.train.report(metrics)
        if save or report:
            self._reported = time.monotonic()
        self._met = time.monotonic()

    def _average(self) -> list[dict[str, float]]:
        """Return the rows of this log interval, averaged over the workers, as plain numbers."""
        worker = self.worker
        names = [k for k, v in self._rows[0].items() if isinstance(v, Tensor)]
        stacked = torch.stack([torch.stack([row[k] for k in names]) for row in self._rows]).double()  # type: ignore[misc]
        if worker.world_size > 1:
            dist.all_reduce(stacked)
            stacked /= worker.world_size
        first = worker.done - len(self._rows) + 1
        rows = []
        for number, (row, values) in enumerate(zip(self._rows, stacked.tolist(), strict=True), start=first):
            rows.append({"step": number, **dict(zip(names, values, strict=True)), "lr": float(row["lr"])})
            if not math.isfinite(rows[-1]["loss"]) and worker.config.compute.precision != "fp16":
                raise SettingError(
                    "optimizer.lr",
                    worker.config.optimizer.lr,
                    f"a lower one: the loss of step {number} is not finite ({_terms(rows[-1])})",
                )
        # A single skip at the start is normal: the scaler searches for its scale.
        nothing_learned = worker.applied == 0 and worker.done == worker.job.total_steps and worker.skipped > 1
        if worker.skipped >= MAX_SKIPPED or nothing_learned:
            raise SettingError(
                "compute.precision",
                worker.config.compute.precision,
                f"bf16 or fp32, or a lower optimizer.lr ({worker.config.optimizer.lr:g}): the last "
                f"{worker.skipped} steps up to step {worker.done} were skipped, as their gradients are not "
                f"finite ({_terms(rows[-1])})",
            )
        self._rows = []
        return rows

    def _must_save(self, now: float, last: bool) -> bool:
        settings = self.worker.config.checkpoint
        by_step = settings.every_steps is not None and self.worker.done % settings.every_steps == 0
        by_time = settings.every_minutes is not None and now - self._saved >= 60 * settings.every_minutes
        return last or by_step or by_time or self.worker.config.validation.due(self.worker.done)

    def _following(self, step_s: float) -> int:
        worker = self.worker
        following = worker.done + max(1, round(PULSE_S / step_s))
        for settings in (worker.config.checkpoint, worker.config.validation):
            if every := settings.every_steps:
                following = min(following, (worker.done // every + 1) * every)
        return min(following, worker.job.total_steps)


def _terms(row: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name not in ("step", "lr"))
