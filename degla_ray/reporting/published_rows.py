"""Published results of other models, under the names of our own scores. Read from `published/*.csv`.

A table quotes the printed numbers, except for the corrections noted in the comment at its head. To add a
table, add its file and a line in TITLES; it is shown whenever a compared evaluation has one of its columns.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from degla_ray.evaluation.benchmarks.sugarcrepe import AVERAGES, SUGARCREPE
from degla_ray.evaluation.benchmarks.zero_shot import PREFIX

FOLDER = Path(__file__).parent / "published"
ZERO_SHOT = "zeroshot"
TITLES = {
    "sugarcrepe": "SugarCrepe",
    "valse": "VALSE",
    "aro": "ARO",
    ZERO_SHOT: "Zero-shot classification",
}
_MODEL, _PROTOCOL = "model", "protocol"


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """Results of one published model."""

    model: str
    values: Mapping[str, float]
    """Score name -> percent."""
    protocol: str
    """How it was measured or corrected here, as far as known; usually empty."""

    def mean(self, names: Sequence[str]) -> float | None:
        """Return the mean over the named scores in percent; None if one is missing.

        The average `sugarcrepe` is not printed in the paper, so it is computed from the subsets.
        """
        known = dict(self.values)
        parts = [known.get(f"{SUGARCREPE}/{subset}") for subset in AVERAGES[SUGARCREPE]]
        if None not in parts:
            known[SUGARCREPE] = sum(part for part in parts if part is not None) / len(parts)
        found = [known[name] for name in names if name in known]
        return sum(found) / len(names) if names and len(found) == len(names) else None


@dataclass(frozen=True, kw_only=True)
class PublishedTable:
    """One published table."""

    title: str
    columns: tuple[str, ...]
    """Score names."""
    headings: tuple[str, ...]
    """Short headings of the columns."""
    rows: tuple[PublishedRow, ...]
    note: str
    """Source of the table, and corrections."""


@dataclass(frozen=True, kw_only=True)
class PublishedPoint:
    """One published model on two axes, in percent."""

    model: str
    protocol: str
    """Protocol of its zero-shot row."""
    x: float
    y: float


@functools.cache
def published_tables() -> Mapping[str, PublishedTable]:
    """Return every table by its file's name."""
    return {name: _read(FOLDER / f"{name}.csv", title) for name, title in TITLES.items()}


def published_points(x_names: Sequence[str], y_names: Sequence[str]) -> list[PublishedPoint]:
    """Return the models that have both means; a model with two rows of zero-shot results appears twice."""
    others: dict[str, dict[str, float]] = {}
    for name, table in published_tables().items():
        for row in table.rows if name != ZERO_SHOT else ():
            others.setdefault(row.model, {}).update(row.values)
    points = []
    for row in published_tables()[ZERO_SHOT].rows:
        whole = PublishedRow(
            model=row.model, values={**others.get(row.model, {}), **row.values}, protocol=row.protocol
        )
        x, y = whole.mean(x_names), whole.mean(y_names)
        if x is not None and y is not None:
            points.append(PublishedPoint(model=row.model, protocol=row.protocol, x=x, y=y))
    return points


def _read(path: Path, title: str) -> PublishedTable:
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = [line.removeprefix("#").strip() for line in lines if line.startswith("#")]
    reader = csv.DictReader(line for line in lines if not line.startswith("#"))
    columns = tuple(name for name in reader.fieldnames or () if name not in (_MODEL, _PROTOCOL))
    rows = tuple(
        PublishedRow(
            model=row[_MODEL],
            values={name: float(row[name]) for name in columns if row[name]},
            protocol=row.get(_PROTOCOL) or "",
        )
        for row in reader
    )
    return PublishedTable(
        title=title, columns=columns, headings=_headings(columns), rows=rows, note=" ".join(comments)
    )


def _headings(columns: Sequence[str]) -> tuple[str, ...]:
    """Return short headings: subsets of one benchmark, or names of several benchmarks."""
    benchmarks = {name.partition("/")[0] for name in columns if "/" in name}
    headings = []
    for name in columns:
        benchmark, slash, subset = name.partition("/")
        if not slash:  # sugarcrepe_swap is "swap mean", and an average over everything "mean"
            own = next((f"{b}_" for b in benchmarks if name.startswith(f"{b}_")), name)
            headings.append(f"{name.removeprefix(own)} mean".strip())
        else:
            headings.append(subset if len(benchmarks) == 1 else benchmark.removeprefix(PREFIX))
    return tuple(headings)
