"""The engines of a run: Ray actors that live from its first question to its last.

An engine takes half a minute to start (a large one several), and a run has many rounds and windows, each a
pipeline of Ray Data of its own: so engines stand beside the pipeline, and its stage `Ask` hands them blocks.
An actor that dies is started again by Ray, which repeats what it was asked; `generation.stall_s` ends a run
whose engines die again and again.
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
"""Blocks that an engine has at a time: the next comes in while the last answers of one are being written."""


@contextmanager
def engine_pool(actors: Actors, stall_s: float, clock: EngineClock | None = None) -> Iterator[list[Any]]:
    """Handles of `max_size` engines, of which `min_size` are ready; they end with the context.

    Args:
        actors: what to start.
        stall_s: seconds to wait for `min_size` of them.
        clock: to sum up how long they live.

    Raises:
        DeglaError: an engine cannot start; says what it said. Or none did for `stall_s`.
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
            raise DeglaError(f"generation.stall_s: {found}; has the cluster room for all of them?")
        yield handles
    finally:
        if clock is not None:
            clock.stop()
        for handle in handles:
            ray.kill(handle)


class Ask:
    """A stage of Ray Data: hands each block to the engine that has the least to do.

    Args:
        engines: handles; those that have not started yet are left out until they have.
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
