"""Loss trace of the training run that an exported model came from."""

from __future__ import annotations

import json
import math
from typing import Any

from degla_ray.reporting.provenance import find_beside

TRACE = "trace.jsonl"
COLUMNS = ("step", "loss", "base", "igc", "tgc", "distill")


def training_curve(folder: str) -> dict[str, list[float]] | None:
    """Return column -> values of the trace near an exported model's folder (any URI), or None without a
    trace.

    If a resumed run repeated a step, the step's last line counts. A line that an interrupted run left
    incomplete is skipped, because the resumed run wrote that step again.
    """
    place = find_beside(folder, TRACE)
    if place is None:
        return None
    rows: dict[float, dict[str, Any]] = {}
    for line in place.read_bytes(TRACE).decode(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and "step" in row:
            rows[row["step"]] = row
    ordered = [rows[step] for step in sorted(rows)]
    present = [c for c in COLUMNS if any(c in row for row in ordered)]
    return {c: [_number(row.get(c)) for row in ordered] for c in present} if ordered else None


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
