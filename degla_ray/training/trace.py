"""The trace of a run: one line of JSON per step, of which only the latest lines are ever written again.

    trace/000000001.jsonl   steps 1 to 1,000
    trace/000001001.jsonl   … and so on, while the run trains
    trace.jsonl             the whole, once it has ended

Object stores cannot append, so the trace is written in parts of 1,000 steps. A write takes at most one part
(about 220 KB) and what follows, not the whole (22 MB at 100,000 steps), and a reader who knows the trace up
to a step reads no part before it. A killed run may leave lines later than the checkpoint that it resumes
from; the same steps write them again.
"""

from __future__ import annotations

import json
from typing import Any

from degla_ray.storage import Storage
from degla_ray.training.job import TRACE

PARTS = "trace"
PART_STEPS = 1000


def as_bytes(lines: list[str]) -> bytes:
    """Return the content of a file with these lines."""
    return "".join(f"{line}\n" for line in lines).encode()


def write(run: Storage, lines: list[str], first: int) -> None:
    """Write the lines of step `first`, which begins a part, and of the steps after it."""
    for start in range(0, len(lines), PART_STEPS):
        run.write_bytes(as_bytes(lines[start : start + PART_STEPS]), PARTS, _name(first + start))


def part_of(step: int) -> int:
    """Return the first step of the part that contains `step`."""
    return step - (step - 1) % PART_STEPS


def rows_after(run: Storage, step: int) -> list[dict[str, Any]]:
    """Return what has been written for the steps after `step`."""
    names = [name for name in run.names(PARTS) if name >= _name(part_of(step + 1))]
    rows = [json.loads(line) for name in names for line in run.read_bytes(PARTS, name).splitlines()]
    return [row for row in rows if row["step"] > step]


def finish(run: Storage, whole: bytes) -> None:
    """Write the whole trace as one file in place of its parts."""
    run.write_bytes(whole, TRACE)
    run.delete_folder(PARTS)


def _name(first: int) -> str:
    return f"{first:09d}.jsonl"
