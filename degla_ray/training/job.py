"""What the driver passes to the workers, and the names of the files that both use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from degla_ray.config import TrainConfig
from degla_ray.loader.order import BatchOrder
from degla_ray.training.sanity import Candidates

LOG_INTERVAL_S = 1.0
"""Approximate log interval in seconds."""
REPORT_S = 5.0
"""Approximate seconds between reports to Ray Train, and between writes of the trace."""
CONFIG, PROGRESS, ERROR, RECOVERY = "config.json", "progress.json", "error.json", "recovery.json"
EXPORT_STUDENT, EXPORT_TEACHER = "export_student", "export_teacher"
TRACE = "trace.jsonl"


def schedule(config: TrainConfig, num_rows: int, part_rows: tuple[int, ...] = ()) -> tuple[BatchOrder, int]:
    """Return the order of the global batches and the steps of a run over `num_rows` samples."""
    order = BatchOrder(
        seed=config.seed,
        num_rows=num_rows,
        batch_size=config.global_batch_size,
        part_rows=part_rows if config.data.block_rows else (),
        block_rows=config.data.block_rows,
    )
    return order, config.max_steps or order.steps(config.epochs)


@dataclass(frozen=True, kw_only=True)
class Job:
    """Arguments of every worker.

    Attributes:
        config: the run's config, with absolute paths.
        fingerprint: fingerprint of the run.
        run_folder: URI of the run's folder.
        samples: reference to the Samples in Ray's object store.
        order: order of the global batches.
        total_steps: steps of the whole run.
        versions: library versions, recorded in checkpoints.
        candidates: images and texts of a global batch, for the warning about the first loss.
        short_side: median short side of the images in pixels, for the warning about small images.
        data: one line on the data, for the cards of the exported models.
    """

    config: TrainConfig
    fingerprint: str
    run_folder: str
    samples: Any
    order: BatchOrder
    total_steps: int
    versions: dict[str, str]
    candidates: Candidates
    short_side: int
    data: str
