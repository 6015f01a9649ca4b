"""Rows of a Ray Data pipeline, with an end to waiting for them: Ray Data itself waits for ever."""

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
"""Rows that may wait for their reader."""
STOP_S = 20.0
"""In which an execution should have ended."""


def with_deadline(rows: Iterable[Row], seconds: float, stalled: Callable[[int], DeglaError]) -> Iterator[Row]:
    """Passes rows on; where none comes for `seconds`, or the reader stops, the pipeline is ended.

    Args:
        rows: of one Ray Data execution that has not begun.
        seconds: to wait for a row.
        stalled: the error to raise then, given the number of rows that came.
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
        except BaseException as error:  # to be raised where it can be handled
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
    """Ends the Ray Data execution that began after `others` were running, and with it the puller.

    Nothing public does: an execution that nobody reads any more goes on waiting for its actors, and starts
    a Ray of its own once ours has ended. On a busy machine it may still be about to begin.
    """
    end = time.monotonic() + STOP_S
    while True:
        for thread in set(threading.enumerate()) - others:
            if type(thread).__name__ == "StreamingExecutor":
                thread.shutdown(force=True)  # type: ignore[attr-defined]
        puller.join(timeout=0.2)
        if not puller.is_alive() or time.monotonic() > end:
            return
