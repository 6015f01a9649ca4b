#!/usr/bin/env python
"""Scores a model on test sets: one row an item, accuracies with confidence intervals, an MLflow run.

    python jobs/evaluate.py --model.name scenes-base --suite runs/scenes/tests --output runs/evaluate/base
    python jobs/evaluate.py --model.name runs/train/RUN/export_student --output runs/evaluate/flickr \
        --prepared runs/flickr8k --negatives runs/flickr8k-negatives --split val

Running it again on a finished folder does nothing.
"""

from degla_ray.cli import run
from degla_ray.config import EvaluateConfig


def main(config: EvaluateConfig) -> None:
    """Imported here, so that `--help` answers at once."""
    from degla_ray.evaluation.run import evaluate

    evaluate(config)


if __name__ == "__main__":
    run(EvaluateConfig, main, "Scores a model on test sets.")
