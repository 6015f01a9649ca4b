"""A comparison as CSV, for other programs, and as LaTeX (booktabs), for a paper."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

from degla_ray.evaluation.comparison import Cell, Comparison, title
from degla_ray.number_formats import MISSING, points
from degla_ray.reporting.texts import LEGEND, interval_text, label_suffix, value_text
from degla_ray.reporting.verdicts import chance_of, made_of

COLUMNS = (
    *("score", "model", "value", "low", "high", "items", "missing", "chance"),
    *("difference", "difference_low", "difference_high", "p", "corrected_p", "stars"),
)
_LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}"},
    **{"–": "--", "−": "$-$", "†": r"\textdagger{}", "‡": r"\textdaggerdbl{}"},
}
_FORMULA = re.compile(r"[=+\-@\t\r]")  # what makes a spreadsheet compute a cell


def csv_table(comparison: Comparison) -> str:
    """Return one line per score and model: fractions of 1, differences against the first model."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for name in comparison.names:
        for model, label in enumerate(comparison.labels):
            cell = comparison.cell(model, name)
            if cell.score is not None:
                row = [_plain(name), _plain(label), *_numbers(cell, chance_of(comparison, name))]
                writer.writerow("" if value is None else value for value in row)
    return file.getvalue()


def _numbers(cell: Cell, chance: float | None) -> list[float | int | str | None]:
    score, test = cell.score, cell.test
    assert score is not None
    low, high, p = (None, None, None) if test is None else (test.low, test.high, test.p_value)
    own = [score.value, score.low, score.high, score.n, score.missing, chance]
    return [*own, cell.delta, low, high, p, cell.corrected_p, cell.stars]


def _plain(text: str) -> str:
    """Return a text that a spreadsheet shows and does not compute."""
    return f"'{text}" if _FORMULA.match(text) else text


def latex_tables(comparison: Comparison) -> str:
    """Return a LaTeX table of the averages and one per benchmark, each with a row per model or subset.

    They need the packages booktabs and textcomp with T1 fonts.
    """
    tables = ["% \\usepackage[T1]{fontenc}, \\usepackage{booktabs}, \\usepackage{textcomp}"]
    labels = [label + label_suffix(comparison, m) for m, label in enumerate(comparison.labels)]
    if comparison.averages:
        rows = [
            [_latex(label), *(_cell(comparison.cell(m, name)) for name in comparison.averages)]
            for m, label in enumerate(labels)
        ]
        made = [f"{title(name)}: {of}." for name in comparison.averages if (of := made_of(comparison, name))]
        heads = ["model", *map(title, comparison.averages)]
        tables.append(_table(heads, rows, "averages", f"{LEGEND} {' '.join(made)}"))
    for group in comparison.groups:
        rows = [
            [_latex(heading), *(_cell(comparison.cell(m, name)) for m in range(len(labels)))]
            for name, heading in zip(group.names, group.headings, strict=True)
        ]
        tables.append(_table(["subset", *labels], rows, group.title, f"{group.title}. {LEGEND}"))
    return "\n".join(tables)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], label: str, caption: str) -> str:
    lines = [
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{_latex(caption)}}}",
        f"\\label{{tab:{re.sub(r'[^a-z0-9]+', '-', label.lower())}}}",
        f"\\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
        "\\toprule",
        f"{' & '.join(map(_latex, heads))} \\\\",
        "\\midrule",
        # the line break before takes a bracket or a star for its own
        *(f"{'{}' if row[0].startswith(('[', '*')) else ''}{' & '.join(row)} \\\\" for row in rows),
        "\\bottomrule",
        "\\end{tabular}",
        "\\end{table}",
        "",
    ]
    return "\n".join(lines)


def _cell(cell: Cell) -> str:
    """Return a result, its interval in small type and its difference with stars."""
    if cell.score is None or cell.score.value is None:
        return _latex(MISSING)
    interval = interval_text(cell.score)
    text = _latex(value_text(cell.score)) + (f" {{\\scriptsize [{_latex(interval)}]}}" if interval else "")
    if cell.delta is None:
        return text
    stars = f"$^{{{cell.stars}}}$" if cell.stars else ""
    return f"{text} ({_latex(points(cell.delta))}{stars})"


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))
