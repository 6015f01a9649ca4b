"""Run all stages in one call: prepare, negatives, base model, fine-tuning, evaluations, comparison.

Each stage is the function that its own job calls, with the settings of its section and the folders that
`ChainConfig.stages` gives it. So a chain that was killed continues where it stopped, and a finished one
takes seconds. Run by `jobs/chain.py`, and so by `make demo`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import Console
from rich.rule import Rule

from degla_ray import ray_setup, tracking
from degla_ray.config import (
    ChainConfig,
    CompareConfig,
    DryRunConfig,
    EvaluateConfig,
    ModelConfig,
    NegativesConfig,
    PrepareConfig,
    TrainConfig,
)
from degla_ray.config.chains import BASE
from degla_ray.dry_run import Plan
from degla_ray.errors import SettingError
from degla_ray.evaluation import plan as evaluation_plan
from degla_ray.evaluation.run import check_tests, evaluate
from degla_ray.evaluation.summary import STAGE as EVALUATE
from degla_ray.identity import fingerprint
from degla_ray.lease import Lease
from degla_ray.model.source import check_model
from degla_ray.negatives import plan as negatives_plan
from degla_ray.negatives.pipeline import generate
from degla_ray.reporting.compare import compare
from degla_ray.reporting.generation import publish
from degla_ray.sources import plan as prepare_plan
from degla_ray.sources.prepare import prepare
from degla_ray.stage import is_complete
from degla_ray.storage import Storage
from degla_ray.training import plan as training_plan
from degla_ray.training.job import EXPORT_STUDENT
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
        tracking.require(config.tracking)
        ray_setup.start(config.ray)
        run = tracking.running(
            config.tracking,
            name=f"chain {Path(config.output).name}",
            fingerprint=fingerprint(config),
            folder=Storage(config.root).uri,
            params={"seed": config.seed, "base_model": config.base_model},
            tags={tracking.STAGE_TAG: "chain"},
        )
        with run as run_id:
            return _run_chain(config, run_id)


def _run_chain(config: ChainConfig, run_id: str | None) -> str:
    root, stages = config.root, config.stages()

    _announce("prepare", stages.prepare.output)
    prepare(stages.prepare)
    _announce("negatives", stages.negatives.output)
    generate(stages.negatives, publish)
    check_tests(stages.evaluate)  # names of benchmarks and splits, which only the test sets decide

    base_model, base_folder = config.base_model, BASE
    if stages.pretrain is not None:
        _announce(f"train {BASE}", stages.pretrain.output)
        result = train(stages.pretrain, parent_run_id=run_id)
        base_model, base_folder = ModelConfig(name=result.export_student), Path(result.run_folder).name

    models, folders = {BASE: base_model}, {BASE: base_folder}
    for label, fine_tune in stages.fine_tune.items():
        _announce(f"train {label}", fine_tune.output)
        run = train(dataclasses.replace(fine_tune, model=base_model), parent_run_id=run_id)
        models[label] = ModelConfig(name=run.export_student)
        folders[label] = Path(run.run_folder).name  # with its fingerprint: another recipe, another folder

    evaluations = []
    for label, model in models.items():
        output = f"{root}/evaluate/{folders[label]}"
        _announce(f"evaluate {label}", output)
        of_model = dataclasses.replace(stages.evaluate, model=model, output=output, label=label)
        evaluate(of_model, parent_run_id=run_id)
        evaluations.append(output)

    _announce("compare", f"{root}/compare")
    return compare(CompareConfig(evaluations=evaluations, output=f"{root}/compare", tracking=config.tracking))


def plan(config: ChainConfig, options: DryRunConfig) -> list[Plan]:
    """Return what each stage would do; until its inputs are written, from the numbers of captions to expect.

    Raises:
        SettingError, DataError: as the plans of the stages.
    """
    check_model(config.base_model, "base_model", needs_weights=config.pretrain is None)
    stages, base_model = config.stages(), config.base_model
    with _named_in_chain("prepare", PrepareConfig):
        prepared = prepare_plan.plan(stages.prepare)
    ray_setup.start(config.ray)
    expected = prepared.captions if prepared.amount else None
    with _named_in_chain("negatives", NegativesConfig):
        captions = None if expected is None else sum(expected.values())
        negatives = negatives_plan.plan(stages.negatives, options, captions)
    trained: dict[str, Plan] = {}
    if stages.pretrain is not None:
        with _named_in_chain("pretrain", TrainConfig):
            trained[BASE] = training_plan.plan(stages.pretrain, options, expected)
        base_model = ModelConfig(name=f"{trained[BASE].output}/{EXPORT_STUDENT}")
    if negatives.amount or (BASE in trained and trained[BASE].amount):
        expected, base_model = prepared.captions, config.base_model
    for label, fine_tune in stages.fine_tune.items():
        model = dataclasses.replace(fine_tune, model=base_model)
        with _named_in_chain(f"fine_tune.{label}", TrainConfig):
            trained[label] = training_plan.plan(model, options, expected)
    is_new = bool(prepared.amount or negatives.amount)
    scores = _on_existing_tests(stages.evaluate) if is_new else stages.evaluate
    return [prepared, negatives, *trained.values(), *_evaluations(config, scores, trained, options)]


@contextlib.contextmanager
def _named_in_chain(section: str, config_class: type) -> Iterator[None]:
    """Name a stage's wrong setting as it is named in the chain's file."""
    try:
        yield
    except SettingError as error:
        raise error.below(section, config_class) from None


def _on_existing_tests(config: EvaluateConfig) -> EvaluateConfig | None:
    """Return the settings without the test sets that the chain has yet to write; None if none is left."""
    if not config.published.given or config.benchmarks != ["all"]:
        return None
    return dataclasses.replace(config, suite=None, prepared=None, negatives=None)


def _evaluations(
    config: ChainConfig, scores: EvaluateConfig | None, trained: Mapping[str, Plan], options: DryRunConfig
) -> list[Plan]:
    """Return a plan for each model; all have the same test sets, which are read once."""
    shared = Plan(stage=EVALUATE, output=config.root, work="test sets that are not written yet", amount=1)
    if scores is not None:
        with _named_in_chain("evaluate", EvaluateConfig):
            shared = evaluation_plan.plan(dataclasses.replace(scores, model=config.base_model), options)
    plans = []
    for label in dict.fromkeys([BASE, *trained]):
        training = trained.get(label)
        folder = BASE if training is None else Path(training.output).name
        output, stage = f"{config.root}/evaluate/{folder}", f"{EVALUATE} {label}"
        finished = (training is None or not training.amount) and is_complete(output)
        found = Plan(stage=stage, output=output) if finished else shared
        plans.append(dataclasses.replace(found, stage=stage, output=output))
    return plans


def _announce(stage: str, folder: str) -> None:
    console.print(Rule(f"[bold]{stage}[/bold]  {folder}", align="left"))
