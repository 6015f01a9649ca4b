"""A run's progress as one line that fits the terminal.

The parts of the line are ordered by importance: loss, rate, time left, then the rest. A terminal shows as
many as fit; elsewhere the line has all of them.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from rich.cells import cell_len, set_cell_size

from degla_ray.training.validation import Validation

SEPARATOR = " | "


def describe(
    name: str, progress: dict[str, Any], validation: Validation | None = None, width: int | None = None
) -> str:
    """Return one line with a run's step, loss, speed, time left and, as room allows, more.

    Args:
        name: name of the run.
        progress: content of `progress.json`.
        validation: latest validation, if there is one.
        width: cells of the terminal; None means unlimited.
    """
    step = f"{progress['step']}/{progress['total_steps']}"
    loss, *others = _parts(progress, validation)
    line = SEPARATOR.join([f"{name} {step}", loss])
    if width is None:
        return SEPARATOR.join([line, *others])
    if cell_len(line) > width:
        line = SEPARATOR.join([step, loss])
    for part in others:
        longer = SEPARATOR.join([line, part])
        if cell_len(longer) > width:
            break
        line = longer
    return line if cell_len(line) <= width else set_cell_size(line, width)


def _parts(progress: dict[str, Any], validation: Validation | None) -> list[str]:
    """Return the parts of the line after the step, most important first."""
    terms = dict(progress["terms"])
    loss, lr, scale = (terms.pop(name) for name in ("loss", "lr", "logit_scale"))
    distance = progress["teacher_distance"]
    parts = [
        f"loss {loss:.4f}",
        f"{progress['samples_per_s']:.0f} samples/s",
        f"{timedelta(seconds=round(progress['eta_s']))} left",
        "" if validation is None else validation.describe(),
        " ".join(f"{term} {value:.4f}" for term, value in terms.items()),
        f"{progress['training_share']:.0%} of the time training",
        "" if progress["mfu"] is None else f"MFU {progress['mfu']:.0%}",
        f"waited {progress['wait_s']:.0f} s for data ({progress['wait_share']:.0%} now)",
        f"lr {lr:.2e} scale {scale:.2f}",
        "" if distance is None else f"teacher {distance:.4f} away",
    ]
    return [part for part in parts if part]
