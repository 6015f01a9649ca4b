"""Tables of evaluations and comparisons for the console (rich)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from degla_ray.evaluation.comparison import Cell, Comparison, ScoreGroup, title
from degla_ray.evaluation.summary import Summary
from degla_ray.number_formats import points
from degla_ray.reporting.among_published import AmongPublished, among_published
from degla_ray.reporting.texts import comparisons_text, interval_text, label_suffix, value_text

T = TypeVar("T")
SUBSET_WIDTH, CELL_WIDTH = 28, 30  # column widths of the console's subset table with intervals


def summary_tables(summary: Summary) -> list[Table]:
    """Return the tables of one model: averages, then one table per benchmark with its protocol in the
    title."""
    groups = {summary.label: list(summary.averages)}
    for score in summary.subsets:
        benchmark = score.name.partition("/")[0]
        groups.setdefault(f"{benchmark}: {score.protocol}" if score.protocol else benchmark, []).append(score)
    tables = []
    for heading, scores in groups.items():
        table = Table(title=escape(heading), title_style="bold")
        table.add_column("", min_width=20)
        for column in ("%", "95 % interval", "items"):
            table.add_column(column, justify="right")
        for score in scores:
            items = f"{score.n:,}" + (f" ({score.missing:,} missing)" if score.missing else "")
            name = title(score.name).rpartition("/")[2]
            table.add_row(name, value_text(score), interval_text(score), items)
        tables.append(table)
    return [table for table in tables if table.row_count]


def console_tables(comparison: Comparison, width: int) -> list[Table | Text]:
    """Return the tables for a console of that width.

    Averages and published rows have one row per model and are split into as many tables as needed. One table
    per benchmark follows, with one column per model, and with intervals if the width allows.
    """
    heads: list[Table] = []
    widest = max(len(label) for label in comparison.labels) + 6
    for names in _columns_in(comparison.averages, lambda name: max(len(title(name)), 16) + 3, width - widest):
        head = Table(title="Averages", title_style="bold")
        head.add_column("model", style="bold")
        for name in names:
            head.add_column(title(name), justify="right")
        for model, label in enumerate(comparison.labels):
            row = [_rich_cell(comparison.cell(model, name)) for name in names]
            head.add_row(escape(label) + label_suffix(comparison, model), *row)
        heads.append(head)
    if heads:
        heads[-1].caption = escape(comparisons_text(comparison, comparison.averages)) or None
    tables: list[Table | Text] = [*heads]
    for among in among_published(comparison):
        tables += _rich_published(among, width)
    return [*tables, *(_rich_group(comparison, group, width) for group in comparison.groups)]


def _rich_group(comparison: Comparison, group: ScoreGroup, width: int) -> Table:
    intervals = width >= SUBSET_WIDTH + CELL_WIDTH * len(comparison.labels)
    note = escape(comparisons_text(comparison, group.names))
    table = Table(title=escape(group.title), title_style="bold", caption=note or None)
    table.add_column("subset", no_wrap=True)
    models = range(len(comparison.labels))
    for model in models:
        table.add_column(escape(comparison.labels[model]) + label_suffix(comparison, model), justify="right")
    for number, (name, heading) in enumerate(zip(group.names, group.headings, strict=True)):
        cells = [_rich_cell(comparison.cell(model, name), "  ", intervals) for model in models]
        following = group.names[number + 1 : number + 2]
        ends = any(_line_above(n, name) for n in following)
        table.add_row(escape(heading), *cells, end_section=ends, style="" if "/" in name else "bold")
    return table


def _line_above(name: str, above: str) -> bool:
    """Return whether a new benchmark, or the block of averages, starts at this row."""
    return "/" in above and name.partition("/")[0] != above.partition("/")[0]


def _rich_published(among: AmongPublished, width: int) -> list[Table | Text]:
    """Return as many tables as the columns need, with the protocols below the last one."""
    headings = among.table.headings
    least = max(len(row.label) for row in among.rows) + 3
    parts = _columns_in(
        range(len(headings)), lambda i: max(6, *map(len, headings[i].split())) + 3, width - least
    )
    tables: list[Table | Text] = []
    for numbers in parts:
        table = Table(
            title=f"{among.table.title}, among published results", title_style="bold", box=SIMPLE_HEAD
        )
        table.add_column("model", no_wrap=True)
        for i in numbers:
            table.add_column(headings[i], justify="right")
        for number, row in enumerate(among.rows):
            ends = row.published and not among.rows[number + 1].published
            style = "dim" if row.published else "bold"
            table.add_row(escape(row.label), *(row.values[i] for i in numbers), style=style, end_section=ends)
        tables.append(table)
    return [*tables, Text("\n".join(among.notes), style="dim")]


def _columns_in(columns: Sequence[T], needs: Callable[[T], int], width: int) -> list[list[T]]:
    """Split the columns into runs that fit the width, with at least one column each."""
    runs: list[list[T]] = []
    left = 0
    for column in columns:
        if not runs or needs(column) > left:
            runs.append([])
            left = width
        runs[-1].append(column)
        left -= needs(column)
    return runs


def _rich_cell(cell: Cell, separator: str = "\n", intervals: bool = True) -> Text:
    text = Text(value_text(cell.score))
    if intervals and (interval := interval_text(cell.score)):
        text.append(f" [{interval}]", style="dim")
    if cell.delta is not None:
        colour = {"up": "green", "down": "red"}.get(cell.trend, "")
        text.append(f"{separator}{points(cell.delta)}{cell.stars}", style=colour)
    return text
