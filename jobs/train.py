#!/usr/bin/env python
"""Trains (fine-tunes) a model on prepared pictures, captions and negatives.

    python jobs/train.py --name first --data.prepared runs/scenes --data.negatives runs/scenes-negatives

Ended in any way and called again with the same settings, it continues after its last checkpoint. Two
workers on a CPU are up in about 15 s. `--print_config` shows every setting.
"""

from __future__ import annotations

from degla_ray.cli import run
from degla_ray.config import TrainConfig


def job(config: TrainConfig) -> None:
    from degla_ray.training.trainer import train

    result = train(config)
    print(f"student: {result.export_student}")
    if result.export_teacher is not None:
        print(f"teacher: {result.export_teacher}")


if __name__ == "__main__":
    run(TrainConfig, job, "Trains a model; continues a run of the same settings.")
