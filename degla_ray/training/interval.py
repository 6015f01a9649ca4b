"""Log intervals: steps, about a second of them, after which all workers meet.

Between two meetings no worker waits for another except in its step's own collectives. At a meeting the loss
terms of the interval are averaged over the workers, and worker 0 decides for all whether to save and when the
next interval ends, because the workers' clocks differ.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from degla_ray.config import CheckpointConfig, TrainConfig, ValidationSettings
from degla_ray.training.job import LOG_INTERVAL_S, REPORT_S
from degla_ray.training.speed import Speed, SpeedMeter
from degla_ray.training.state import TrainState
from degla_ray.training.usage import Usage, UsageMeter
from degla_ray.training.workers import StepTerms, Workers

if TYPE_CHECKING:
    from degla_ray.loader.loader import Loader

MAX_SKIPPED = 25
"""Consecutive steps up to the end of a log interval that may be skipped.

In fp16 each halves the scale: 25 take it from 65,536 to 0.002.
"""


@dataclass(frozen=True, kw_only=True)
class LogInterval:
    """A finished log interval; the same on all workers but for the times.

    Attributes:
        rows: `step` and the step's terms, averaged over the workers, of each step.
        speed: average speed over the last ten minutes.
        wait_share: share of the interval (0 to 1) spent waiting for data.
        wait_s: seconds so far spent waiting for data, except for the first batch.
        first_wait_s: seconds spent waiting for the first batch.
        usage: what the interval's steps took of the device.
        save: whether to save a checkpoint.
        stop: whether the driver waits for it, because it is about to end.
        leave: whether the workers leave after it, to be started anew.
        written: step of a checkpoint that was written since the last interval; 0 if none was.
        report: whether to report to Ray Train.
    """

    rows: list[dict[str, float]]
    speed: Speed
    wait_share: float
    wait_s: float
    first_wait_s: float
    usage: Usage
    save: bool
    stop: bool
    leave: bool
    written: int
    report: bool


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When to save, and where log intervals end. Pure arithmetic.

    Attributes:
        checkpoint: settings of checkpoints.
        validation: settings of validations, each of which needs a checkpoint.
        total_steps: steps of the whole run.
    """

    checkpoint: CheckpointConfig
    validation: ValidationSettings
    total_steps: int

    def must_save(self, step: int, unsaved_s: float) -> bool:
        """Return whether to save after `step` steps, `unsaved_s` seconds after the latest checkpoint."""
        steps, minutes = self.checkpoint.every_steps, self.checkpoint.every_minutes
        by_step = steps is not None and step % steps == 0
        by_time = minutes is not None and unsaved_s >= 60 * minutes
        return step == self.total_steps or by_step or by_time or self.validation.due(step)

    def next_end(self, step: int, step_s: float) -> int:
        """Return the step that ends the interval after `step`: about a second later, at a save at the latest.

        Args:
            step: steps so far.
            step_s: seconds per step.
        """
        end = step + max(1, round(LOG_INTERVAL_S / step_s))
        for every in (self.checkpoint.every_steps, self.validation.every_steps):
            if every:
                end = min(end, (step // every + 1) * every)
        return min(end, self.total_steps)


class Saver(Protocol):
    """The part of the Checkpoint hook that an interval's end needs; on worker 0 only it has work."""

    def next_written(self) -> int:
        """Return the step of a checkpoint that was written; 0 if none was."""
        ...

    def asked(self) -> bool:
        """Return whether the driver wants a checkpoint now."""
        ...

    def must_leave(self) -> bool:
        """Return whether the workers are to leave now."""
        ...


class Intervals:
    """The sequence of a worker's log intervals; the first is one step, to show soon that training works."""

    def __init__(
        self,
        workers: Workers,
        config: TrainConfig,
        total_steps: int,
        loader: Loader,
        first_step: int,
        saver: Saver,
    ) -> None:
        self._workers, self._loader, self._saver = workers, loader, saver
        self._schedule = Schedule(
            checkpoint=config.checkpoint, validation=config.validation, total_steps=total_steps
        )
        self._rows: list[StepTerms] = []
        self._end = first_step + 1
        self._first_step = first_step
        now = time.monotonic()
        self._began = self._ended = self._saved = self._reported = now
        self._meter = SpeedMeter(now)
        self._hooks_s = self._waited_s = 0.0
        self._current: LogInterval | None = None

    def add(self, row: StepTerms) -> None:
        """Add the terms of the step just done."""
        self._rows.append(row)

    def is_over(self, state: TrainState) -> bool:
        """Return whether the step just done ends the interval, on all workers alike."""
        return state.step == self._end

    def finish(self, state: TrainState, meter: UsageMeter) -> LogInterval:
        """Meet the other workers and return the interval."""
        rows = self._workers.average(self._rows)  # waits for the device and for the other workers
        self._rows = []
        self._ended = time.monotonic()
        trained_s = self._ended - self._began
        step_s = trained_s / len(rows)
        stop, leave = self._saver.asked(), self._saver.must_leave()
        must_save = stop or leave or self._schedule.must_save(state.step, self._ended - self._saved)
        must_report = must_save or self._ended - self._reported >= REPORT_S
        end, written = self._schedule.next_end(state.step, step_s), self._saver.next_written()
        save, report, self._end, written, stop_all, leave_all = self._workers.broadcast(
            [must_save, must_report, end, written, stop, leave]
        )
        waited_s, self._waited_s = self._loader.wait_s - self._waited_s, self._loader.wait_s
        steps = state.step - self._first_step
        self._current = LogInterval(
            rows=[{"step": step, **row} for step, row in enumerate(rows, state.step - len(rows) + 1)],
            speed=self._meter.measure(self._ended, steps, self._hooks_s + self._loader.wait_s),
            wait_share=min(1.0, waited_s / trained_s),
            wait_s=self._loader.wait_s,
            first_wait_s=self._loader.first_wait_s,
            usage=meter.take(self._workers.world_size),
            save=bool(save),
            stop=bool(stop_all),
            leave=bool(leave_all),
            written=written,
            report=bool(report),
        )
        return self._current

    def begin(self) -> None:
        """Begin the next interval, once the hooks have used the finished one."""
        assert self._current is not None
        self._began = time.monotonic()
        self._hooks_s += self._began - self._ended
        if self._current.save:
            self._saved = self._began
        if self._current.report:
            self._reported = self._began
