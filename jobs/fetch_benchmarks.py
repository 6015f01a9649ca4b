#!/usr/bin/env python
"""Downloads the files of published benchmarks, and says which of them a person has to get.

    python jobs/fetch_benchmarks.py --output benchmarks-data
    python jobs/fetch_benchmarks.py --output benchmarks-data --benchmarks '[sugarcrepe]'

An interrupted download goes on where it stopped; what is there is left alone. Ends with 1 if an item failed.
docs/benchmarks.md tells what each benchmark takes.
"""

import sys

from degla_ray.cli import run
from degla_ray.config import FetchConfig


def main(config: FetchConfig) -> None:
    """Imported here, so that `--help` answers at once."""
    from degla_ray.evaluation.fetch import fetch_benchmarks

    if not fetch_benchmarks(config):
        sys.exit(1)


if __name__ == "__main__":
    run(FetchConfig, main, "Downloads the files of published benchmarks.")
