#!/usr/bin/env python
"""Each picture's nearest other ones: NegCLIP's hard-negative images.

    python jobs/neighbours.py --prepared runs/scenes --model.name scenes-base --output runs/scenes-neighbours

Then `python jobs/train.py` with `--objective.name negclip --data.neighbours runs/scenes-neighbours`.
"""

from degla_ray.cli import run
from degla_ray.config import NeighboursConfig


def main(config: NeighboursConfig) -> None:
    """Imported here, so that `--help` answers at once."""
    from degla_ray.negatives.neighbours import find_neighbours

    find_neighbours(config)


if __name__ == "__main__":
    run(NeighboursConfig, main, "Finds each picture's nearest other ones.")
