"""Count the images that Ray tasks finish, and show them on the driver's console.

A shard is one task, so Ray Data itself would show "0 of 8" and then "8 of 8". Instead, tasks report finished
images to a small actor (one message per 16 images), and a thread on the driver displays the total.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any, Self

import ray
from rich.console import Console

from degla_ray.progress_bars import ProgressBars

_POLL_SECONDS = 0.5


class _CountedImages:
    def __init__(self) -> None:
        self._total = 0

    def add(self, number: int) -> None:
        self._total += number

    def total(self) -> int:
        return self._total


_Counter: Any = ray.remote(num_cpus=0)(_CountedImages)


class Reporter:
    """Callable sent to the tasks, which report finished images by calling it."""

    def __init__(self, counter: Any) -> None:
        self._counter = counter

    def __call__(self, images: int) -> None:
        self._counter.add.remote(images)


class ShardProgress:
    """Progress of all tasks together, shown during a `with` block.

    Args:
        total: total number of images.
        title: text before the progress.
    """

    def __init__(self, total: int, title: str) -> None:
        self._total, self._title = total, title
        self._counter = _Counter.remote()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._draw, name="progress", daemon=True)

    def reporter(self) -> Reporter:
        return Reporter(self._counter)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        ray.kill(self._counter)

    def _draw(self) -> None:
        with ProgressBars("images", Console(stderr=True)) as bars:
            while not self._stop.wait(_POLL_SECONDS):
                bars.update(self._title, self._done(), self._total)

    def _done(self) -> int:
        # A task that Ray runs twice also reports twice.
        return min(self._total, int(ray.get(self._counter.total.remote())))
