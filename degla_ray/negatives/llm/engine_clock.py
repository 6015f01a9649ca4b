"""Measure how long a run's engines have lived, by polling each for its age.

An engine that waits for a free GPU does not reply and counts as 0. One that is loading its model is counted
from its start as soon as it replies. One that died is counted up to its last reply, and the engine that Ray
started in its place is counted separately.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

WATCH = "watch"
"""Ray concurrency group of these calls, which an engine answers even while it is busy."""
EVERY_S = 1.0


class EngineClock:
    """Clock that adds up the lifetimes of engines.

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
