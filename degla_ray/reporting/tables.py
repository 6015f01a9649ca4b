"""A comparison as tables on the console (rich) and as one self-contained HTML page. For Markdown see
markdown.py.

Numbers are percent with their 95 % interval. Differences are percentage points against the first model, with
stars and a colour if the table's paired test finds them significant. `†` marks a number that lacks some of
its items.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from degla_ray.evaluation.comparison import Cell, Comparison, Group, title
from degla_ray.evaluation.summary import Score, Summary, has_random_weights, percent, value_text
from degla_ray.reporting.disagreements import Disagreement
from degla_ray.reporting.published_rows import PublishedTable, published_tables

T = TypeVar("T")
Disagreements = Mapping[int, Sequence[Disagreement]]  # model number -> items, the largest difference first
PUBLISHED = "published"
SUBSET_WIDTH, CELL_WIDTH = 28, 30  # column widths of the console's subset table with intervals
TEMPLATES = Path(__file__).parent / "templates"
LEGEND = (
    "Percent with 95 % intervals (bootstrap over images; Wilson's if fewer than 10 images decide). "
    "Differences are percentage points against the first row; * p < 0.05, ** p < 0.01, *** p < 0.001 (paired "
    "bootstrap over images of the printed difference, Holm-corrected for the comparisons of its table)."
)
DISAGREEMENTS = (
    "Items that exactly one of the two models gets right, ordered by how much their margins differ. A margin "
    "is the true candidate's score minus the best other's, divided by the standard deviation of the model's "
    "margins over the benchmark's items that both models scored, so that neither a model's nor a benchmark's "
    "scale decides. Scores are cosine similarities, or values that the protocol derives from them."
)
PARTIAL = "† some items are left out: images were missing or unreadable (listed in summary.json)."
OTHER_INPUTS = (
    "‡ evaluated on other test sets than the first row: no paired test and no disagreements; compare with "
    "care."
)

RANDOM_WEIGHTS = " (random weights)"


def interval_text(score: Score | None) -> str:
    """Return the interval, e.g. `81.0–85.6`; an empty string without one."""
    if score is None or score.low is None or score.high is None:
        return ""
    return f"{100 * score.low:.1f}–{100 * score.high:.1f}"


def points(delta: float | None) -> str:
    """Return a difference in points, e.g. `+3.2`, with a true minus sign; an empty string for None."""
    return "" if delta is None else f"{100 * delta:+.1f}".replace("-", "−")


def comparisons_text(comparison: Comparison, names: Sequence[str]) -> str:
    """Return the note under a table of those scores; an empty string if nothing is compared."""
    count = comparison.comparisons(names)
    tests = f"{count:,} comparison{'s' if count > 1 else ''} with {comparison.labels[0]}"
    return f"{tests}; stars by Holm-corrected p." if count else ""


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
            head.add_row(escape(label) + mark(comparison, model), *row)
        heads.append(head)
    if heads:
        heads[-1].caption = escape(comparisons_text(comparison, comparison.averages)) or None
    tables: list[Table | Text] = [*heads]
    for among in among_published(comparison):
        tables += _rich_published(among, width)
    return [*tables, *(_rich_group(comparison, group, width) for group in comparison.groups)]


def _rich_group(comparison: Comparison, group: Group, width: int) -> Table:
    intervals = width >= SUBSET_WIDTH + CELL_WIDTH * len(comparison.labels)
    note = escape(comparisons_text(comparison, group.names))
    table = Table(title=escape(group.title), title_style="bold", caption=note or None)
    table.add_column("subset", no_wrap=True)
    models = range(len(comparison.labels))
    for model in models:
        table.add_column(escape(comparison.labels[model]) + mark(comparison, model), justify="right")
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
    """Return the columns in runs that fit the width, at least one column in each."""
    runs: list[list[T]] = []
    left = 0
    for column in columns:
        if not runs or needs(column) > left:
            runs.append([])
            left = width
        runs[-1].append(column)
        left -= needs(column)
    return runs


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """Row of a published model or of a compared one."""

    label: str
    values: tuple[str, ...]
    protocol: str
    published: bool


@dataclass(frozen=True, kw_only=True)
class AmongPublished:
    """The compared models together with published ones."""

    table: PublishedTable
    rows: tuple[TableRow, ...]

    @property
    def notes(self) -> list[str]:
        """Note on the table, then each protocol with the models that it applies to."""
        told: dict[str, list[str]] = {}
        for row in self.rows:
            told.setdefault(row.protocol, []).append(row.label)
        told.pop(PUBLISHED, None)
        return [
            self.table.note,
            *(f"{', '.join(of)}: {protocol}" for protocol, of in told.items() if protocol),
        ]


def among_published(comparison: Comparison) -> list[AmongPublished]:
    """Return each published table for which a compared model has a value."""
    found = []
    for table in published_tables().values():
        names = [row.model for row in table.rows]
        rows = [
            TableRow(
                label=row.model if names.count(row.model) == 1 else f"{row.model}, {row.protocol.split()[0]}",
                values=tuple(
                    percent(None if n not in row.values else row.values[n] / 100) for n in table.columns
                ),
                protocol=f"{PUBLISHED}; {row.protocol}" if row.protocol else PUBLISHED,
                published=True,
            )
            for row in table.rows
        ]
        has_any = False
        for summary, label, mark in zip(
            comparison.summaries, comparison.labels, _marks(comparison), strict=True
        ):
            scores = [summary.score(name) for name in table.columns]
            has_any = has_any or any(s is not None and s.value is not None for s in scores)
            rows.append(
                TableRow(
                    label=label + mark,
                    values=tuple(value_text(score) for score in scores),
                    protocol=_protocol(summary, scores),
                    published=False,
                )
            )
        if has_any:
            found.append(AmongPublished(table=table, rows=tuple(rows)))
    return found


def _protocol(summary: Summary, scores: Sequence[Score | None]) -> str:
    """Return the distinct parts of several scores' protocols, each once."""
    subsets = [summary.score(name) for score in scores if score for name in score.of or (score.name,)]
    parts = [part for score in subsets if score for part in score.protocol.split("; ") if part]
    return "; ".join(dict.fromkeys(parts))


