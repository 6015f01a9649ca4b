"""An error is described in one line, however Ray wrapped it."""

from __future__ import annotations

import traceback

from ray.exceptions import RayTaskError

from degla_ray.errors import DataError, one_line


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
