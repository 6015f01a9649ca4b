#!/usr/bin/env python
"""Sets evaluations side by side: console, Markdown, HTML with plots, an MLflow run. The first is the base.

    python jobs/compare.py --evaluations '[runs/evaluate/base, runs/evaluate/degla]' --output runs/compare
    python jobs/compare.py --evaluations '[scenes-base, runs/train/RUN/export_student]' \
        --suite runs/scenes/tests

An entry is a folder that `evaluate` wrote, the MLflow id of such a run, or, with `--suite`, a model.
"""

from degla_ray.cli import run
from degla_ray.config import CompareConfig


def main(config: CompareConfig) -> None:
    """Imported here, so that `--help` answers at once."""
    from degla_ray.evaluation.compare import compare

    compare(config)


if __name__ == "__main__":
    run(CompareConfig, main, "Sets evaluations side by side in one report.")
