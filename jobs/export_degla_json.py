#!/usr/bin/env python
"""Writes captions and their negatives as DeGLA's released JSON, which its training code reads.

    python jobs/export_degla_json.py --prepared runs/coco --negatives runs/coco-negatives \
        --output runs/negatives_train.json

The way back is `python jobs/prepare.py --source degla_json`.
"""

from degla_ray.cli import run
from degla_ray.config import ExportDeglaJsonConfig


def main(config: ExportDeglaJsonConfig) -> None:
    """Imported here, so that `--help` answers at once."""
    from degla_ray.sources.export_degla_json import export_degla_json

    export_degla_json(config)


if __name__ == "__main__":
    run(ExportDeglaJsonConfig, main, "Captions and their negatives become DeGLA's released JSON.")
