"""Steps whose loss or gradients are not finite: the run stops and names them, or goes on without them.

A step's rows are a function of its number, so its samples are looked up only when they are wanted. They are
written to `nonfinite_steps/` in the run's folder.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pyarrow as pa

from degla_ray.errors import SettingError
from degla_ray.loader.decode import with_hard_negatives
from degla_ray.loader.order import BatchOrder
from degla_ray.loader.samples import Samples
from degla_ray.storage import Storage
from degla_ray.training.interval import MAX_SKIPPED, LogInterval
from degla_ray.training.job import Job
from degla_ray.training.state import TrainState
from degla_ray.training.workers import Workers

FOLDER = "nonfinite_steps"
NAMED = 3
"""Samples named in a message; the file has all."""
NOTICES = 10
"""Skipped steps that the console names; the file of each is written, and progress has their number."""


def sample_ids(samples: Samples, order: BatchOrder, step: int) -> list[str]:
    """Return the ids of the samples of the global batch of `step`, which counts from 1."""
    visits = order.batch(step - 1)
    if samples.neighbour.shape[1]:
        visits = with_hard_negatives(visits, samples, order.seed)
    return samples.sample_id.take(pa.array(visits.row_B)).to_pylist()


class NonfiniteSteps:
    """The check of each finished log interval; all workers find the same.

    Args:
        workers: this worker among all.
        run: the run's folder.
        job: arguments of the worker.
        ids: returns the ids of a step's samples.
    """

    def __init__(self, workers: Workers, run: Storage, job: Job, ids: Callable[[int], list[str]]) -> None:
        self._workers, self._run, self._ids = workers, run, ids
        self._config, self._total_steps = job.config, job.total_steps
        self._named = 0

    def check(self, state: TrainState, interval: LogInterval) -> list[str]:
        """Return notices about the interval's skipped steps.

        Raises:
            SettingError: a loss is not finite and its step was not skipped, or too many in a row were.
        """
        self._check_skipped(state, interval)
        if self._config.compute.precision == "fp16":  # its scaler skips steps to find its scale
            return []
        notices = []
        for row in interval.rows:
            if math.isfinite(row["loss"]):
                continue
            found = self._found(row)
            if self._config.nonfinite_steps == "stop":
                better = f"a lower one, or nonfinite_steps skip: {found}"
                raise SettingError("optimizer.lr", self._config.optimizer.lr, better)
            notices.append(f"skipped: {found}")
        room = max(0, NOTICES - self._named)
        self._named += len(notices)
        return notices[:room]

    def _found(self, row: dict[str, float]) -> str:
        """Return what is known of a step; worker 0 also writes it."""
        step = int(row["step"])
        ids, name = self._ids(step), f"step_{step:09d}.json"
        if self._workers.is_first:
            self._run.write_json({"step": step, "terms": _terms(row), "samples": ids}, FOLDER, name)
        first, path = ", ".join(ids[:NAMED]), self._run.path(FOLDER, name)
        return (
            f"the loss of step {step} is not finite ({_terms(row)}); its samples: {first} … (all in {path})"
        )

    def _check_skipped(self, state: TrainState, interval: LogInterval) -> None:
        # A single skip at the start is normal: fp16's scaler searches for its scale.
        ended = state.step == self._total_steps
        learned_nothing = ended and state.optimizer_steps == 0 and state.skipped > 1
        if state.skipped < MAX_SKIPPED and not learned_nothing:
            return
        precision, lr = self._config.compute.precision, self._config.optimizer.lr
        in_fp16 = precision == "fp16"
        raise SettingError(
            "compute.precision" if in_fp16 else "optimizer.lr",
            precision if in_fp16 else lr,
            f"{f'bf16 or fp32, or a lower optimizer.lr ({lr:g})' if in_fp16 else 'a lower one'}: the last "
            f"{state.skipped} steps up to step {state.step} were skipped because their gradients are not "
            f"finite ({_terms(interval.rows[-1])})",
        )


def _terms(row: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name not in ("step", "lr"))
