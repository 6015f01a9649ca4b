"""Progress of named tasks on the console: bars on a terminal, otherwise a line every ten seconds."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

LINE_S = 10.0
"""Seconds between lines where the console is not a terminal, such as a pipe or a job's log."""
BYTES = "bytes"


class ProgressBars:
    """Progress bars that disappear at the end of their `with` block.

    Args:
        unit: what is counted, e.g. `images`; for `bytes` the transfer rate is shown.
        console: where to show them.
    """

    def __init__(self, unit: str, console: Console) -> None:
        self._unit, self._console = unit, console
        columns: tuple[ProgressColumn, ...] = (MofNCompleteColumn(), TextColumn(unit), TimeElapsedColumn())
        if unit == BYTES:
            columns = (DownloadColumn(), TransferSpeedColumn())
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            *columns,
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._line_at = time.monotonic()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def update(self, name: str, done: int, total: int | None) -> None:
        """Show that `done` of `total` (None: unknown) are done; the first call for a name adds its bar."""
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=total)
        self._bars.update(self._tasks[name], completed=done, total=total)
        if not self._console.is_terminal and time.monotonic() - self._line_at >= LINE_S:
            self._line_at = time.monotonic()
            of = "" if total is None else f" of {total:,}"
            self._console.print(f"{name}: {done:,}{of} {self._unit}", markup=False, highlight=False)

    def remove(self, name: str) -> None:
        """Remove the bar of a task."""
        self._bars.remove_task(self._tasks.pop(name))
