"""The dry run of a stage: `degla STAGE … --dry_run`.

It makes the checks of the stage's run, prints what would be done, and writes nothing. A plan's imports are
inside its function, as a stage's are in commands.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from degla_ray.cli import from_settings
from degla_ray.config import (
    ChainConfig,
    DryRunConfig,
    EvaluateConfig,
    NegativesConfig,
    PrepareConfig,
    TrainConfig,
    TuneConfig,
)
from degla_ray.dry_run import FLAG, Plan, show
from degla_ray.errors import SettingError


def _prepare(config: PrepareConfig, options: DryRunConfig) -> list[Plan]:
    from degla_ray.sources.plan import plan

    del options  # its speed is measured
    return [plan(config)]


def _negatives(config: NegativesConfig, options: DryRunConfig) -> list[Plan]:
    from degla_ray.negatives.plan import plan

    return [plan(config, options)]


def _train(config: TrainConfig, options: DryRunConfig) -> list[Plan]:
    from degla_ray.training.plan import plan

    return [plan(config, options)]


def _evaluate(config: EvaluateConfig, options: DryRunConfig) -> list[Plan]:
    from degla_ray.evaluation.plan import plan

    return [plan(config, options)]


def _tune(config: TuneConfig, options: DryRunConfig) -> list[Plan]:
    from degla_ray.tuning.plan import plan

    return plan(config, options)


def _chain(config: ChainConfig, options: DryRunConfig) -> list[Plan]:
    from degla_ray.chain import plan

    return plan(config, options)


PLANS: dict[str, Callable[[Any, DryRunConfig], list[Plan]]] = {
    "prepare": _prepare,
    "negatives": _negatives,
    "train": _train,
    "evaluate": _evaluate,
    "tune": _tune,
    "chain": _chain,
}
"""Function that checks everything and returns the plans, for each stage that has a dry run."""


def dry_run(stage: str, config: Any, given: Mapping[str, str]) -> None:
    """Check a stage and print what it would do.

    Args:
        stage: name of the stage.
        config: its settings.
        given: options of the dry run as on the command line.

    Raises:
        SettingError: the stage has no dry run, or a setting cannot work.
        DeglaError: an option is unknown, or an input cannot be used.
    """
    if stage not in PLANS:
        raise SettingError(FLAG, stage, f"a stage that has one: {', '.join(PLANS)}")
    values = {option: yaml.safe_load(value) for option, value in given.items()}
    options = from_settings(DryRunConfig, values, FLAG.removeprefix("--"))
    show(PLANS[stage](config, options), options)


def help_lines(stage: str) -> str:
    """Return what `--help` says of the dry run; empty if the stage has none."""
    if stage not in PLANS:
        return ""
    names = ", ".join(field.name for field in dataclasses.fields(DryRunConfig))
    return (
        f"\n\n{FLAG} checks everything, prints steps, hours and cost, writes nothing;"
        f"\n{FLAG}.NAME takes: {names}."
    )
