"""The whole chain in one call: prepare -> negatives -> (base) -> fine-tunes -> evaluations -> comparison.

It only wires the stages' folders together; each stage is the same function that its own job calls, with
the settings of its section, so a chain that was killed continues where it stopped and a finished one
takes seconds. Run by `jobs/chain.py` (and so by `make demo`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.rule import Rule

from degla_ray import ray_setup
from degla_ray.cli import from_settings
from degla_ray.config import (
    ChainConfig,
    CompareConfig,
    EvaluateConfig,
    ModelConfig,
    NegativesConfig,
    PrepareConfig,
    TrainConfig,
)
from degla_ray.errors import SettingError
from degla_ray.evaluation.run import check_tests, evaluate
from degla_ray.lease import Lease
from degla_ray.model.source import check_model
from degla_ray.negatives.pipeline import generate
from degla_ray.reporting.compare import compare
from degla_ray.reporting.generation import publish
from degla_ray.sources.prepare import prepare
from degla_ray.storage import Storage
from degla_ray.training.trainer import train

console = Console()
BASE = "base"
"""Label of the model that fine-tunes start from."""


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """Every stage's config, parsed before any of them runs.

    Attributes:
        pretrain: of the base; None where it is given.
        base_model: what the fine-tunes start from; with `pretrain`, replaced by what that leaves.
        fine_tune: by label; their model is replaced likewise.
        evaluate: of every model; `model`, `output` and `label` are replaced.
    """

    prepare: PrepareConfig
    negatives: NegativesConfig
    pretrain: TrainConfig | None
    base_model: ModelConfig
    fine_tune: dict[str, TrainConfig]
    evaluate: EvaluateConfig


def run_chain(config: ChainConfig) -> str:
    """Run every stage that is not finished yet; return the comparison's folder, a URI.

    Raises:
        DeglaError: a section holds a wrong setting, or names no model; nothing has run then.
        LeaseHeld: another driver runs this chain.
    """
    plan = _plan(config)
    _check_models(plan)
    with Lease(Storage(_root(config))):
        return _run_chain(config, plan)


def _run_chain(config: ChainConfig, plan: _Plan) -> str:
    ray_setup.start(config.ray)
    root = _root(config)

    _announce("prepare", plan.prepare.output)
    prepare(plan.prepare)
    _announce("negatives", plan.negatives.output)
    generate(plan.negatives, publish)
    check_tests(plan.evaluate)  # names of benchmarks and splits, which only the test sets decide

    base_model, base_folder = plan.base_model, "base"
    if plan.pretrain is not None:
        _announce("train base", plan.pretrain.output)
        result = train(plan.pretrain)
        base_model, base_folder = ModelConfig(name=result.export_student), Path(result.run_folder).name

    models, folders = {BASE: base_model}, {BASE: base_folder}
    for label, fine_tune in plan.fine_tune.items():
        _announce(f"train {label}", fine_tune.output)
        run = train(dataclasses.replace(fine_tune, model=base_model))
        models[label] = ModelConfig(name=run.export_student)
        folders[label] = Path(run.run_folder).name  # with its fingerprint: another recipe, another folder

    evaluations = []
    for label, model in models.items():
        output = f"{root}/evaluate/{folders[label]}"
        _announce(f"evaluate {label}", output)
        evaluate(dataclasses.replace(plan.evaluate, model=model, output=output, label=label))
        evaluations.append(output)

    _announce("compare", f"{root}/compare")
    return compare(CompareConfig(evaluations=evaluations, output=f"{root}/compare", tracking=config.tracking))


def _check_models(plan: _Plan) -> None:
    """Check the names of every section's model before the first stage."""
    check_model(plan.base_model, "base_model", needs_weights=plan.pretrain is None)  # it is evaluated too
    if plan.pretrain is not None:
        check_model(plan.pretrain.model, "pretrain.model")
        return
    for label, fine_tune in plan.fine_tune.items():
        check_model(fine_tune.model, f"fine_tune.{label}.model")


def _plan(config: ChainConfig) -> _Plan:
    root = _root(config)
    prepared, negatives = f"{root}/prepared", f"{root}/negatives"
    prepare_config = _section(PrepareConfig, "prepare", config.prepare, {"output": prepared})
    if on_scenes := prepare_config.source == "scenes":
        scenes = dataclasses.replace(prepare_config.scenes, seed=config.seed)
        prepare_config = dataclasses.replace(prepare_config, scenes=scenes)
    made = {"prepared": prepared, "output": negatives, "seed": config.seed}

    tracked = {"tracking": dataclasses.asdict(config.tracking)}
    trained = {"output": f"{root}/train", "seed": config.seed, **tracked}
    base_model = dict(config.base_model)
    pretrain = None
    if config.pretrain is not None:
        wired = {"name": BASE, "data": {"prepared": prepared}, "model": base_model, **trained}
        pretrain = _section(TrainConfig, "pretrain", config.pretrain, wired)
    fine_tune = {}
    for label, settings in config.fine_tune.items():
        data = {"prepared": prepared, "negatives": negatives}
        wired = {"name": label, "data": data, "model": base_model, **trained}
        fine_tune[label] = _section(TrainConfig, f"fine_tune.{label}", settings, wired)
    tests = {"suite": f"{prepared}/tests"} if on_scenes else {"prepared": prepared, "negatives": negatives}
    evaluated = {"model": base_model, "output": f"{root}/evaluate", "label": BASE, **tests, **tracked}
    return _Plan(
        prepare=prepare_config,
        negatives=_section(NegativesConfig, "negatives", config.negatives, made),
        pretrain=pretrain,
        base_model=_section(ModelConfig, "base_model", base_model, {}),
        fine_tune=fine_tune,
        evaluate=_section(EvaluateConfig, "evaluate", config.evaluate, evaluated),
    )


def _root(config: ChainConfig) -> str:
    return f"{config.output}/seed{config.seed}"


def _section(config_class: type, section: str, settings: Mapping[str, Any], wired: Mapping[str, Any]) -> Any:
    """Return a stage's config from its section of the chain and the settings that the chain decides.

    Raises:
        SettingError: the section sets what the chain decides.
        DeglaError: a wrong setting.
    """
    merged: dict[str, Any] = dict(settings)
    for key, value in wired.items():
        found = merged.get(key, value)
        both = isinstance(value, Mapping) and isinstance(found, Mapping)
        for name in value.keys() & found.keys() if both else ():
            _require_same(f"{section}.{key}.{name}", found[name], value[name])
        if not both:
            _require_same(f"{section}.{key}", found, value)
        merged[key] = {**found, **value} if both else value
    return from_settings(config_class, merged, section)


def _require_same(setting: str, found: object, wired: object) -> None:
    if found != wired:
        raise SettingError(setting, found, f"no such setting here: the chain decides it ({wired!r})")


def _announce(stage: str, folder: str) -> None:
    console.print(Rule(f"[bold]{stage}[/bold]  {folder}", align="left"))
