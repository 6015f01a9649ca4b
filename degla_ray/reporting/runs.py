"""The table that `degla runs` prints: training runs and evaluations with their scores and folders."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from degla_ray.number_formats import percent
from degla_ray.run_list import RunEntry

EVAL = "eval/"


def runs_table(runs: list[RunEntry]) -> Table:
    """Return a table with a column for each average, such as composition; newest run first."""
    averages = sorted({name for run in runs for name in run.metrics if _is_average(name)})
    table = Table(title=f"{len(runs)} runs, scores in percent")
    for heading in ("run", "started", "status"):
        table.add_column(heading, no_wrap=heading == "started")
    for name in averages:
        table.add_column(name.removeprefix(EVAL), justify="right")
    table.add_column("folder", overflow="fold")
    for run in runs:
        scores = [percent(run.metrics.get(name)) for name in averages]
        table.add_row(run.name, f"{run.started:%d %b %H:%M}", run.status.lower(), *scores, _shown(run.folder))
    return table


def _shown(folder: str) -> str:
    """Return a folder as seen from the working directory, if it is below it."""
    path = Path(folder)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else folder


def _is_average(metric: str) -> bool:
    return metric.startswith(EVAL) and "/" not in metric.removeprefix(EVAL)
