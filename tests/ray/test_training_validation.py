"""Evaluation during training: its metrics and files, and training that is not affected by it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import ray.train
import safetensors.torch
from mlflow import MlflowClient

from degla_ray.config import (
    AdaptConfig,
    CheckpointConfig,
    EvaluateConfig,
    ModelConfig,
    TrackingConfig,
    TrainConfig,
    ValidationSettings,
)
from degla_ray.errors import SettingError
from degla_ray.evaluation.run import evaluate
from degla_ray.identity import fingerprint
from degla_ray.model import load
from degla_ray.model.export import export
from degla_ray.storage import Storage
from degla_ray.training.checkpoint_folders import complete
from degla_ray.training.run_identity import run_identity
from degla_ray.training.trainer import TrainResult, train
from degla_ray.training.validation import Validation, read_all, validate
from tests.evaluation_suite import write_suite
from tests.training_inputs import read_trace, train_config, write_inputs

pytestmark = pytest.mark.usefixtures("ray_cluster")
STEPS = (2, 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_inputs(tmp_path_factory.mktemp("validation"))
    write_suite(folder / "suite")
    return folder


@pytest.fixture(scope="module")
def config(folder: Path) -> TrainConfig:
    """Four steps on one worker, every second one validated on test sets, retrieval and own negatives."""
    return train_config(
        folder,
        max_steps=STEPS[-1],
        checkpoint=CheckpointConfig(every_steps=2, keep=9),
        tracking=TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db", experiment="validation"),
        validation=ValidationSettings(
            every_steps=2,
            suite=str(folder / "suite"),
            prepared=str(folder / "prepared"),
            negatives=str(folder / "negatives"),
            split="train",
        ),
    )


@pytest.fixture(scope="module")
def validated(config: TrainConfig, ray_cluster: None) -> TrainResult:
    return train(config)


def validations(result: TrainResult) -> dict[int, Validation]:
    return {v.step: v for v in read_all(Storage(result.run_folder))}


def evaluated(config: TrainConfig, model: str, output: Path) -> dict[str, float]:
    """What `evaluate` says of an exported model on the test sets of a run's validation."""
    settings = config.validation
    return evaluate(
        EvaluateConfig(
            model=ModelConfig(name=model),
            output=str(output),
            suite=settings.suite,
            prepared=settings.prepared,
            negatives=settings.negatives,
            split=settings.split,
            num_actors=1,
            tracking=TrackingConfig(enabled=False),
        )
    ).metrics()


def test_validation_metrics_are_those_of_evaluate_on_the_same_weights(
    config: TrainConfig, validated: TrainResult, tmp_path: Path
) -> None:
    found = validations(validated)
    assert {step: v.state for step, v in found.items()} == dict.fromkeys(STEPS, "done")
    exported = load(validated.export_student)
    file = Path(validated.run_folder, "checkpoint_000000002", "student.safetensors")
    exported.model.load_state_dict(safetensors.torch.load_file(file))
    export(exported, str(tmp_path / "model2"))
    assert found[2].metrics == evaluated(config, str(tmp_path / "model2"), tmp_path / "scores")
    for validation in found.values():
        assert {"composition", "retrieval", "negatives", "scenes/swap_obj"} < validation.metrics.keys()
        assert validation.headline == "composition"
    assert found[2].metrics != found[4].metrics


def without_validation(config: TrainConfig) -> TrainConfig:
    off = TrackingConfig(enabled=False)
    return dataclasses.replace(
        config, output=f"{config.output}-plain", validation=ValidationSettings(), tracking=off
    )


def test_validation_is_not_part_of_a_runs_identity(config: TrainConfig) -> None:
    assert run_identity(without_validation(config)) == run_identity(config)


@pytest.mark.slow  # a validation is another process; what it must not touch is the run's identity, above
def test_validation_leaves_the_losses_as_they_are(config: TrainConfig, validated: TrainResult) -> None:
    plain = train(without_validation(config))
    assert read_trace(plain.trace_path) == read_trace(validated.trace_path)


