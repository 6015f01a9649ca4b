#!/usr/bin/env python
"""Runs the whole chain: prepare, negatives, fine-tunes, evaluations, comparison.

    python jobs/chain.py --config jobs/configs/demo.yaml

Every stage is the function that its own job calls; killed and called again, the chain continues, and a
finished one takes seconds. `make demo` is this command.
"""

from __future__ import annotations

from degla_ray.cli import run
from degla_ray.config import ChainConfig


def job(config: ChainConfig) -> None:
    from degla_ray.chain import run_chain

    run_chain(config)
    if config.tracking.enabled:
        print(f"runs:   mlflow ui --backend-store-uri {config.tracking.uri}")


if __name__ == "__main__":
    run(ChainConfig, job, "Runs every stage in order; continues where it stopped.")
