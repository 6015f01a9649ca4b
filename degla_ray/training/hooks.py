"""What happens at the end of each log interval, in this order: Log, Checkpoint, Validate, ReportToRay.

Every worker has all hooks; only worker 0 writes files. A hook reads the state and the finished interval and
changes nothing that another worker or a later step depends on, except that Log appends to the trace.
"""

from __future__ import annotations

import json
import logging
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import ray.train
import torch

from degla_ray.config import TrainConfig, ValidationSettings
from degla_ray.errors import one_line
from degla_ray.identity import canonical
from degla_ray.storage import Storage
from degla_ray.training import checkpoint, checkpoint_folders, sanity, stopping, trace, validation
from degla_ray.training.interval import LogInterval
from degla_ray.training.job import PROGRESS, Job
from degla_ray.training.nonfinite import NonfiniteSteps
from degla_ray.training.optimizer import learning_rate
from degla_ray.training.state import TrainState
from degla_ray.training.workers import Workers

log = logging.getLogger(__name__)


class Hook(Protocol):
    """Work that is not training."""

    def after_step(self, state: TrainState, interval: LogInterval) -> None:
        """Act after the step that ends a log interval; every worker calls this at the same step."""


class Log:
    """The trace, `progress.json`, and an error once the losses or gradients are not finite.

    Args:
        workers: this worker among all.
        run: the run's folder.
        job: arguments of the worker.
        nonfinite: check of the losses.
        notices: lines for the console.
        warns_of_loss: whether a high first loss adds a notice; it means nothing with random weights.
    """

    def __init__(
        self,
        workers: Workers,
        run: Storage,
        job: Job,
        nonfinite: NonfiniteSteps,
        notices: list[str],
        warns_of_loss: bool,
    ) -> None:
        self._workers, self._run, self._job, self._nonfinite = workers, run, job, nonfinite
        self._notices, self._warns_of_loss = notices, warns_of_loss
        self._distance: float | None = None
        self._thread = ThreadPoolExecutor(1, "progress")
        self._writing: Future[None] | None = None
        self._traced = 0  # steps of the trace that are in its file
        self._fails = False  # whether the latest write failed

    def after_step(self, state: TrainState, interval: LogInterval) -> None:
        self._notices += self._nonfinite.check(state, interval)
        self._check_first_loss(state, interval.rows[0])
        state.trace += map(json.dumps, interval.rows)
        if not self._workers.is_first:
            return
        if interval.report and state.teacher is not None:
            self._distance = state.teacher.distance(state.student)
        if self._writing is not None and self._writing.done():
            self.wait()
        if self._writing is None or interval.report:  # on a slow store, some intervals are not shown
            first = trace.part_of(self._traced + 1) if interval.report else len(state.trace) + 1
            new = state.trace[first - 1 :]
            self._writing = self._thread.submit(self._write, self._progress(state, interval), new, first)

    def wait(self) -> None:
        """Wait until everything is written, or could not be."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def _write(self, progress: dict[str, Any], lines: list[str], first: int) -> None:
        """Write both files. If that fails, training goes on, and the next interval writes what is missing."""
        try:
            self._run.write_json(progress, PROGRESS)
            trace.write(self._run, lines, first)
        except Exception as error:
            if not self._fails:
                lost = f"progress and trace of step {progress['step']} could not be written"
                notice = f"{lost} ({one_line(error)}); tried again at the next interval"
                log.warning("%s", notice)  # the notice is in the file that cannot be written
                self._notices.append(notice)
            self._fails = True
            return
        self._fails = False
        self._traced = max(self._traced, first + len(lines) - 1)

    def _progress(self, state: TrainState, interval: LogInterval) -> dict[str, Any]:
        rows, speed = interval.rows, interval.speed
        return {
            "step": state.step,
            "workers": self._workers.world_size,
            "total_steps": self._job.total_steps,
            "terms": {k: sum(row[k] for row in rows) / len(rows) for k in rows[0] if k != "step"},
            "samples_per_s": self._job.config.global_batch_size / speed.step_s,
            "training_share": speed.training_share,
            "wait_share": interval.wait_share,
            "wait_s": interval.wait_s,
            "first_wait_s": interval.first_wait_s,
            **{f"{phase}_ms": ms for phase, ms in interval.usage.phase_ms.items()},
            "tokens_per_s": interval.usage.tokens_per_s,
            "mfu": interval.usage.mfu,
            "teacher_distance": self._distance,
            "gradient_norm": _gradient_norm(state),
            "peak_memory_gb": _peak_memory_gb(self._workers.device),
            "eta_s": speed.step_s * (self._job.total_steps - state.step),
            "skipped_steps": state.step - state.optimizer_steps,
            "notices": list(self._notices),
        }

    def _check_first_loss(self, state: TrainState, row: dict[str, float]) -> None:
        if row["step"] == 1 and self._warns_of_loss:
            pairwise = getattr(state.student, "logit_bias", None) is not None
            warning = sanity.high_first_loss(row["base"], self._job.candidates, pairwise=pairwise)
            self._notices += [warning] if warning else []


class Checkpoint:
    """The run's checkpoints, copied by worker 0 and written by a thread while training continues.

    Args:
        workers: this worker among all.
        run: the run's folder.
        job: arguments of the worker.
        activation: the model's activation function, as JSON.
    """

    def __init__(self, workers: Workers, run: Storage, job: Job, activation: Any) -> None:
        self._workers, self._run, self._job, self._activation = workers, run, job, activation
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: tuple[int, Future[str]] | None = None
        self._written: list[int] = []
        self._asked = False

    def asked(self) -> bool:
        """Return whether the driver, which is about to end, wants a checkpoint; true only once."""
        if self._asked or not self._workers.is_first:
            return False
        self._asked = stopping.asked(self._run.uri)
        return self._asked

    def must_leave(self) -> bool:
        """Return whether Ray Train's controller wants the workers to leave."""
        return self._workers.is_first and stopping.must_leave(self._run.uri)

    def after_step(self, state: TrainState, interval: LogInterval) -> None:
        if interval.save and self._workers.is_first:
            self.wait()  # for the checkpoint before: one copy of the state at a time
            taken = checkpoint.snapshot(state, self._record(state))
            self._writing = state.step, self._thread.submit(checkpoint.write, self._run, taken)
            if interval.stop:
                self.wait()
                stopping.answer(self._run.uri, state.step)
            if interval.leave:
                self.wait()

    def wait(self) -> None:
        """Wait until the latest checkpoint is written.

        Raises:
            Exception: whatever writing it raised.
        """
        if self._writing is not None:
            step, future = self._writing
            future.result()
            self._written.append(step)
            self._writing = None

    def next_written(self) -> int:
        """Return the step of the earliest written checkpoint not yet returned; 0 if there is none."""
        if self._writing is not None and self._writing[1].done():
            self.wait()
        return self._written.pop(0) if self._written else 0

    def _record(self, state: TrainState) -> dict[str, Any]:
        config, job = self._job.config, self._job
        return {
            "fingerprint": job.fingerprint,
            "samples": state.step * config.global_batch_size,
            "total_steps": job.total_steps,
            "learning_rate": learning_rate(config.optimizer, state.optimizer_steps, job.total_steps),
            "order": canonical(job.order),
            "rng": "torch is seeded at every step from (seed, step, worker)",
            "config": canonical(config),
            "versions": job.versions,
            "activation": self._activation,
        }


