"""Run all stages in one call: prepare, negatives, base model, fine-tuning, evaluations, comparison.

Each stage is the function that its own job calls, with the settings of its section and the folders that
`ChainConfig.stages` gives it. So a chain that was killed continues where it stopped, and a finished one
takes seconds. Run by `jobs/chain.py`, and so by `make demo`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rich.console import Console
from rich.rule import Rule

from degla_ray import ray_setup
from degla_ray.config import ChainConfig, CompareConfig, ModelConfig
from degla_ray.config.chains import BASE
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


def run_chain(config: ChainConfig) -> str:
    """Run every stage that is not finished yet; return the comparison's folder, a URI.

    Raises:
        SettingError: `base_model` names no model; nothing has run then.
        LeaseHeld: another driver runs this chain.
    """
    # The base model is evaluated too, so it needs weights unless it is trained first.
    check_model(config.base_model, "base_model", needs_weights=config.pretrain is None)
    with Lease(Storage(config.root)):
        return _run_chain(config)


def _run_chain(config: ChainConfig) -> str:
    ray_setup.start(config.ray)
    root, stages = config.root, config.stages()

    _announce("prepare", stages.prepare.output)
    prepare(stages.prepare)
    _announce("negatives", stages.negatives.output)
    generate(stages.negatives, publish)
    check_tests(stages.evaluate)  # names of benchmarks and splits, which only the test sets decide

    base_model, base_folder = config.base_model, BASE
    if stages.pretrain is not None:
        _announce(f"train {BASE}", stages.pretrain.output)
        result = train(stages.pretrain)
        base_model, base_folder = ModelConfig(name=result.export_student), Path(result.run_folder).name

    models, folders = {BASE: base_model}, {BASE: base_folder}
    for label, fine_tune in stages.fine_tune.items():
        _announce(f"train {label}", fine_tune.output)
        run = train(dataclasses.replace(fine_tune, model=base_model))
        models[label] = ModelConfig(name=run.export_student)
        folders[label] = Path(run.run_folder).name  # with its fingerprint: another recipe, another folder

    evaluations = []
    for label, model in models.items():
        output = f"{root}/evaluate/{folders[label]}"
        _announce(f"evaluate {label}", output)
        evaluate(dataclasses.replace(stages.evaluate, model=model, output=output, label=label))
        evaluations.append(output)

    _announce("compare", f"{root}/compare")
    return compare(CompareConfig(evaluations=evaluations, output=f"{root}/compare", tracking=config.tracking))


def _announce(stage: str, folder: str) -> None:
    console.print(Rule(f"[bold]{stage}[/bold]  {folder}", align="left"))
