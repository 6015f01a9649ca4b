"""How long the engines of a run have lived, as they say themselves.

An engine is asked for its age again and again: one that waits for a free GPU says nothing and counts
nothing, one that loads its model is counted from its start as soon as it answers, one that died is counted
up to its last answer, and the one that Ray started in its place is another.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

WATCH = "watch"
"""Ray's concurrency group for these questions: an engine answers them while it is busy."""
EVERY_S = 1.0


class EngineClock:
    """Sums up lives.

    Args:
        gpus: of an engine; one that runs without counts as one.
    """

    def __init__(self, gpus: int) -> None:
        self._gpus = max(1, gpus)
        self._ages: dict[str, float] = {}
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def gpu_hours(self) -> float:
        """Hours that the engines lived together, times their GPUs."""
        return self._gpus * sum(list(self._ages.values())) / 3600

    def watch(self, handles: Sequence[Any]) -> None:
        """Begins to ask engines for their age."""
        self._thread = threading.Thread(target=self._ask, args=(handles,), name="degla-clock", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends it; the engines still live."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _ask(self, handles: Sequence[Any]) -> None:
        asked = {_age(handle): handle for handle in handles}
        while not self._over.wait(EVERY_S):
            asked |= {_age(handle): handle for handle in self._note(asked, timeout_s=0)}
        self._note(asked, timeout_s=EVERY_S)

    def _note(self, asked: dict[Any, Any], timeout_s: float) -> list[Any]:
        """Takes the answers that have come; returns the engines that gave them."""
        import ray

        living = []
        answered = ray.wait(list(asked), num_returns=len(asked), timeout=timeout_s)[0] if asked else []
        for ref in answered:
            handle = asked.pop(ref)
            try:
                engine, age_s = ray.get(ref)
            except ray.exceptions.RayError:
                continue  # one that cannot start: the pool says why
            self._ages[engine] = age_s
            living.append(handle)
        return living


def _age(handle: Any) -> Any:
    return handle.ready.options(concurrency_group=WATCH).remote()
