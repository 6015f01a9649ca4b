"""Dry runs of the stages that ask Ray for its resources: what they say is what the run then does."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from degla_ray import chain
from degla_ray.cli import from_settings
from degla_ray.config import (
    ChainConfig,
    ComputeConfig,
    DryRunConfig,
    EvaluateConfig,
    ModelConfig,
    NegativesConfig,
    PublishedConfig,
    TrainComputeConfig,
    TuneConfig,
)
from degla_ray.errors import SettingError
from degla_ray.evaluation.plan import plan as plan_evaluation
from degla_ray.negatives.pipeline import generate
from degla_ray.negatives.plan import plan as plan_negatives
from degla_ray.training.plan import plan as plan_training
from degla_ray.tuning.plan import plan as plan_tuning
from tests.training_inputs import train_config, write_inputs

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(600)]
NONE = DryRunConfig()


def files_in(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 captions in split `train`, and negatives."""
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def test_dry_run_of_train_says_steps_hours_and_bytes_and_writes_nothing(inputs: Path) -> None:
    before = files_in(inputs)
    config = train_config(inputs, max_steps=None, epochs=3)
    plan = plan_training(config, DryRunConfig(samples_per_s=2.0))
    steps = 12  # 3 epochs of 60 captions in batches of 16, rounded up
    assert plan.work == f"{steps} steps of 16, from 60 captions"
    assert plan.hours == steps * 16 / 2.0 / 3600
    parameters = sum(p.numel() for p in built(config.model))
    assert plan.size == 4 * parameters * (4 * 3 + 2)  # student, teacher, two moments; 2 kept + 1; 2 exports
    assert plan_training(config, NONE, {"train": 60}).amount == plan.amount
    assert files_in(inputs) == before


def built(model: ModelConfig) -> Any:
    from degla_ray.model.build import build

    return build(model).model.parameters()


def test_dry_run_of_train_takes_the_speed_that_an_interrupted_run_had(inputs: Path) -> None:
    config = train_config(inputs, name="interrupted", num_workers=(1, 4))  # it had two
    run = Path(plan_training(config, NONE).output)
    assert not run.exists()
    run.mkdir(parents=True)
    (run / "progress.json").write_text('{"step": 7, "workers": 2, "samples_per_s": 30.0}')
    rate = plan_training(config, NONE).rate
    assert rate is not None
    assert (rate.per_second, rate.origin) == (15.0, "measured by this run at step 7")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"num_workers": 16}, r"num_workers: found 16; expected at most"),
        ({"compute": TrainComputeConfig(use_gpu=True)}, r"compute\.use_gpu: found True; expected a"),
        ({"model": ModelConfig(name="ViT-B-33")}, r"model\.name: found 'ViT-B-33'"),
    ],
)
def test_dry_run_of_train_refuses_what_the_run_refuses(
    inputs: Path, settings: dict[str, Any], told: str
) -> None:
    with pytest.raises(SettingError, match=told):
        plan_training(train_config(inputs, **settings), NONE)


def test_dry_run_of_negatives_counts_answers_until_they_are_written(inputs: Path, tmp_path: Path) -> None:
    config = NegativesConfig(
        prepared=str(inputs / "prepared"),
        output=str(tmp_path / "out"),
        engine="scripted",
        per_kind=1,
        num_shards=2,
    )
    config = dataclasses.replace(config, tracking=dataclasses.replace(config.tracking, enabled=False))
    plan = plan_negatives(config, DryRunConfig(answers_per_s=100.0))
    assert (plan.amount, plan.unit) == (60 * 5, "answers")
    assert plan.hours == 60 * 5 / 100 / 3600
    assert list(tmp_path.iterdir()) == []
    generate(config)
    assert plan_negatives(config, NONE).amount == 0


