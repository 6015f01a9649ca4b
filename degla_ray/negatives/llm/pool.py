"""The engine pool of a run: Ray actors that live from its first request to its last, and their clock.

An engine takes half a minute to start (a large one several minutes) and then receives blocks of requests
(sending.py). Ray restarts an actor that dies and repeats its calls; `generation.stall_s` ends a run whose
engines keep dying.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from degla_ray.errors import DeglaError

BLOCK = 32
"""Requests in one call of an engine: a call returns with its slowest request, a crash can lose some calls."""
WATCH = "watch"
"""Ray concurrency group of the clock's calls, which an engine answers even while it is busy."""
EVERY_S = 1.0
"""Seconds between two readings of the engines' ages."""


@dataclass(frozen=True, kw_only=True)
class EnginePool:
    """Actors of an engine, before they are started.

    Attributes:
        actor: actor class; its `answer` takes a batch of requests and returns it with the columns of
            `vllm_actor.BLANK`, its `ready` returns the actor's id and age.
        arguments: constructor arguments.
        resources: resources per actor, as arguments of Ray's `options`.
        min_size: number of engines that must be ready before the first request.
        max_size: number of engines to start.
        gpus: GPUs reserved per actor (0 counts as 1 when hours are summed).
        concurrency: requests that an engine answers at the same time.
    """

    actor: type
    arguments: dict[str, Any]
    resources: dict[str, Any] = field(default_factory=dict)
    min_size: int = 1
    max_size: int = 1
    gpus: int = 0
    concurrency: int = 256

    @contextmanager
    def started(self, stall_s: float, clock: EngineClock | None = None) -> Iterator[list[Any]]:
        """Start `max_size` engines and yield their handles once `min_size` are ready; kill them on exit.

        Args:
            stall_s: seconds to wait for `min_size` ready engines.
            clock: adds up the engines' lifetimes.

        Raises:
            DeglaError: an engine failed to start (the message quotes its error), or fewer than `min_size`
                were ready after `stall_s`.
        """
        import ray

        engine = ray.remote(concurrency_groups={WATCH: 1})(self.actor).options(
            max_restarts=-1,
            max_task_retries=-1,
            max_concurrency=calls_at_a_time(self.concurrency, BLOCK),
            **self.resources,
        )
        handles = [engine.remote(**self.arguments) for _ in range(self.max_size)]
        try:
            if clock is not None:
                clock.watch(handles)
            ready = [handle.ready.remote() for handle in handles]
            done, _ = ray.wait(ready, num_returns=self.min_size, timeout=stall_s)
            try:
                ray.get(done)
            except ray.exceptions.RayError as error:
                said = str(error).strip().splitlines()[-1]
                raise DeglaError(f"the engine did not start: {said}") from error
            if len(done) < self.min_size:
                found = f"{len(done)} of {self.min_size} engines ready after {stall_s:g} s"
                raise DeglaError(f"generation.stall_s: {found}; does the cluster have room for all?")
            yield handles
        finally:
            if clock is not None:
                clock.stop()
            for handle in handles:
                ray.kill(handle)


def calls_at_a_time(concurrency: int, block: int) -> int:
    """Return the concurrent calls with which an engine has requests waiting whenever one is answered."""
    return math.ceil(1.25 * concurrency / block) + 1


class EngineClock:
    """Clock that adds up the lifetimes of engines by polling each for its age.

    An engine that waits for a free GPU does not reply and counts as 0. One that is loading its model is
    counted from its start as soon as it replies. One that died is counted up to its last reply, and the
    engine that Ray started in its place is counted separately.

    Args:
        gpus: GPUs per engine (0 counts as 1).
    """

    def __init__(self, gpus: int) -> None:
        self._gpus = max(1, gpus)
        self._ages: dict[str, float] = {}
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def gpu_hours(self) -> float:
        """Total lifetime of the engines in hours, times the GPUs per engine."""
        return self._gpus * sum(list(self._ages.values())) / 3600

    def watch(self, handles: Sequence[Any]) -> None:
        """Start polling the engines for their age."""
        self._thread = threading.Thread(target=self._ask, args=(handles,), name="degla-clock", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop polling after a last reading; call it before the engines are killed."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _ask(self, handles: Sequence[Any]) -> None:
        asked = {_age(handle): handle for handle in handles}
        while not self._over.wait(EVERY_S):
            asked |= {_age(handle): handle for handle in self._note(asked, timeout_s=0)}
        self._note(asked, timeout_s=EVERY_S)

    def _note(self, asked: dict[Any, Any], timeout_s: float) -> list[Any]:
        """Record the ages received and return the handles of the engines that replied."""
        import ray

        living = []
        answered = ray.wait(list(asked), num_returns=len(asked), timeout=timeout_s)[0] if asked else []
        for ref in answered:
            handle = asked.pop(ref)
            try:
                engine, age_s = ray.get(ref)
            except ray.exceptions.RayError:
                continue  # the engine could not start; the pool reports why
            self._ages[engine] = age_s
            living.append(handle)
        return living


def _age(handle: Any) -> Any:
    return handle.ready.options(concurrency_group=WATCH).remote()
