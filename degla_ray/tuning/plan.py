"""What `tune` would do, for a dry run: the space and the trials' inputs are checked, and no trial is run."""

from __future__ import annotations

import dataclasses

from degla_ray import ray_setup, resources
from degla_ray.config import DryRunConfig, TuneConfig
from degla_ray.dry_run import Plan
from degla_ray.evaluation.plan import plan as plan_evaluation
from degla_ray.storage import Storage
from degla_ray.training.plan import plan as plan_training
from degla_ray.tuning import search
from degla_ray.tuning.ledger import Ledger
from degla_ray.tuning.sweep import needs, prepared, sweep_folder
from degla_ray.tuning.trial import evaluation


def plan(config: TuneConfig, options: DryRunConfig) -> list[Plan]:
    """Return what `tune` would do: its trials, with the settings of `train`, and its evaluations.

    Raises:
        SettingError, DataError: as `tune`, before its first trial.
    """
    config, space = prepared(config)
    ray_setup.start(config.train.ray)
    resources.check(needs(config))
    sweep = sweep_folder(config, space)
    trials = search.trials_left(config, space, Ledger(Storage(sweep)))
    runs = trials * config.seeds
    # Another name, because a run with the settings of `train` may be finished.
    fresh = dataclasses.replace(config.train, name=f"{config.train.name}-trial", resume="auto")
    one = plan_training(fresh, options)
    limits = [
        f"{name} {value:g}"
        for name in ("max_hours", "max_gpu_hours")
        if (value := getattr(config, name)) is not None
    ]
    early = [f"asha_every_steps {config.asha_every_steps}"] if config.asha_every_steps else []
    notes = (f"at most: it may end earlier by {' or '.join(limits + early)}",) if limits + early else ()
    train = dataclasses.replace(
        one,
        stage=f"{trials} trials",
        work=f"each: {f'{config.seeds} runs of ' if config.seeds > 1 else ''}{one.work}",
        amount=one.amount * runs,
        workers=one.workers * max(1, min(trials, config.max_concurrent_trials)),
        size=one.size * runs,
        notes=one.notes + notes,
    )
    evaluations = runs + 1
    scored = plan_evaluation(evaluation(config, config.train.model, f"{sweep}/dry-run", "base"), options)
    return [
        train,
        dataclasses.replace(
            scored,
            stage=f"{evaluations} evaluations",
            work=f"each: {scored.work}",
            amount=scored.amount * evaluations,
            size=scored.size * evaluations,
        ),
    ]
