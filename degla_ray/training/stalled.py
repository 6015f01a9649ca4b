"""End a run that makes no step any more, and say which worker holds it up.

A collective waits until torch's own timeout, whose error names a waiting worker and not the missing one. Each
worker therefore has a thread that puts its step into Ray's key-value store every two seconds (a millisecond).
If a step takes longer than `stall_minutes`, the thread records which worker has fallen silent and ends its
process. Ray Train then starts all workers again, and recovery.py tells what was recorded.
"""

from __future__ import annotations

import dataclasses
import json
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ray
from ray.experimental.internal_kv import (
    _internal_kv_del,
    _internal_kv_get,
    _internal_kv_initialized,
    _internal_kv_put,
)

if TYPE_CHECKING:  # recovery.py, which reads what was recorded, does without torch
    from degla_ray.training.step import TrainStep
    from degla_ray.training.workers import Workers

BEAT_S = 2.0
"""Seconds between two beats of a worker."""
_SILENT_BEATS = 3  # a worker without a new beat for as many is silent
_NAMESPACE = "degla"


@dataclass(frozen=True, kw_only=True)
class Beat:
    """What a worker says of itself.

    Attributes:
        rank: number of the worker.
        host: address of its node.
        pid: its process.
        step: steps that it has finished.
        phase: phase of the next step that it finished last; `other` or empty if none.
        count: beats so far.
    """

    rank: int
    host: str
    pid: int
    step: int
    phase: str
    count: int

    def __str__(self) -> str:
        return f"worker {self.rank} (host {self.host}, pid {self.pid})"


class Watch:
    """Ends this worker's process if a step takes too long, during its `with` block.

    Args:
        workers: this worker among all.
        run: URI of the run's folder.
        limit_s: seconds that a step may take.
        step: what is watched.
    """

    def __init__(self, workers: Workers, run: str, limit_s: float, step: TrainStep) -> None:
        self._workers, self._run, self._limit_s, self._step = workers, run, limit_s, step
        self._host, self._count = ray.util.get_node_ip_address(), 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stall-watch", daemon=True)

    def __enter__(self) -> Watch:
        self._beat()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        step, since = -1, time.monotonic()
        while not self._over.wait(BEAT_S):
            self._beat()
            if self._step.state.step != step:
                step, since = self._step.state.step, time.monotonic()
            elif time.monotonic() - since > self._limit_s:
                self._end(time.monotonic() - since)

    def _beat(self) -> None:
        self._count += 1
        beat = Beat(
            rank=self._workers.rank,
            host=self._host,
            pid=os.getpid(),
            step=self._step.state.step,
            phase=self._step.usage.clock.latest,
            count=self._count,
        )
        _internal_kv_put(self._key(beat.rank), json.dumps(dataclasses.asdict(beat)), namespace=_NAMESPACE)

    def _key(self, rank: int) -> str:
        return f"beat {rank} {self._run}"

    def _end(self, seconds: float) -> None:
        before = self._beats()
        for _ in range(_SILENT_BEATS):
            if self._over.wait(BEAT_S):
                return
            self._beat()
        message = describe(seconds, before, self._beats())
        _internal_kv_put(f"stalled {self._run}", message, overwrite=False, namespace=_NAMESPACE)
        os._exit(1)  # the main thread waits in C code, which no exception reaches

    def _beats(self) -> list[Beat]:
        found = [
            _internal_kv_get(self._key(n), namespace=_NAMESPACE) for n in range(self._workers.world_size)
        ]
        return [Beat(**json.loads(beat)) for beat in found if beat is not None]


def describe(seconds: float, before: Sequence[Beat], after: Sequence[Beat]) -> str:
    """Return which workers hold a run up.

    Args:
        seconds: for how long no step ended.
        before: the latest beat of each worker.
        after: the same some beats later.
    """
    counts = {beat.rank: beat.count for beat in before}
    silent = [beat for beat in after if counts.get(beat.rank) == beat.count]
    told = [f"{beat} was last heard after step {beat.step}" for beat in silent]
    told += [f"{beat} waits in step {beat.step + 1}{_phase(beat)}" for beat in after if beat not in silent]
    return f"no step for {seconds:.0f} s: {'; '.join(told)}"


def _phase(beat: Beat) -> str:
    return "" if beat.phase in ("", "other") else f" after its phase {beat.phase!r}"


def take(run: str) -> str | None:
    """Return what held up the run's workers, and forget it; None if nothing did."""
    if not _internal_kv_initialized():
        return None
    found = _internal_kv_get(f"stalled {run}", namespace=_NAMESPACE)
    _internal_kv_del(f"stalled {run}", namespace=_NAMESPACE)
    return None if found is None else found.decode()
