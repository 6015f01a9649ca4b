"""A pipeline that stops answering ends with an error instead of waiting for ever."""

from __future__ import annotations

import threading

import pytest

from degla_ray.errors import DataError, DeglaError
from degla_ray.negatives.generation import without_stall


def test_without_stall_passes_on_what_comes_and_ends():
    assert list(without_stall(iter([1, 2, 3]), 10)) == [1, 2, 3]


def test_without_stall_raises_when_nothing_comes_any_more():
    never = threading.Event()

    def batches():
        yield 1
        never.wait()

    found = without_stall(batches(), 0.05)
    assert next(found) == 1
    with pytest.raises(DeglaError, match=r"generation\.stall_s: no answer for 0\.05 s"):
        next(found)
    never.set()


def test_without_stall_raises_what_the_pipeline_raised():
    def batches():
        yield 1
        raise DataError("a file", "nothing", "something")

    with pytest.raises(DataError, match="a file"):
        list(without_stall(batches(), 10))
