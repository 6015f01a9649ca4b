"""One line with a stage's progress: updated in place on a terminal, elsewhere printed every ten seconds."""

from __future__ import annotations

import time
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

LINE_S = 10.0
"""Seconds between two lines if the output is not a terminal."""
UPDATE_S = 5.0
"""Seconds between two updates on a terminal; counting what a window has settled takes up to 0.2 s."""


class ProgressLine:
    """Context manager that shows how much of a stage is done, in a line no wider than the terminal.

    Args:
        title: name of the stage.
        total: number of units that the stage will finish.
        unit: what is counted, after the numbers.
        console: where the line is shown.
    """

    def __init__(self, title: str, total: int, unit: str, console: Console | None = None) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._console = console or Console()
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._shown_at = time.monotonic()

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    @property
    def due(self) -> bool:
        """Whether it is time to call `show` again."""
        return time.monotonic() - self._shown_at >= (LINE_S if self._live is None else UPDATE_S)

    def show(self, completed: int, details: str = "", left_s: float | None = None) -> None:
        """Show the number of finished units.

        Args:
            completed: number of finished units.
            details: what else is worth knowing, in a few words; cropped first.
            left_s: estimated seconds until the end; None if unknown.
        """
        self._shown_at = time.monotonic()
        done = f"{self._title}: {completed:,} of {self._total:,} {self._unit}"
        left = f"{timedelta(seconds=round(left_s))} left" if left_s else ""
        line = ", ".join(text for text in (done, left, details) if text)
        if self._live is None:
            self.print(line)
        else:
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)

    def print(self, line: str) -> None:
        """Print a line of its own, above the progress."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