def test_validation_metrics_are_in_mlflow_at_their_steps_and_in_rays_record(
    config: TrainConfig, validated: TrainResult
) -> None:
    client, found = MlflowClient(config.tracking.uri), validations(validated)
    for name in ("composition", "scenes/swap_obj"):
        curve = client.get_metric_history(validated.mlflow_run_id or "", f"eval/{name}")
        assert [(p.step, p.value) for p in curve] == [(s, found[s].metrics[name]) for s in STEPS]
    assert all(v.logged for v in found.values())
    record = Storage(validated.run_folder).read_json("checkpoint_manager_snapshot.json")
    assert record["pending_training_results"] == []
    for entry, step in zip(record["checkpoint_results"], STEPS, strict=True):
        assert entry["metrics"]["validation/composition"] == found[step].metrics["composition"]


def test_validation_leaves_an_evaluation_folder_without_features(validated: TrainResult) -> None:
    for step in STEPS:
        left = {p.name for p in Path(validated.run_folder, "evaluations", f"step-{step:09d}").iterdir()}
        assert left == {"manifest.json", "summary.json", "scores", "items", "receipts"}


def test_validation_of_a_step_that_had_it_does_nothing(config: TrainConfig, validated: TrainResult) -> None:
    """As after a kill in the moment between the end of a validation and Ray Train's next record."""
    evaluations = Path(validated.run_folder, "evaluations")
    before = {p: p.stat().st_mtime_ns for p in evaluations.rglob("*")}
    checkpoint = ray.train.Checkpoint(f"{validated.run_folder}/checkpoint_000000002")
    metrics = validate(checkpoint, config=config, run_folder=validated.run_folder)
    assert metrics["validation/composition"] == validations(validated)[2].metrics["composition"]
    assert {p: p.stat().st_mtime_ns for p in evaluations.rglob("*")} == before


@pytest.mark.slow
def test_validation_that_fails_is_told_and_the_next_one_and_training_go_on(
    folder: Path, config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On two workers, with adapters, one checkpoint kept: another evaluation lies where step 2's shall."""
    settings = dataclasses.replace(config.validation, prepared=None, negatives=None)
    two = dataclasses.replace(
        config,
        name="two",
        num_workers=2,
        max_steps=4,
        adapt=AdaptConfig(lora_rank=2),
        validation=settings,
        checkpoint=CheckpointConfig(every_minutes=None, keep=1),
        tracking=TrackingConfig(enabled=False),
    )
    run = Storage(f"{two.output}/two-{fingerprint(run_identity(two))}")
    other = {"stage": "evaluate", "fingerprint": "other", "made_from": {}, "complete": False, "counts": {}}
    run.write_json(other, "evaluations", "step-000000002", "manifest.json")
    result = train(two)
    assert [row["step"] for row in read_trace(result.trace_path)] == [1, 2, 3, 4]
    found = validations(result)
    assert (found[2].state, found[4].state) == ("failed", "done")
    assert "step-000000002" in found[2].error
    printed = capsys.readouterr().out
    assert f"the validation of step 2 failed: {found[2].error}; training continues" in printed
    assert f": {found[4].describe()} (" in printed
    assert found[4].metrics == evaluated(two, result.export_student, tmp_path / "scores")
    assert list(complete(run)) == [4]


def test_validation_that_takes_too_long_is_given_up(
    config: TrainConfig, validated: TrainResult, tmp_path: Path
) -> None:
    run, name = tmp_path / "run", "checkpoint_000000002"
    shutil.copytree(Path(validated.run_folder) / name, run / name)
    hasty = dataclasses.replace(
        config, validation=dataclasses.replace(config.validation, timeout_minutes=0.001)
    )
    assert validate(ray.train.Checkpoint(str(run / name)), config=hasty, run_folder=str(run)) == {}
    [validation] = read_all(Storage(str(run)))
    assert validation.state == "failed"
    assert validation.error == "not finished after 0.001 minutes (validation.timeout_minutes)"


def test_validation_unknown_benchmark_is_refused_before_training(config: TrainConfig) -> None:
    settings = dataclasses.replace(config.validation, benchmarks=["scenes", "unseen"])
    with pytest.raises(SettingError, match=r"validation\.benchmarks: found 'unseen'.*scenes_order"):
        train(dataclasses.replace(config, name="unseen", validation=settings))


def test_validation_too_few_cpus_says_how_many_are_left(config: TrainConfig) -> None:
    settings = dataclasses.replace(config.validation, num_actors=7)
    told = r"validation\.num_actors: found 7; .* of the 6 CPUs that the rest of the job leaves"
    with pytest.raises(SettingError, match=told):
        train(dataclasses.replace(config, name="crowd", validation=settings))
