"""Options of `--dry_run`. They are no settings of a job, so no output's record contains them."""

from __future__ import annotations

from dataclasses import dataclass, fields

from degla_ray.config.shared import require


@dataclass(frozen=True, kw_only=True)
class DryRunConfig:
    """Speeds for the hours, where a dry run cannot measure them, and a price for the cost."""

    captions_per_s: float | None = None
    """Captions per second and CPU for which the rules write negatives."""
    answers_per_s: float | None = None
    """Answers per second of one language-model engine, rejected ones included."""
    samples_per_s: float | None = None
    """Training samples per second of one worker."""
    items_per_s: float | None = None
    """Images and texts per second that one actor of an evaluation encodes."""
    price_per_gpu_hour: float | None = None
    """Price of a GPU hour in your currency; null: no cost is shown."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            require(value is None or value > 0, field.name, value, "more than 0")
