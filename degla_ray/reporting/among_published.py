"""Tables that show the compared models among published ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from degla_ray.evaluation.comparison import Comparison
from degla_ray.evaluation.summary import Score, Summary
from degla_ray.number_formats import percent
from degla_ray.reporting.published_rows import PublishedTable, published_tables
from degla_ray.reporting.texts import label_suffixes, value_text

PUBLISHED = "published"


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
        models: dict[str, list[str]] = {}
        for row in self.rows:
            models.setdefault(row.protocol, []).append(row.label)
        models.pop(PUBLISHED, None)
        return [
            self.table.note,
            *(f"{', '.join(of)}: {protocol}" for protocol, of in models.items() if protocol),
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
            comparison.summaries, comparison.labels, label_suffixes(comparison), strict=True
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
