"""Save before the end: a driver that is told to end asks its workers for a checkpoint and waits for it.

Ray Train's controller asks them too, before a host is taken away or another number of workers starts; they
then leave once it is written. The questions and the answer are keys of Ray's own key-value store, which
worker 0 reads once a log interval (about a millisecond each); a file would cost a remote store a request a
second.
"""

from __future__ import annotations

import time
from typing import Any

from ray import cloudpickle
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put


class Left(Exception):
    """Raised by every worker after the checkpoint that was asked for, so that Ray Train starts them anew."""


GRACE_S = 30.0
"""Seconds that the driver waits for the checkpoint. `ray job stop` allows RAY_JOB_STOP_WAIT_TIME_S, 3 s if it
is not set."""
_POLL_S = 0.05
_NAMESPACE = "degla"


def forget(run: str) -> None:
    """Delete the question and the answer of an earlier driver of the run's folder."""
    for key in ("save", "training", "saved", "controller"):
        _internal_kv_del(f"{key} {run}", namespace=_NAMESPACE)


def set_training(run: str) -> None:
    """Record that workers train, so that a driver waits for their answer."""
    _internal_kv_put(f"training {run}", b"1", namespace=_NAMESPACE)


def set_controller(run: str, controller: Any) -> None:
    """Record the handle of the run's Ray Train controller."""
    _internal_kv_put(f"controller {run}", cloudpickle.dumps(controller), namespace=_NAMESPACE)


def controller(run: str) -> Any:
    """Return the handle of the run's Ray Train controller; None if it has not started."""
    handle = _internal_kv_get(f"controller {run}", namespace=_NAMESPACE)
    return None if handle is None else cloudpickle.loads(handle)


def asked(run: str) -> bool:
    """Return whether the driver wants a checkpoint now."""
    return _internal_kv_get(f"save {run}", namespace=_NAMESPACE) is not None


def ask_to_leave(run: str) -> None:
    """Ask the workers to save a checkpoint and to leave."""
    _internal_kv_put(f"leave {run}", b"1", namespace=_NAMESPACE)


def must_leave(run: str) -> bool:
    """Return whether the workers are to leave now."""
    return _internal_kv_get(f"leave {run}", namespace=_NAMESPACE) is not None


def set_starting(run: str) -> None:
    """Record that no worker trains yet, and that those that start are to stay."""
    for key in ("leave", "training"):
        _internal_kv_del(f"{key} {run}", namespace=_NAMESPACE)


def answer(run: str, step: int) -> None:
    """Tell the driver that the checkpoint of `step` is written."""
    _internal_kv_put(f"saved {run}", str(step), namespace=_NAMESPACE)


def save_now(run: str) -> int | None:
    """Ask for a checkpoint; return its step, or None if no worker trains or none was written in time."""
    _internal_kv_put(f"save {run}", b"1", namespace=_NAMESPACE)
    end = time.monotonic() + GRACE_S
    while _internal_kv_get(f"training {run}", namespace=_NAMESPACE) and time.monotonic() < end:
        if saved := _internal_kv_get(f"saved {run}", namespace=_NAMESPACE):
            return int(saved)
        time.sleep(_POLL_S)
    return None
