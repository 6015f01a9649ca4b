"""What the driver tells the workers of a run, and the names of the files that they leave for it.

Imports neither torch nor open_clip, so that a driver that only waits starts seconds sooner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from degla_ray.config import TrainConfig
from degla_ray.loader.order import BatchOrder

PULSE_S = 1.0
"""Seconds between two meetings of the workers, about."""
REPORT_S = 5.0
"""Seconds between two reports to Ray Train and writings of the trace, about."""
PROGRESS, ERROR = "progress.json", "error.json"
EXPORT_STUDENT, EXPORT_TEACHER = "export_student", "export_teacher"
TRACE = "trace.jsonl"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every worker is told.

    Attributes:
        config: of the run; paths in it are absolute.
        fingerprint: of the run.
        run_folder: URI.
        samples: reference to the Samples in Ray's object store.
        decoders: each worker's actors.
        order: of the global batches.
        total_steps: of the whole run.
        versions: of the libraries, for the record.
    """

    config: TrainConfig
    fingerprint: str
    run_folder: str
    samples: Any
    decoders: list[list[Any]]
    order: BatchOrder
    total_steps: int
    versions: dict[str, str]
