"""The engine pool of a run: Ray actors that live from its first request to its last.

An engine takes half a minute to start (a large one several minutes), and a run executes one Ray Data pipeline
per round and window. The engines therefore live outside the pipelines, whose stage `Ask` sends them blocks.
Ray restarts an actor that dies and repeats its calls; `generation.stall_s` ends a run whose engines keep
dying.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from degla_ray.errors import DeglaError
from degla_ray.negatives.llm.engine_clock import WATCH, EngineClock
from degla_ray.negatives.llm.engines import Actors

CALLS_AT_A_TIME = 2
"""Concurrent blocks per engine: the next one arrives while the last answers of the previous are generated."""


@contextmanager
def engine_pool(actors: Actors, stall_s: float, clock: EngineClock | None = None) -> Iterator[list[Any]]:
    """Start `max_size` engines and yield their handles once `min_size` are ready; kill them on exit.

    Args:
        actors: the actors to start.
        stall_s: seconds to wait for `min_size` ready engines.
        clock: adds up the engines' lifetimes.

    Raises:
        DeglaError: an engine failed to start (the message quotes its error), or fewer than `min_size` were
            ready after `stall_s`.
    """
    import ray

    engine = ray.remote(concurrency_groups={WATCH: 1})(actors.actor).options(
        max_restarts=-1, max_task_retries=-1, max_concurrency=CALLS_AT_A_TIME, **actors.resources
    )
    handles = [engine.remote(**actors.arguments) for _ in range(actors.max_size)]
    try:
        if clock is not None:
            clock.watch(handles)
        ready = [handle.ready.remote() for handle in handles]
        done, _ = ray.wait(ready, num_returns=actors.min_size, timeout=stall_s)
        try:
            ray.get(done)
        except ray.exceptions.RayError as error:
            said = str(error).strip().splitlines()[-1]
            raise DeglaError(f"the engine did not start: {said}") from error
        if len(done) < actors.min_size:
            found = f"{len(done)} of {actors.min_size} engines ready after {stall_s:g} s"
            raise DeglaError(f"generation.stall_s: {found}; does the cluster have room for all?")
        yield handles
    finally:
        if clock is not None:
            clock.stop()
        for handle in handles:
            ray.kill(handle)


class Ask:
    """Ray Data stage that sends each block to the least busy engine.

    Args:
        engines: handles; an engine receives blocks only once it is ready.
    """

    def __init__(self, engines: list[Any]) -> None:
        self._engines = engines
        self._starting = {handle.ready.remote(): number for number, handle in enumerate(engines)}
        self._busy: dict[int, int] = {}
        self._lock = threading.Lock()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import ray

        with self._lock:
            if self._starting:
                wait_s = 0.0 if self._busy else None
                started, _ = ray.wait(list(self._starting), num_returns=1, timeout=wait_s)
                self._busy |= {self._starting.pop(ref): 0 for ref in started}
            number = min(self._busy, key=lambda n: self._busy[n])
            self._busy[number] += 1
        try:
            answered: dict[str, Any] = ray.get(self._engines[number].answer.remote(batch))
            return answered
        finally:
            with self._lock:
                self._busy[number] -= 1
