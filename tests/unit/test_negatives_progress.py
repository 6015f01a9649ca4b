"""Progress of generation: (caption, kind) pairs settled, however many answers each takes."""

from __future__ import annotations

import time
from typing import Any

import pytest

from degla_ray.config import NegativesConfig
from degla_ray.negatives.llm.ledger import StateTable
from degla_ray.negatives.llm.pool import EngineClock
from degla_ray.negatives.llm.progress import Progress
from degla_ray.schema import Kind

KINDS = [Kind.SWAP_NOUNS, Kind.RESHUFFLE]


def answer(key: str, kind: Kind, state: str, attempt: int = 0) -> dict[str, Any]:
    row = {"key": key, "kind": kind.value, "attempt": attempt, "state": state, "reason": ""}
    return row | {"text": f"{attempt}", "prompt_tokens": 10, "completion_tokens": 1, "cached_tokens": 0}


def add(progress: Progress, states: StateTable, *rows: dict[str, Any]) -> None:
    states.add(rows)
    progress.add(rows)


def test_progress_counts_pairs_and_not_their_answers(capsys: pytest.CaptureFixture[str]) -> None:
    config = NegativesConfig(prepared="", output="", engine="scripted")
    first = StateTable(["a", "b"], KINDS, per_kind=2, attempts=3)
    with Progress(config, wanted=8, clock=EngineClock(0)) as progress:
        progress.begin(first)
        add(progress, first, answer("a", KINDS[0], "ok"), answer("b", KINDS[0], "not_applicable"))
        assert progress.settled == 1, "one of two negatives settles nothing"
        add(progress, first, answer("a", KINDS[0], "ok", 1), answer("a", KINDS[1], "rejected"))
        assert progress.settled == 2
        add(progress, first, *(answer("a", KINDS[1], "rejected", n) for n in range(1, 6)))
        add(progress, first, *(answer("b", KINDS[1], "ok", n) for n in range(2)))
        assert progress.settled == 4, "also what ends without a negative"
        second = StateTable(["c", "d"], KINDS, per_kind=2, attempts=3)
        progress.begin(second)
        assert progress.settled == 4
        add(progress, second, *(answer(key, kind, "ok", n) for key in "cd" for kind in KINDS for n in (0, 1)))
        assert progress.settled == 8
    assert "8 of 8 settled" in capsys.readouterr().out


def test_progress_remaining_time_follows_from_what_this_run_settled() -> None:
    config = NegativesConfig(prepared="", output="", engine="scripted")
    states = StateTable("abcde", [KINDS[0]], per_kind=1, attempts=1)
    states.add([answer("a", KINDS[0], "ok")])  # by an earlier run
    progress = Progress(config, wanted=5, clock=EngineClock(0))
    assert progress.remaining_s is None
    before = time.monotonic()
    progress.begin(states)
    after = time.monotonic()
    assert progress.remaining_s is None
    add(progress, states, answer("b", KINDS[0], "ok"))
    least = time.monotonic() - after
    found = progress.remaining_s
    assert found is not None
    assert 3 * least <= found <= 3 * (time.monotonic() - before)
    add(progress, states, *(answer(key, KINDS[0], "ok") for key in "cde"))
    assert progress.remaining_s == 0
