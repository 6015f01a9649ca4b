"""A comparison as tables: console (rich), Markdown, and one self-contained HTML page.

Numbers are percent with the bootstrap 95 % interval; differences are points against the first model, with
stars of the paired McNemar test. `†` marks a number made without all of its items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from degla_ray.evaluation.benchmarks.base import Benchmark
from degla_ray.evaluation.comparison import TITLES, Cell, Comparison
from degla_ray.evaluation.summary import Score, Summary

SUBSET_WIDTH, CELL_WIDTH = 28, 30  # columns of the console's table of subsets, with intervals
TEMPLATES = Path(__file__).parent / "templates"
LEGEND = (
    "Percent, and beside it the bootstrap 95 % interval over items. Differences are points against the first "
    "row; * p < 0.05, ** p < 0.01, *** p < 0.001 (exact McNemar test over the same items, averages pooled, "
    "not corrected for the number of tests)."
)
PARTIAL = "† made without all items: pictures were missing or unreadable (named in summary.json)."
OTHER_INPUTS = "‡ evaluated on other test sets than the first row: no paired test, compare with care."


def percent(value: float | None) -> str:
    """`83.4`; a dash for none."""
    return "–" if value is None else f"{100 * value:.1f}"


def interval_text(score: Score | None) -> str:
    """`81.0–85.6`, or nothing."""
    if score is None or score.low is None or score.high is None:
        return ""
    return f"{100 * score.low:.1f}–{100 * score.high:.1f}"


def points(delta: float | None) -> str:
    """`+3.2`, with a true minus; nothing for none."""
    return "" if delta is None else f"{100 * delta:+.1f}".replace("-", "−")


def value_text(score: Score | None) -> str:
    """Percent with the partial mark."""
    return percent(None if score is None else score.value) + (
        "†" if score is not None and score.partial else ""
    )


def title(name: str) -> str:
    """Heading of an average or subset."""
    return TITLES.get(name, name)


def summary_table(summary: Summary) -> Table:
    """One model: averages, then subsets."""
    table = Table(title=escape(summary.label), title_style="bold")
    table.add_column("")
    for heading in ("%", "95 % interval", "items"):
        table.add_column(heading, justify="right")
    table.add_column("protocol", style="dim")
    for group, style in ((summary.averages, "bold"), (summary.subsets, "")):
        for score in group:
            items = f"{score.n:,}" + (f" ({score.missing:,} missing)" if score.missing else "")
            cells = (value_text(score), interval_text(score), items, score.protocol)
            table.add_row(title(score.name), *cells, style=style)
        table.add_section()
    return table


def headline(summary: Summary, benchmark: Benchmark) -> str:
    """A line on a benchmark as soon as it is scored: its averages, or its subsets where it has none."""
    names = list(benchmark.averages) or [f"{benchmark.name}/{subset}" for subset in benchmark.subsets]
    scores = [(name.rpartition("/")[2], summary.score(name)) for name in names]
    return f"{benchmark.name}: " + ", ".join(f"{name} {value_text(score)}" for name, score in scores)


def console_tables(comparison: Comparison, width: int) -> list[Table]:
    """Averages with a row a model; subsets with a column a model, with intervals where `width` lets them."""
    intervals = width >= SUBSET_WIDTH + CELL_WIDTH * len(comparison.labels)
    head = Table(title="Averages", title_style="bold")
    head.add_column("model", style="bold")
    for name in comparison.averages:
        head.add_column(title(name), justify="right")
    for model, label in enumerate(comparison.labels):
        row = [_rich_cell(comparison.cell(model, name)) for name in comparison.averages]
        head.add_row(escape(label) + _mark(comparison, model), *row)
    detail = Table(title="Subsets", title_style="bold")
    detail.add_column("subset", no_wrap=True)
    for model, label in enumerate(comparison.labels):
        detail.add_column(escape(label) + _mark(comparison, model), justify="right")
    for name in comparison.subsets:
        ends = name.split("/")[0] != _next_benchmark(comparison.subsets, name)
        cells = [
            _rich_cell(comparison.cell(model, name), "  ", intervals)
            for model in range(len(comparison.labels))
        ]
        detail.add_row(name, *cells, end_section=ends)
    return [head, detail]


def markdown(comparison: Comparison, plots: Sequence[str]) -> str:
    """The report as Markdown; `plots` are file names beside it."""
    labels = [label.replace("|", "\\|") + _mark(comparison, i) for i, label in enumerate(comparison.labels)]
    lines = ["# Comparison", "", *(f"- {line}" for line in findings(comparison)), ""]
    lines += ["| model | " + " | ".join(title(n) for n in comparison.averages) + " |"]
    lines += ["|---|" + "---:|" * len(comparison.averages)]
    for model, label in enumerate(labels):
        cells = [_plain_cell(comparison.cell(model, name)) for name in comparison.averages]
        lines.append(f"| **{label}** | " + " | ".join(cells) + " |")
    lines += ["", "| subset | " + " | ".join(labels) + " |", "|---|" + "---:|" * len(labels)]
    for name in comparison.subsets:
        cells = [_plain_cell(comparison.cell(model, name)) for model in range(len(labels))]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", *(note.replace("*", "\\*") + "  " for note in footnotes(comparison)), ""]
    lines += [f"![{name}]({name})" for name in plots]
    return "\n".join(lines) + "\n"


def html(comparison: Comparison, plots: Mapping[str, str]) -> str:
    """The report as one HTML page without outside resources.

    Args:
        comparison: what to show.
        plots: heading -> inline SVG.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=select_autoescape(), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"percent": percent, "points": points, "value_text": value_text, "title": title}
    environment.filters["interval"] = interval_text
    return environment.get_template("report.html").render(
        comparison=comparison,
        findings=findings(comparison),
        footnotes=footnotes(comparison),
        plots=plots,
        marks=[_mark(comparison, i) for i in range(len(comparison.labels))],
        models=list(enumerate(comparison.labels)),
    )


def findings(comparison: Comparison) -> list[str]:
    """One sentence a model: its averages against the first."""
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
    """The legend and the marks that occur."""
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
        colour = "green" if cell.delta > 0 else "red" if cell.delta < 0 else ""
        text.append(f"{separator}{points(cell.delta)}{cell.stars}", style=colour)
    return text


def _plain_cell(cell: Cell) -> str:
    interval = interval_text(cell.score)
    text = value_text(cell.score) + (f" [{interval}]" if interval else "")
    stars = cell.stars.replace("*", "\\*")
    return text + (f" ({points(cell.delta)}{stars})" if cell.delta is not None else "")


def _mark(comparison: Comparison, model: int) -> str:
    return "" if comparison.same_inputs[model] else " ‡"


def _next_benchmark(names: Sequence[str], name: str) -> str:
    after = names.index(name) + 1
    return names[after].split("/")[0] if after < len(names) else name.split("/")[0]
