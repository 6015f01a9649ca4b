"""Display of a stage's progress: a bar on a terminal, elsewhere a line every ten seconds."""

from __future__ import annotations

import time
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

LINE_S = 10.0
"""Seconds between two lines if the output is not a terminal."""
BAR_S = 0.5
"""Seconds between two updates of the bar."""


class ProgressDisplay:
    """Context manager that shows how much of a stage is done; rich crops the bar's line to the terminal.

    Args:
        title: name of the stage.
        total: number of units that the stage will finish.
        unit: what is counted, after the numbers.
    """

    def __init__(self, title: str, total: int, unit: str) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._console = Console()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[details]}", markup=False),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=total, details=unit)
        self._shown_at = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    @property
    def due(self) -> bool:
        """Whether it is time to call `show` again."""
        return time.monotonic() - self._shown_at >= (BAR_S if self._console.is_terminal else LINE_S)

    def show(self, completed: int, details: str = "", left_s: float | None = None) -> None:
        """Show the number of finished units.

        Args:
            completed: number of finished units.
            details: what else is worth knowing, in a few words.
            left_s: estimated seconds until the end; None if unknown.
        """
        self._shown_at = time.monotonic()
        left = f"{timedelta(seconds=round(left_s))} left" if left_s else ""
        told = ", ".join(text for text in (self._unit, left, details) if text)
        if self._console.is_terminal:
            self._bar.update(self._task, completed=completed, details=told)
        else:
            self.print(f"{self._title}: {completed:,} of {self._total:,} {told}")

    def print(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
