"""What a run does when it loses workers: how often it retries, how long it waits, and what it says.

Ray Train asks the policy in its controller, whose output is not the job's console. The lines therefore go
through a file in the run's folder to the driver's Monitor (progress.py).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence

import ray
from ray.exceptions import RayActorError
from ray.train import FailureConfig
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.failure_handling import FailureDecision, FailurePolicy
from ray.train.v2.api.exceptions import (
    ControllerError,
    PreemptionError,
    TrainingFailedError,
    WorkerGroupError,
)

from degla_ray import resources
from degla_ray.cli import user_error
from degla_ray.config import TrainConfig
from degla_ray.errors import DeglaError, one_line
from degla_ray.resources import Need
from degla_ray.storage import Storage
from degla_ray.training import checkpoint_folders, stalled, stopping
from degla_ray.training.job import ERROR, PROGRESS, RECOVERY

_HOST = re.compile(r"\bip: ([\w.:]+)|node_ip='([\w.:]+)'")
MAX_FAILURES = 2
"""Losses of workers in a row, without a new checkpoint in between, after which the run still goes on."""


class Recovery(FailurePolicy):
    """Retry from the latest checkpoint, as long as the run gets on.

    A preempted node and a wait for nodes do not count as failures. A wait ends after `ray.wait_minutes`.

    Args:
        config: the run's config.
        workers: what the workers reserve.
        name: name of the run, for the console.
        run: the run's folder.
        beside: what else needs room before workers start.
    """

    def __init__(
        self, config: TrainConfig, workers: Need, name: str, run: Storage, beside: Sequence[Need] = ()
    ) -> None:
        super().__init__(FailureConfig())
        self._config, self._workers, self._name, self._run = config, workers, name, run
        self._beside = beside
        self._failures, self._saved = 0, self._latest()
        self._waits_since: float | None = None
        self._lost = ""

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Return whether to retry, after telling what happened."""
        # a worker found what would recur, on a full disk without a file about it
        if self._run.exists(ERROR) or user_error(training_failed_error):
            return FailureDecision.RAISE
        if isinstance(training_failed_error, ControllerError):
            failure = training_failed_error.controller_failure
            waiting = isinstance(failure, WorkerGroupStartupTimeoutError | WorkerGroupStartupFailedError)
            return self.waits() if waiting else FailureDecision.RAISE
        self._waits_since = None
        if any(isinstance(e, stopping.Left) for e in failures_of(training_failed_error).values()):
            self._lost = ""
            return self.waits()
        self._lost = stalled.take(self._run.uri) or f"{cause(training_failed_error)}{self._at_step()}"
        saved = self._latest()
        if saved > self._saved:
            self._failures, self._saved = 0, saved
        if not isinstance(training_failed_error, PreemptionError):
            self._failures += 1
        left = MAX_FAILURES - self._failures
        if left < 0:
            if _died(training_failed_error):  # no bug of this program, whose traceback would help
                why = f"{self._lost}, and {MAX_FAILURES} times before without a checkpoint in between"
                then = f"the same command continues from step {saved}"
                self._run.write_json({"message": f"{self._name}: {why}; {then}"}, ERROR)
            return FailureDecision.RAISE
        tries = f"{left} more {'try' if left == 1 else 'tries'} before the next checkpoint"
        self._say(f"{self._lost}; continues from step {saved} ({tries})")
        return self.waits()

    def waits(self) -> FailureDecision:
        """Tell of workers that find no room; give up after the deadline."""
        room = resources.fitting(self._workers, self._beside)
        if room >= self._workers.count:
            self._waits_since = None
            return FailureDecision.RETRY
        if self._waits_since is None:
            self._waits_since = time.monotonic()
        limit = self._config.ray.wait_minutes
        workers = f"{self._workers.count} worker{'s' if self._workers.count > 1 else ''}"
        line = f"waits for room for {workers}, now {room}"
        line += f" ({self._lost})" if self._lost else ""
        line += f"; continues from step {self._latest()}"
        batch = self._config.global_batch_size
        if fewer := max((n for n in range(1, room + 1) if batch % n == 0), default=0):
            line += f"; go on with fewer: --num_workers {fewer}"
        if time.monotonic() - self._waits_since > 60 * limit:
            message = f"ray.wait_minutes: found {limit:g}; {self._name} {line}"
            self._run.write_json({"message": message}, ERROR)
            return FailureDecision.RAISE
        self._say(line)
        return FailureDecision.RETRY

    def _say(self, line: str) -> None:
        say(self._run, line)

    def _latest(self) -> int:
        return max(checkpoint_folders.complete(self._run), default=0)

    def _at_step(self) -> str:
        try:
            return f" at step {self._run.read_json(PROGRESS)['step']}"
        except (OSError, DeglaError):
            return " before its first step"


def say(run: Storage, line: str) -> None:
    """Append a line for the console to the run's folder, unless it is the latest there."""
    lines = run.read_json(RECOVERY) if run.exists(RECOVERY) else []
    if lines[-1:] != [line]:
        run.write_json([*lines, line], RECOVERY)


def failures_of(error: TrainingFailedError) -> dict[int, Exception]:
    """Return each failed worker's error, by rank."""
    return error.worker_failures if isinstance(error, WorkerGroupError) else {}


def cause(error: TrainingFailedError) -> str:
    """Return what ended the workers: the hosts of those that died, else the first worker's own error."""
    if isinstance(error, PreemptionError):
        info = error.preemption_info
        known = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
        hosts = dict.fromkeys(known.get(node, node) for node in info.preempted_node_ids)
        return f"lost worker {_listed(info.preempted_ranks)} on {_listed(hosts)}, which was taken away,"
    if died := _died(error):
        ips = [found[1] or found[2] for text in died.values() if (found := _HOST.search(text))]
        return f"lost worker {_listed(sorted(died))}" + (f" on {_listed(dict.fromkeys(ips))}" if ips else "")
    rank, first = next(iter(sorted(failures_of(error).items())), (None, error))
    return one_line(first) if rank is None else f"worker {rank} failed ({one_line(first)})"


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def _died(error: TrainingFailedError) -> dict[int, str]:
    """Return what Ray says of each worker whose process or node ended, by rank."""
    failed = failures_of(error).items()
    return {rank: str(e) for rank, e in failed if isinstance(_unwrapped(e), RayActorError)}


def _unwrapped(error: Exception) -> Exception:
    """Return what the health check found, which Ray Train wraps; other errors as they are."""
    return error.health_check_failure if isinstance(error, WorkerHealthCheckFailedError) else error
