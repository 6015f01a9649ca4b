"""An error is described in one line, however Ray wrapped it."""

from __future__ import annotations

import traceback

import pytest
from ray.exceptions import RayTaskError

from degla_ray.errors import DataError, one_line, without_ray_wrapper


def _wrapped(error: Exception) -> RayTaskError:
    try:
        raise error
    except type(error):
        return RayTaskError("task", traceback.format_exc(), error)


def test_one_line_of_our_error_is_its_message_and_of_another_its_type_and_message() -> None:
    assert one_line(DataError("a.csv", "no rows", "one")) == "a.csv: found no rows; expected one"
    assert one_line(OSError("a\n\n  b")) == "OSError: a b"
    assert one_line(ValueError()) == "ValueError"


def test_one_line_of_a_task_s_error_is_that_of_its_cause() -> None:
    assert one_line(_wrapped(DataError("a.csv", "no rows", "one"))) == "a.csv: found no rows; expected one"


def test_one_line_of_a_traceback_as_text_is_its_last_error() -> None:
    text = _wrapped(DataError("a.csv", "no rows", "one")).traceback_str
    assert one_line(RuntimeError(text)) == "a.csv: found no rows; expected one"
    text = _wrapped(KeyError("x")).traceback_str
    assert one_line(RuntimeError(text)) == "KeyError: 'x'"


def test_without_ray_wrapper_raises_our_error_itself_and_another_as_it_is() -> None:
    ours, other = DataError("a.csv", "no rows", "one"), KeyError("x")
    for raised, expected in ((_wrapped(ours).as_instanceof_cause(), ours), (other, other)):
        with pytest.raises((DataError, KeyError)) as caught, without_ray_wrapper():
            raise raised
        assert caught.value is expected
