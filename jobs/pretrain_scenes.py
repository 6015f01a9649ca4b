#!/usr/bin/env python
"""Trains `scenes-base`, the small model that the demo starts from, with plain CLIP on rendered scenes.

    python jobs/pretrain_scenes.py --config jobs/configs/pretrain_scenes.yaml

The committed weights came from this command; it replaces them unless `--export` names another folder.
"""

from __future__ import annotations

from degla_ray.cli import run
from degla_ray.config import PretrainScenesConfig


def job(config: PretrainScenesConfig) -> None:
    from degla_ray.pretrain_scenes import pretrain_scenes

    print(f"model: {pretrain_scenes(config)}")


if __name__ == "__main__":
    run(PretrainScenesConfig, job, "Trains the small base model of the demo.")
