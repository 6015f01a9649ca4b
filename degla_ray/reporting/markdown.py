"""A comparison as Markdown, with links to the plots next to it; items are shown by their texts."""

from __future__ import annotations

import re
from collections.abc import Sequence

from degla_ray.evaluation.comparison import Cell, Comparison, title
from degla_ray.number_formats import MISSING, points
from degla_ray.reporting.among_published import among_published
from degla_ray.reporting.disagreements import Disagreement
from degla_ray.reporting.texts import (
    DISAGREEMENTS,
    Disagreements,
    comparisons_text,
    footnotes,
    interval_text,
    label_suffix,
    margin_text,
    value_text,
)
from degla_ray.reporting.verdicts import findings, made_of


def markdown(comparison: Comparison, plots: Sequence[str], disagreements: Disagreements) -> str:
    """Return the report as Markdown; `plots` are file names relative to it."""
    labels = [_md_label(comparison, model) for model in range(len(comparison.labels))]
    lines = ["# Comparison", "", *(f"- {literal(finding.sentence)}" for finding in findings(comparison))]
    if comparison.averages:
        lines += _md_head(["model", *(title(name) for name in comparison.averages)])
    for model, label in enumerate(labels if comparison.averages else ()):
        lines.append(
            _md_row(f"**{label}**", *(_plain_cell(comparison.cell(model, n)) for n in comparison.averages))
        )
    lines += _md_note(comparison, comparison.averages)
    made = {name: made_of(comparison, name) for name in comparison.averages}
    lines += ["", *(f"- {literal(title(name))}: {literal(of)}" for name, of in made.items() if of)]
    for among in among_published(comparison):
        lines += ["", f"## {among.table.title}, among published results"]
        lines += _md_head(["model", *map(literal, among.table.headings), "protocol"])
        for row in among.rows:
            name = literal(row.label)
            lines.append(
                _md_row(name if row.published else f"**{name}**", *row.values, literal(row.protocol))
            )
        lines += ["", literal(among.table.note)]
    for group in comparison.groups:
        lines += ["", f"## {literal(group.title)}", *_md_head(["subset", *labels])]
        for name, heading in zip(group.names, group.headings, strict=True):
            cells = [_plain_cell(comparison.cell(model, name)) for model in range(len(labels))]
            lines.append(_md_row(literal(heading) if "/" in name else f"**{literal(heading)}**", *cells))
        lines += _md_note(comparison, group.names)
    lines += ["", *(note.replace("*", "\\*") + "  " for note in footnotes(comparison)), ""]
    lines += [f"![{name}]({name})" for name in plots]
    for model, items in disagreements.items():
        lines += ["", f"## {labels[0]} against {labels[model]}: where they disagree", "", DISAGREEMENTS]
        for number, item in enumerate(items, start=1):
            lines += ["", f"{number}. {_md_item(item, labels[0], labels[model])}"]
    return "\n".join(lines) + "\n"


def _md_item(item: Disagreement, first: str, second: str) -> str:
    """Return one item, with its candidates as a table inside a list entry."""
    right = first if item.correct[0] else second
    what = [f"**{literal(item.benchmark)}/{literal(item.subset)}** {literal(item.item_id)}"]
    what.append(f"right: {right}; margins {margin_text(item.margins[0])} and {margin_text(item.margins[1])}")
    what += [f"shown: {', '.join(map(literal, item.images))}"] if item.images else []
    what += [f"text: {' / '.join(map(literal, item.texts))}"] if item.texts else []
    wrong = second if item.correct[0] else first
    rows = [*_md_head(["candidate", first, second])]
    for i, candidate in enumerate(item.candidates):
        name = f"**{literal(candidate)}** (true)" if item.true[i] else literal(candidate)
        name += f" (chosen by {wrong})" if i == item.chosen else ""
        scores = [own[i] for own in item.scores]
        rows.append(_md_row(name, *(MISSING if score is None else f"{score:.3f}" for score in scores)))
    return "  \n   ".join(what) + "\n" + "\n".join(f"   {row}".rstrip() for row in rows)


def _md_note(comparison: Comparison, names: Sequence[str]) -> list[str]:
    note = comparisons_text(comparison, names)
    return ["", literal(note)] if note else []


def _md_head(headings: Sequence[str]) -> list[str]:
    return ["", _md_row(*headings), "|---|" + "---:|" * (len(headings) - 1)]


def _md_row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _md_label(comparison: Comparison, model: int) -> str:
    return literal(comparison.labels[model]) + label_suffix(comparison, model)


def literal(text: str) -> str:
    """Return a text on one line, escaped so that Markdown shows it unchanged."""
    return re.sub(r"([\\`*_\[\]<>|#$~&])", r"\\\1", " ".join(text.split()))


def _plain_cell(cell: Cell) -> str:
    interval = interval_text(cell.score)
    text = value_text(cell.score) + (f" [{interval}]" if interval else "")
    stars = cell.stars.replace("*", "\\*")
    return text + (f" ({points(cell.delta)}{stars})" if cell.delta is not None else "")
