"""What `tune` would do, for a dry run: the space and the trials' inputs are checked, and no trial is run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from degla_ray import ray_setup, resources
from degla_ray.config import DryRunConfig, TuneConfig
from degla_ray.dry_run import Plan
from degla_ray.evaluation.plan import plan as plan_evaluation
from degla_ray.training.plan import plan as plan_training
from degla_ray.tuning.sweep import checked_space, evaluation, needs


def plan(config: TuneConfig, options: DryRunConfig) -> list[Plan]:
    """Return what `tune` would do: its trials, with the settings of `train`, and its evaluations.

    Raises:
        SettingError, DataError: as `tune`, before its first trial.
    """
    space = checked_space(config)
    ray_setup.start(config.train.ray)
    resources.check(needs(config))
    grids = [len(d["grid_search"]) for d in space.values() if isinstance(d, Mapping) and "grid_search" in d]
    trials = config.num_trials * math.prod(grids)
    fresh = dataclasses.replace(config.train, name=f"{config.train.name}-trial", resume="auto")
    one = plan_training(fresh, options)
    train = dataclasses.replace(
        one,
        stage=f"{trials} trials",
        work=f"each: {one.work}",
        amount=one.amount * trials,
        workers=one.workers * min(trials, config.max_concurrent_trials),
        size=one.size * trials,
    )
    # A folder that does not exist: the sweep's own is named by its fingerprint.
    each = evaluation(config, config.train.model, f"{config.train.output}/sweep-{config.train.name}", "base")
    scored = plan_evaluation(each, options)
    return [
        train,
        dataclasses.replace(
            scored,
            stage=f"{trials + 1} evaluations",
            work=f"each: {scored.work}",
            amount=scored.amount * (trials + 1),
            size=scored.size * (trials + 1),
        ),
    ]
