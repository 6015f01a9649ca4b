"""Progress is visible in a job's log as well as on a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from degla_ray import progress_bars
from degla_ray.progress_bars import ProgressBars


def _shown(console: Console, updates: list[tuple[str, int, int | None]], unit: str = "images") -> str:
    with ProgressBars(unit, console) as bars:
        for name, done, total in updates:
            bars.update(name, done, total)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_progress_without_a_terminal_prints_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_bars, "LINE_S", 0.0)
    console = Console(file=io.StringIO(), width=60)
    shown = _shown(console, [("a [set]", 1, 2000), ("b", 7, None)])
    assert shown.splitlines() == ["a [set]: 1 of 2,000 images", "b: 7 images"]


def test_progress_without_a_terminal_prints_no_line_for_a_quick_task() -> None:
    assert _shown(Console(file=io.StringIO()), [("a", 1, 2), ("a", 2, 2)]) == ""


@pytest.mark.parametrize("unit", ["images", "bytes"])
def test_progress_on_a_terminal_names_every_task(unit: str) -> None:
    shown = _shown(
        Console(file=io.StringIO(), force_terminal=True, width=120),
        [("a [set]", 1, 2), ("b", 0, None)],
        unit,
    )
    assert "a [set]" in shown
    assert "1/2" in shown