def margin_text(margin: float) -> str:
    """Return a margin, e.g. `+1.25`, with a true minus sign."""
    return f"{margin:+.2f}".replace("-", "−")


def html(
    comparison: Comparison,
    plots: Mapping[str, str],
    disagreements: Disagreements,
    images: Mapping[str, str],
) -> str:
    """Return the report as one HTML page without external resources.

    Args:
        comparison: the comparison to show.
        plots: heading -> inline SVG.
        disagreements: disagreements of each model but the first.
        images: `SOURCE:ID` -> data URI; an image without one is shown by its key.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=select_autoescape(), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"percent": percent, "points": points, "value_text": value_text, "title": title}
    environment.filters |= {"interval": interval_text, "margin": margin_text, "test": test_text}
    return environment.get_template("comparison.html").render(
        comparison=comparison,
        note=functools.partial(comparisons_text, comparison),
        findings=findings(comparison),
        footnotes=footnotes(comparison),
        published=among_published(comparison),
        plots=plots,
        marks=_marks(comparison),
        models=list(enumerate(comparison.labels)),
        disagreements=disagreements,
        disagreements_note=DISAGREEMENTS,
        images=images,
    )


def test_text(cell: Cell) -> str:
    """Return the interval and p value of a difference; an empty string if it is not tested."""
    if cell.test is None or cell.corrected_p is None:
        return ""
    test = cell.test
    return (
        f"95 % interval {points(test.low)} to {points(test.high)}, p = {test.p_value:.2g}, corrected "
        f"{cell.corrected_p:.2g}; the models differ on {test.differing:,} of {test.images:,} images"
    )


def findings(comparison: Comparison) -> list[str]:
    """Return one sentence per model that compares its averages with the first model's."""
    base = comparison.labels[0]
    sentences = []
    for model, label in enumerate(comparison.labels[1:], start=1):
        parts = []
        for name in comparison.averages:
            cell = comparison.cell(model, name)
            if cell.delta is not None:
                clear = "" if cell.stars or cell.test is None else " (not significant)"
                parts.append(f"{title(name)} {points(cell.delta)} points{clear}")
        if parts:
            sentences.append(f"{label} against {base}: {', '.join(parts)}.")
    return sentences


def footnotes(comparison: Comparison) -> list[str]:
    """Return the legend, and the notes on the marks that occur."""
    notes = [LEGEND]
    if any(s.partial for s in comparison.summaries):
        notes.append(PARTIAL)
    if not all(comparison.same_inputs):
        notes.append(OTHER_INPUTS)
    return notes


def _rich_cell(cell: Cell, separator: str = "\n", intervals: bool = True) -> Text:
    text = Text(value_text(cell.score))
    if intervals and (interval := interval_text(cell.score)):
        text.append(f" [{interval}]", style="dim")
    if cell.delta is not None:
        colour = {"up": "green", "down": "red"}.get(cell.trend, "")
        text.append(f"{separator}{points(cell.delta)}{cell.stars}", style=colour)
    return text


def mark(comparison: Comparison, model: int) -> str:
    """Return the suffix of a model's label: random weights, or other test sets than the first model's."""
    random = RANDOM_WEIGHTS if has_random_weights(comparison.summaries[model]) else ""
    return random + ("" if comparison.same_inputs[model] else " ‡")


def _marks(comparison: Comparison) -> list[str]:
    return [mark(comparison, model) for model in range(len(comparison.labels))]
