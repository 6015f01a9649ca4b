#!/usr/bin/env python
"""A sweep: draws trials from a search space, trains and evaluates each, prints the best by a stated rule.

    python jobs/tune.py --config jobs/configs/tune_demo.yaml
    python jobs/tune.py --config jobs/configs/tune_demo.yaml --num_trials 8 --max_concurrent_trials 2

The space is a Python file (`tune_spaces/`). Running it again redoes only what is not finished.
"""

from degla_ray.cli import run
from degla_ray.config import TuneConfig


def main(config: TuneConfig) -> None:
    """Imported here, so that `--help` answers at once."""
    from degla_ray.tuning import tune

    tune(config)


if __name__ == "__main__":
    run(TuneConfig, main, "A Ray Tune sweep whose trials are Ray Train runs.")
