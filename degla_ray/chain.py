"""The whole chain in one call: prepare -> negatives -> (base) -> fine-tunes -> evaluations -> comparison.

It only wires the stages' folders together; each stage is the same function that its own job calls, with
the settings of its section, so a chain that was killed continues where it stopped and a finished one
takes seconds. Run by `jobs/chain.py` (and so by `make demo`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
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
    NegativesConfig,
    PrepareConfig,
    TrainConfig,
)
from degla_ray.evaluation.compare import compare
from degla_ray.evaluation.run import evaluate
from degla_ray.lease import Lease
from degla_ray.negatives.pipeline import generate
from degla_ray.shards import Storage
from degla_ray.sources.prepare import prepare
from degla_ray.training.trainer import train

console = Console()


def run_chain(config: ChainConfig) -> str:
    """Runs every stage that is not finished yet; returns the comparison's folder, a URI."""
    with Lease(Storage(f"{config.output}/seed{config.seed}")):
        return _run_chain(config)


def _run_chain(config: ChainConfig) -> str:
    ray_setup.start(config.ray)
    root = f"{config.output}/seed{config.seed}"
    prepared, negatives = f"{root}/prepared", f"{root}/negatives"

    _announce("prepare", prepared)
    prepare_config = _section(PrepareConfig, "prepare", config.prepare, {"output": prepared})
    if prepare_config.source == "scenes":
        scenes = dataclasses.replace(prepare_config.scenes, seed=config.seed)
        prepare_config = dataclasses.replace(prepare_config, scenes=scenes)
    prepare(prepare_config)

    _announce("negatives", negatives)
    generate(
        _section(
            NegativesConfig,
            "negatives",
            config.negatives,
            {"prepared": prepared, "output": negatives, "seed": config.seed},
        )
    )

    wired = {"output": f"{root}/train", "seed": config.seed, "tracking": dataclasses.asdict(config.tracking)}
    base_model: Mapping[str, Any] = config.base_model
    if config.pretrain is not None:
        _announce("train base", f"{root}/train")
        data = {"data": {"prepared": prepared}}
        result = train(_section(TrainConfig, "pretrain", config.pretrain, {"name": "base", **data, **wired}))
        base_model = {"name": result.export_student}

    models = {"base": base_model}
    folders = {"base": "base" if config.pretrain is None else Path(result.run_folder).name}
    for name, settings in config.fine_tune.items():
        _announce(f"train {name}", f"{root}/train")
        data = {"data": {"prepared": prepared, "negatives": negatives}}
        run = train(
            _section(
                TrainConfig,
                f"fine_tune.{name}",
                settings,
                {"name": name, "model": base_model, **data, **wired},
            )
        )
        models[name] = {"name": run.export_student}
        folders[name] = Path(run.run_folder).name  # with its fingerprint: another recipe, another folder

    on_scenes = prepare_config.source == "scenes"
    tests = {"suite": f"{prepared}/tests"} if on_scenes else {"prepared": prepared, "negatives": negatives}
    evaluations = []
    for label, model in models.items():
        output = f"{root}/evaluate/{folders[label]}"
        _announce(f"evaluate {label}", output)
        evaluate(
            _section(
                EvaluateConfig,
                "evaluate",
                config.evaluate,
                {"model": model, "output": output, "label": label, "tracking": wired["tracking"], **tests},
            )
        )
        evaluations.append(output)

    _announce("compare", f"{root}/compare")
    return compare(CompareConfig(evaluations=evaluations, output=f"{root}/compare", tracking=config.tracking))


def _section(config_class: type, section: str, settings: Mapping[str, Any], wired: Mapping[str, Any]) -> Any:
    """A stage's config from its section of the chain and the folders that the chain decides."""
    merged: dict[str, Any] = dict(settings)
    for key, value in wired.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = {**merged[key], **value} if both else value
    return from_settings(config_class, merged, section)


def _announce(stage: str, folder: str) -> None:
    console.print(Rule(f"[bold]{stage}[/bold]  {folder}", align="left"))
