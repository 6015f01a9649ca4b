"""Progress of generation: (caption, kind) pairs settled, however many answers each takes."""

from __future__ import annotations

import io
import re
import time
from typing import Any

import pytest
from rich.console import Console

from degla_ray.config import NegativesConfig
from degla_ray.negatives.llm.ledger import StateTable
from degla_ray.negatives.llm.pool import EngineClock
from degla_ray.negatives.llm.progress import Progress
from degla_ray.negatives.progress_line import ProgressLine
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


def test_progress_line_on_a_narrow_terminal_is_cropped_to_one_row() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=60, color_system=None)
    with ProgressLine("negatives", 10_000_000, "settled", console) as line:
        line.show(8_000_000, "45% accepted, 1,120.3 answers/s, 1,200 failed", left_s=100_000)
    assert isinstance(console.file, io.StringIO)
    shown = re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", console.file.getvalue())
    (row,) = {row for row in re.split(r"[\r\n]+", shown) if row.strip()}
    assert row.startswith("negatives: 8,000,000 of 10,000,000 settled, ")
    assert len(row.rstrip()) <= 60


def test_progress_without_answers_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    config = NegativesConfig(prepared="", output="", engine="scripted")
    with pytest.raises(RuntimeError), Progress(config, wanted=2, clock=EngineClock(0)):
        raise RuntimeError("the engine did not start")
    assert capsys.readouterr().out == ""


def test_progress_prints_the_first_error_once(capsys: pytest.CaptureFixture[str]) -> None:
    config = NegativesConfig(prepared="", output="", engine="scripted")
    states = StateTable("ab", [KINDS[0]], per_kind=1, attempts=1)
    with Progress(config, wanted=2, clock=EngineClock(0)) as progress:
        progress.begin(states)
        for key in "ab":
            add(progress, states, answer(key, KINDS[0], "error") | {"reason": "timeout", "text": f"[{key}]"})
    printed = capsys.readouterr().out
    assert "first failed request: timeout: [a]\n" in printed
    assert "[b]" not in printed
    assert "2 of 2 settled, 0% accepted" in printed
