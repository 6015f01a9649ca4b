"""Progress of a run on the console and in MLflow, read by the driver from the run's folder.

Worker 0 writes `progress.json` once a second and the trace every few seconds; a thread of the driver reads
them. Progress therefore needs no extra process and no report (a barrier for all workers), and works
on any filesystem. A terminal shows one line that is updated in place and fits its width; elsewhere a line is
printed every ten seconds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import threading
import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from degla_ray import tracking
from degla_ray.config import TrackingConfig
from degla_ray.errors import DataError, one_line
from degla_ray.storage import Storage
from degla_ray.training import trace
from degla_ray.training.console import describe
from degla_ray.training.job import PROGRESS, RECOVERY, REPORT_S, TRACE
from degla_ray.training.validation import read_all, set_logged

POLL_S = 1.0
LINE_S = 10.0
VALIDATION_S = 2.0
"""Seconds between checks for validations that ended."""
BEHIND = 2
"""Number of waiting validations above which the console reports a queue."""
SILENCE_S = 300.0
"""Seconds without a new step after which the console reports it, each time."""
MOMENTS = (
    *("samples_per_s", "training_share", "wait_share", "wait_s"),
    *("teacher_distance", "gradient_norm", "peak_memory_gb", "tokens_per_s", "mfu", "skipped_steps"),
    *("data_ms", "forward_ms", "backward_ms", "optimizer_ms", "other_ms"),
)
"""Values of `progress.json` that MLflow gets beside the loss terms."""
POINTS = 250
"""Maximum points of a curve in MLflow (each costs 7 ms), at fixed steps, also in a resumed run."""
log = logging.getLogger(__name__)


class Monitor:
    """Shows and logs a run's progress during its `with` block.

    Args:
        run: the run's folder.
        name: name of the run, shown on the console.
        total_steps: steps of the whole run.
        config: MLflow settings.
        run_id: MLflow run; None if tracking is off.
        resumed_step: step from which the run resumes; curves up to there are already in MLflow.
    """

    def __init__(
        self,
        run: Storage,
        name: str,
        total_steps: int,
        config: TrackingConfig,
        run_id: str | None,
        resumed_step: int = 0,
    ) -> None:
        self.run, self.name, self.total_steps = run, name, total_steps
        self.config, self.run_id = config, run_id
        self.console = Console()
        self._stop = threading.Event()
        self._interrupted = False
        self._thread = threading.Thread(target=self._watch, name="training-progress", daemon=True)
        self._over = threading.Event()
        # A thread of its own, because a server that is down must not hold up the console.
        self._recorder = threading.Thread(target=self._record, name="training-mlflow", daemon=True)
        # Points between the last checkpoint and a kill are already in MLflow: those steps are repeated with
        # the same losses.
        self._logged = max(resumed_step, tracking.last_step(config, run_id, "train/loss"))
        self._shown_at = self._moved_at = time.monotonic()
        self._last: dict[str, Any] = {}
        self._shown: dict[str, Any] = {}
        self._validations_at = time.monotonic()
        # Validations that ended, by step; those that ended before a resume are not printed again.
        self._validations = {v.step: v for v in read_all(run) if v.state != "waiting"}
        self._waiting: list[int] = []
        self._recoveries = 0
        self._printed_wait = False
        self._failure = self._mlflow_failure = ""
        self._printed_notices: set[str] = set()

    def __enter__(self) -> Monitor:
        self._thread.start()
        self._recorder.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._interrupted = kind is not None
        self._stop.set()
        self._thread.join()
        self._over.set()
        if not self._interrupted:  # it may wait for a server for minutes
            self._recorder.join()

    def _watch(self) -> None:
        live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        if live is not None:
            live.start()
            live.update(Text(f"{self.name}: starting workers …", no_wrap=True), refresh=True)
        try:
            while not self._stop.wait(POLL_S):
                self._look_safely(live)
            if not self._interrupted:  # a killed job has only 3 s to end its MLflow run
                self._look_safely(live, last=True)
        finally:
            if live is not None:
                live.stop()

    def _look_safely(self, live: Live | None, last: bool = False) -> None:
        """Update the display and log exceptions, which would otherwise end the thread silently."""
        try:
            self._look(live, last)
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
            if failure != self._failure:  # logged, because the console itself may have failed
                log.warning("%s: cannot show progress (%s); training continues", self.name, failure)
            self._failure = failure

    def _look(self, live: Live | None, last: bool = False) -> None:
        try:
            progress = self.run.read_json(PROGRESS) if self.run.exists(PROGRESS) else {}
        except (OSError, DataError):  # the file is being replaced on a filesystem without atomic rename
            return
        now = time.monotonic()
        if progress != self._last:
            self._last, self._moved_at = progress, now
        elif now - self._moved_at > SILENCE_S and not self._printed_wait:
            self.console.print(f"{self.name}: no new step for {SILENCE_S:.0f} s")
            self._moved_at = now
        for notice in progress.get("notices", []):
            if notice not in self._printed_notices:
                self._printed_notices.add(notice)
                self._print(f"{self.name}: {notice}")
        if last or now - self._validations_at >= VALIDATION_S:
            self._validations_at = now
            with contextlib.suppress(OSError, DataError):  # as above
                if last or now - self._moved_at > VALIDATION_S:
                    self._look_at_recovery()
                self._look_at_validations(trained=progress.get("step") == self.total_steps)
        if progress and progress != self._shown:
            self._show(progress, live, now, last)

    def _record(self) -> None:
        """Bring curves and validations to MLflow every few seconds, and once more at the end."""
        over = self.run_id is None
        while not over:
            over = self._over.wait(REPORT_S)
            if self._interrupted:
                return
            try:
                self._log(self._last)
                self._log_validations()
            except Exception as error:  # an unreachable store must not end a training run
                where = f"they are in {self.run.path(TRACE)}" if over else "tried again"
                failure = f"MLflow: curves after step {self._logged} not recorded, {where}: {one_line(error)}"
                if failure != self._mlflow_failure:
                    self._print(f"{self.name}: {failure}")
                self._mlflow_failure = failure

    def _show(self, progress: dict[str, Any], live: Live | None, now: float, last: bool) -> None:
        if live is not None:
            live.update(Text(self._line(progress, self.console.width), no_wrap=True), refresh=True)
        elif last or now - self._shown_at >= LINE_S:
            self._print(self._line(progress))
        else:
            return
        self._shown, self._shown_at = progress, now

    def _line(self, progress: dict[str, Any], width: int | None = None) -> str:
        done = [v for v in self._validations.values() if v.state == "done"]
        return describe(self.name, progress, max(done, key=lambda v: v.step, default=None), width)

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _look_at_recovery(self) -> None:
        """Print what happened to lost workers."""
        lines = self.run.read_json(RECOVERY) if self.run.exists(RECOVERY) else []
        for line in lines[self._recoveries :]:
            self._print(f"{self.name}: {line}")
        self._recoveries = len(lines)

    def _look_at_validations(self, trained: bool) -> None:
        """Print which validations ended, that their queue grows, and that the run waits for them."""
        waiting: list[int] = []
        for validation in read_all(self.run, without=set(self._validations)):
            if validation.state == "waiting":
                waiting.append(validation.step)
                continue
            self._validations[validation.step] = validation
            if validation.state == "done":
                self._print(f"{self.name}: {validation.describe()} ({validation.seconds:.0f} s)")
            else:
                failed = f"{self.name}: the validation of step {validation.step} failed: {validation.error}"
                self._print(f"{failed}; training continues")
        steps = ", ".join(map(str, waiting))
        if trained and waiting and not self._printed_wait:
            self._printed_wait = True
            self._print(f"{self.name}: trained; waiting for the validation of step {steps}")
        elif len(waiting) > max(BEHIND, len(self._waiting)):
            self._print(f"{self.name}: validations of step {steps} are queued; their checkpoints are kept")
        self._waiting = waiting

    def _log_validations(self) -> None:
        for step, validation in list(self._validations.items()):
            if validation.state == "done" and not validation.logged:
                known = tracking.last_step(self.config, self.run_id, f"eval/{validation.headline}")
                if known < step:  # else the run was killed between logging and recording that
                    metrics = {f"eval/{k}": v for k, v in validation.metrics.items()}
                    tracking.log_metrics(self.config, self.run_id, metrics, step)
                set_logged(self.run, validation)
                self._validations[step] = dataclasses.replace(validation, logged=True)

    def _log(self, progress: dict[str, Any]) -> None:
        """Log exact values of every n-th step, and with the last of them the current speed."""
        if not progress:
            return
        rows = trace.rows_after(self.run, self._logged)
        grid = math.ceil(self.total_steps / POINTS)
        new = [row for row in rows if row["step"] % grid == 0 or row["step"] == self.total_steps]
        if not new:
            return
        moment = {k: progress.get(k) for k in MOMENTS}
        new[-1] |= {k: v for k, v in moment.items() if v is not None}
        for row in new:
            if self._interrupted:
                return
            step = int(row.pop("step"))
            tracking.log_metrics(self.config, self.run_id, {f"train/{k}": v for k, v in row.items()}, step)
            self._logged = step