def test_dry_run_of_evaluate_counts_each_image_and_text_once(inputs: Path) -> None:
    config = EvaluateConfig(
        model=ModelConfig(name=str(inputs / "model.json"), random_init=True),
        output=str(inputs / "evaluation"),
        prepared=str(inputs / "prepared"),
        split="train",
    )
    plan = plan_evaluation(config, DryRunConfig(items_per_s=10.0))
    assert plan.work == "1 benchmarks: 30 images, 46 texts"  # captions repeat
    assert not (inputs / "evaluation").exists()
    with pytest.raises(SettingError, match=r"compute\.use_gpu: found True"):
        plan_evaluation(dataclasses.replace(config, compute=ComputeConfig(use_gpu=True)), NONE)
    with pytest.raises(SettingError, match=r"benchmarks: found 'sugarcrepe'"):
        plan_evaluation(dataclasses.replace(config, benchmarks=["sugarcrepe"]), NONE)


def test_dry_run_of_evaluate_names_absent_images_and_keeps_no_shuffles(
    real_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "annotations").symlink_to(real_data / "annotations")
    config = EvaluateConfig(
        model=ModelConfig(name="scenes-base"),
        output=str(tmp_path / "evaluation"),
        published=PublishedConfig(data=str(tmp_path)),
        benchmarks=["sugarcrepe", "coco_order"],
    )
    plan = plan_evaluation(config, NONE)
    assert plan.work.startswith(f"2 benchmarks: {1_560 + 5_000:,} images")
    assert [note.partition(" sampled")[0] for note in plan.notes] == [
        *("coco_val2014: 16 of 16", "coco_val2017: 16 of 16")
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["annotations"]


@pytest.mark.slow  # runs every stage; the other tests here hold each stage's plan
def test_dry_run_of_a_chain_before_and_after_it_ran(repo: Path, tmp_path: Path) -> None:
    """Before, each stage's work follows from the numbers of captions to expect; after, nothing is left."""
    settings = yaml.safe_load((repo / "jobs" / "configs" / "demo.yaml").read_text())
    small = {"num_images": 24, "num_validation_images": 6, "test_items": 4}
    settings["prepare"] |= {"scenes": settings["prepare"]["scenes"] | small, "num_shards": 2}
    settings["negatives"]["num_shards"] = 2
    recipe = settings["fine_tune"]["degla"] | {"max_steps": 2, "global_batch_size": 16, "num_workers": 1}
    settings["fine_tune"] = {"degla": recipe}
    settings |= {"output": str(tmp_path / "chain"), "evaluate": {"bootstrap_samples": 10}}
    settings["tracking"] = {"uri": f"sqlite:///{tmp_path}/mlflow.db"}
    config = from_settings(ChainConfig, settings, "demo")
    plans = chain.plan(config, NONE)
    assert [plan.stage for plan in plans] == [
        *("prepare", "negatives", "train degla", "evaluate base", "evaluate degla")
    ]
    assert plans[0].amount == 30
    assert plans[1].work.startswith("90 captions")
    assert plans[2].work == "2 steps of 16, from 72 captions"
    assert list(tmp_path.iterdir()) == []

    chain.run_chain(config)
    made = files_in(tmp_path)
    assert {plan.stage: plan.amount for plan in chain.plan(config, NONE)} == {p.stage: 0 for p in plans}
    assert files_in(tmp_path) == made

    tune = TuneConfig(
        train=dataclasses.replace(config.stages().fine_tune["degla"], name="sweep"),
        suite=f"{config.root}/prepared/tests",
        space=str(repo / "tune_spaces" / "loss_weights.py"),
        num_trials=3,
    )
    trials, evaluations = plan_tuning(tune, NONE)
    assert (trials.stage, trials.amount) == ("3 trials", 3 * 2 * 16)
    assert evaluations.stage == "4 evaluations"
    assert files_in(tmp_path) == made
    with pytest.raises(SettingError, match="max_concurrent_trials"):
        plan_tuning(dataclasses.replace(tune, max_concurrent_trials=50), NONE)
