"""A sweep on a local Ray: real trainings and evaluations of a tiny model."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from degla_ray.config import (
    CheckpointConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    TrackingConfig,
    TrainConfig,
    TuneConfig,
)
from degla_ray.errors import DeglaError, SettingError
from degla_ray.tuning.sweep import Trial, tune
from tests.evaluation_suite import write_suite
from tests.training_inputs import write_inputs

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(600)]


def _config(folder: Path, space: str, **settings: object) -> TuneConfig:
    file = folder / "space.py"
    file.write_text(f"from ray import tune\n\ndef space():\n    return {space}\n")
    train = TrainConfig(
        name="tiny",
        data=DataConfig(
            prepared=str(folder / "prepared"), negatives=str(folder / "negatives"), decode_tasks=1
        ),
        output=str(folder / "runs"),
        model=ModelConfig(name=str(folder / "model.json"), random_init=True),
        optimizer=OptimizerConfig(lr=1e-3, warmup_steps=1),
        checkpoint=CheckpointConfig(every_minutes=None),
        tracking=TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db", experiment="sweep"),
        global_batch_size=8,
        max_steps=3,
    )
    return TuneConfig(train=train, suite=str(folder / "suite"), space=str(file), **settings)


def _children(config: TuneConfig) -> dict[str | None, list[str]]:
    """MLflow parent run -> its child runs; parents themselves stand under None."""
    client = MlflowClient(config.train.tracking.uri)
    experiment = client.get_experiment_by_name("sweep")
    assert experiment is not None
    families: dict[str | None, list[str]] = {}
    for run in client.search_runs([experiment.experiment_id]):
        families.setdefault(run.data.tags.get("mlflow.parentRunId"), []).append(run.info.run_id)
    return families


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_inputs(tmp_path_factory.mktemp("tune"))
    write_suite(folder / "suite")
    return folder


@pytest.fixture(scope="module")
def swept(folder: Path, ray_cluster: None) -> tuple[TuneConfig, Trial, str]:
    """A sweep of two trials, of which one fails, and what it printed."""
    space = (
        '{"objective.lambda_igc": tune.loguniform(0.01, 1.0), "optimizer.lr": tune.grid_search([1e-3, 1e30])}'
    )
    config = _config(folder, space, num_trials=1, max_concurrent_trials=1, max_zero_shot_loss=1.0)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        best = tune(config)
    return config, best, printed.getvalue()


def test_tune_trials_are_trained_and_evaluated_and_one_that_fails_is_reported(
    swept: tuple[TuneConfig, Trial, str],
) -> None:
    config, best, printed = swept
    [file] = (Path(config.train.output)).glob("sweep-tiny-*/trials.json")
    good, bad = sorted(json.loads(file.read_text()), key=lambda trial: trial["settings"]["optimizer.lr"])
    assert good["settings"]["objective.lambda_igc"] != bad["settings"]["objective.lambda_igc"]
    made = json.loads(Path(file.parent, good["run_folder"], "config.json").read_text())["config"]
    assert made["objective"]["lambda_igc"] == good["settings"]["objective.lambda_igc"]
    assert made["optimizer"]["lr"] == best.settings["optimizer.lr"] == 1e-3
    assert best.composition == good["composition"]
    assert "loss of step" in bad["error"]
    assert "failed" in printed


def test_tune_mlflow_has_a_parent_and_a_child_for_each_trial(swept: tuple[TuneConfig, Trial, str]) -> None:
    config, best, _ = swept
    families = _children(config)
    [parent] = families[None]
    assert len(families[parent]) == 2
    assert best.run_id in families[parent]
    client = MlflowClient(config.train.tracking.uri)
    run = client.get_run(parent)
    assert run.info.status == "FINISHED"
    assert run.data.tags["best_run"] == best.run_id
    assert run.data.metrics["best/composition"] == best.composition
    scored = {c for c in families[parent] if "eval/composition" in client.get_run(c).data.metrics}
    assert scored == {best.run_id}


def test_tune_one_trial_at_a_time_trainings_do_not_overlap(swept: tuple[TuneConfig, Trial, str]) -> None:
    config, _, _ = swept
    families = _children(config)
    client = MlflowClient(config.train.tracking.uri)
    children = [client.get_run(child).info for child in families[families[None][0]]]
    times = sorted((child.start_time, child.end_time) for child in children)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(times))


@pytest.mark.slow  # test_train_finished_run_again_does_nothing and its like hold the rule of each part
def test_tune_again_adds_nothing_and_finds_the_same_best(swept: tuple[TuneConfig, Trial, str]) -> None:
    config, best, _ = swept
    before = _children(config)
    again = tune(config)
    assert again == best
    assert _children(config) == before


def test_tune_space_that_does_not_fit_is_refused_before_anything_runs(folder: Path) -> None:
    with pytest.raises(SettingError) as caught:
        tune(_config(folder, '{"objective.lambda_xyz": tune.uniform(0, 1)}'))
    assert "objective.lambda_xyz" in str(caught.value)


def test_tune_more_trials_at_once_than_cpus_is_refused(folder: Path) -> None:
    with pytest.raises(SettingError, match="max_concurrent_trials"):
        tune(_config(folder, "{}", max_concurrent_trials=40))


@pytest.mark.slow  # test_best_trial_no_result_… holds the rule
def test_tune_every_trial_fails_names_the_reason(folder: Path) -> None:
    with pytest.raises(DeglaError, match="none of 1 trials succeeded"):
        tune(_config(folder, '{"optimizer.lr": tune.choice([1e30])}', num_trials=1))


@pytest.mark.slow
def test_tune_equal_trials_at_the_same_time_are_one(folder: Path, ray_cluster: None) -> None:
    config = _config(
        folder, '{"objective.lambda_igc": tune.choice([0.25])}', num_trials=2, max_concurrent_trials=2
    )
    best = tune(dataclasses.replace(config, max_zero_shot_loss=1.0))
    files = Path(config.train.output).glob("sweep-tiny-*/trials.json")
    [[trial]] = [json.loads(file.read_text()) for file in files if "0.25" in file.read_text()]
    assert trial["error"] is None
    assert trial["run_id"] == best.run_id
