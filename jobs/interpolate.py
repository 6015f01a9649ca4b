#!/usr/bin/env python
"""Models between two, from one's weights to the other's (WiSE-FT): exported, evaluated, compared.

    python jobs/interpolate.py --first scenes-base --second runs/train/RUN/export_student \
        --suite runs/scenes/tests

What fine-tuning gained and what it lost is often kept and won back in better measure between the two.
"""

from degla_ray.cli import run
from degla_ray.config import InterpolateConfig


def main(config: InterpolateConfig) -> None:
    """Imported here, so that `--help` answers at once."""
    from degla_ray.evaluation.sweep_alpha import sweep

    sweep(config)


if __name__ == "__main__":
    run(InterpolateConfig, main, "Exports, evaluates and compares models on the line between two.")