class Validate:
    """Records that a checkpoint waits for its validation; ReportToRay then hands it to Ray Train."""

    def __init__(self, workers: Workers, run: Storage, settings: ValidationSettings) -> None:
        self._workers, self._run, self._settings = workers, run, settings

    def after_step(self, state: TrainState, interval: LogInterval) -> None:
        if interval.written:
            self.request(interval.written)

    def request(self, step: int) -> None:
        """Record the request if a validation is due after `step` steps."""
        if self._workers.is_first and self._settings.due(step):
            validation.request(self._run, step)


class ReportToRay:
    """Metrics and checkpoints for Ray Train; each report waits for all workers."""

    def __init__(self, workers: Workers, config: TrainConfig) -> None:
        self._workers, self._config = workers, config

    def after_step(self, state: TrainState, interval: LogInterval) -> None:
        samples_per_s = self._config.global_batch_size / interval.speed.step_s
        metrics = {**interval.rows[-1], "samples_per_s": samples_per_s}
        if interval.written:
            self.report_checkpoint(interval.written, metrics)
        elif interval.report:
            ray.train.report(metrics)

    def report_checkpoint(self, step: int, metrics: dict[str, Any]) -> None:
        """Report the checkpoint after `step` steps, and that it is to be validated if that is due.

        Every worker calls this, but only worker 0 passes both (Ray refuses a validation alone).
        """
        name = checkpoint_folders.folder_name(step)
        ray.train.report(
            metrics,
            checkpoint=self._handle(name),
            checkpoint_dir_name=name,
            # The checkpoint is already in its final place.
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
            validation=self._workers.is_first and self._config.validation.due(step),
        )

    def _handle(self, name: str) -> ray.train.Checkpoint | None:
        if not self._workers.is_first:
            return None
        storage = ray.train.get_context().get_storage()
        path = f"{storage.experiment_fs_path}/{name}"
        return ray.train.Checkpoint(path, filesystem=storage.storage_filesystem)


def _gradient_norm(state: TrainState) -> float | None:
    """Return the L2 norm of the latest step's gradient, after clipping; None in fp16, where it is scaled."""
    if state.scaler.is_enabled():
        return None
    gradients = [p.grad for p in state.student.parameters() if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients))


def _peak_memory_gb(device: torch.device) -> float | None:
    """Return the most memory that tensors took on a GPU so far; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None
