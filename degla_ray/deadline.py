"""A timeout for the rows of a Ray Data pipeline; without it, Ray Data waits forever."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from degla_ray.errors import DeglaError

Row = TypeVar("Row")

AHEAD = 4
"""Rows buffered ahead of the reader."""
STOP_S = 20.0
"""Seconds to wait for an execution to end."""


def with_deadline(rows: Iterable[Row], seconds: float, stalled: Callable[[int], DeglaError]) -> Iterator[Row]:
    """Yield the rows, and end the pipeline if no row arrives for `seconds` or the reader stops.

    Args:
        rows: rows of one Ray Data execution that has not started.
        seconds: time to wait for a row.
        stalled: returns the error to raise after that time, given the number of rows received.
    """
    handed: queue.Queue[tuple[str, object]] = queue.Queue(maxsize=AHEAD)
    left = threading.Event()
    others = set(threading.enumerate())

    def hand(what: str, value: object) -> None:
        while not left.is_set():
            try:
                return handed.put((what, value), timeout=0.5)
            except queue.Full:
                continue

    def pull() -> None:
        try:
            for row in rows:
                hand("row", row)
            hand("end", None)
        except BaseException as error:  # raised again in the reader's thread
            hand("error", error)

    puller = threading.Thread(target=pull, name="degla-rows", daemon=True)
    puller.start()
    over = False
    try:
        for done in itertools.count():
            try:
                what, value = handed.get(timeout=seconds)
            except queue.Empty:
                raise stalled(done) from None
            over = what != "row"
            if what == "end":
                return
            if isinstance(value, BaseException) and what == "error":
                raise value
            yield value  # type: ignore[misc]
    finally:
        left.set()
        if not over:
            _stop_execution(puller, others)


def _stop_execution(puller: threading.Thread, others: set[threading.Thread]) -> None:
    """End the Ray Data execution that started after the threads `others`, and with it the puller.

    Ray has no public function for this: an execution without a reader goes on waiting for its actors, and
    starts another Ray once ours has ended. On a busy machine the execution may not have started yet.
    """
    end = time.monotonic() + STOP_S
    while True:
        for thread in set(threading.enumerate()) - others:
            if type(thread).__name__ == "StreamingExecutor":
                thread.shutdown(force=True)  # type: ignore[attr-defined]
        puller.join(timeout=0.2)
        if not puller.is_alive() or time.monotonic() > end:
            return
