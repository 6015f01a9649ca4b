"""A pipeline that stops answering ends with an error instead of waiting for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from degla_ray.deadline import AHEAD, with_deadline
from degla_ray.errors import DataError, DeglaError


class StreamingExecutor(threading.Thread):
    """Stands for Ray Data's thread of the same name, which runs until it is shut down."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.over = threading.Event()

    def run(self) -> None:
        self.over.wait()

    def shutdown(self, force: bool) -> None:
        self.over.set()


def stalled(done: int) -> DeglaError:
    return DeglaError(f"nothing after {done}")


def ended(thread: threading.Thread) -> bool:
    thread.join(timeout=5)
    return not thread.is_alive()


def test_with_deadline_passes_on_what_comes_and_ends() -> None:
    assert list(with_deadline(range(20), 10, stalled)) == list(range(20))


def test_with_deadline_nothing_comes_any_more_raises_and_ends_the_execution() -> None:
    executor = StreamingExecutor()

    def rows() -> Iterator[int]:
        executor.start()
        yield 1
        executor.over.wait()

    found = with_deadline(rows(), 0.1, stalled)
    assert next(found) == 1
    with pytest.raises(DeglaError, match="nothing after 1"):
        next(found)
    assert ended(executor)


def test_with_deadline_execution_that_begins_after_the_deadline_is_ended_too() -> None:
    executor, late = StreamingExecutor(), threading.Event()

    def rows() -> Iterator[int]:
        late.wait(0.5)
        executor.start()
        executor.over.wait()
        yield from ()

    with pytest.raises(DeglaError, match="nothing after 0"):
        next(with_deadline(rows(), 0.1, stalled))
    assert ended(executor)


def test_with_deadline_reader_that_stops_ends_the_execution_and_the_puller() -> None:
    executor = StreamingExecutor()
    before = set(threading.enumerate())

    def rows() -> Iterator[int]:
        executor.start()
        yield from range(AHEAD + 10)

    found = with_deadline(rows(), 10, stalled)
    assert next(found) == 0
    found.close()  # type: ignore[attr-defined]
    assert ended(executor)
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        threading.Event().wait(0.05)
    assert not set(threading.enumerate()) - before


def test_with_deadline_leaves_executions_of_others_alone() -> None:
    other = StreamingExecutor()
    other.start()
    found = with_deadline(iter([1, 2]), 10, stalled)
    next(found)
    found.close()  # type: ignore[attr-defined]
    assert other.is_alive()
    other.shutdown(force=True)


def test_with_deadline_raises_what_the_pipeline_raised() -> None:
    def rows() -> Iterator[int]:
        yield 1
        raise DataError("a file", "nothing", "something")

    with pytest.raises(DataError, match="a file"):
        list(with_deadline(rows(), 10, stalled))
