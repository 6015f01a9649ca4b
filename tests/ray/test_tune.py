"""A sweep on a local Ray: real trainings and evaluations of a tiny model."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import time
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from mlflow import MlflowClient

from degla_ray.cli import from_settings
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
from degla_ray.storage import Storage
from degla_ray.training.trainer import train
from degla_ray.tuning.ledger import Ledger, Trial
from degla_ray.tuning.rule import Verdict
from degla_ray.tuning.sweep import prepared, sweep_folder, tune
from tests.evaluation_suite import write_suite
from tests.training_inputs import write_inputs

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(600)]
SPLITS = '{"data.split": tune.grid_search(["train", "dev"])}, {"objective.lambda_igc": 0.25}'
"""The second fails before it trains."""
ANY = "zero_shot >= 0"


def _config(folder: Path, space: str, **settings: Any) -> TuneConfig:
    file = folder / "space.py"
    file.write_text(f"from ray import tune\n\ndef space():\n    return {space}\n")
    train = TrainConfig(
        name=settings.pop("name", "tiny"),
        data=DataConfig(
            prepared=str(folder / "prepared"), negatives=str(folder / "negatives"), decode_tasks=1
        ),
        output=str(folder / "runs"),
        model=ModelConfig(name=str(folder / "model.json"), random_init=True),
        optimizer=OptimizerConfig(lr=1e-3, warmup_steps=1),
        checkpoint=CheckpointConfig(every_minutes=None),
        tracking=TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db", experiment="sweep"),
        global_batch_size=8,
        max_steps=settings.pop("max_steps", 3),
    )
    return TuneConfig(train=train, suite=str(folder / "suite"), space=str(file), **{"keep": ANY} | settings)


def _sweep_folder(config: TuneConfig) -> Path:
    [found] = Path(config.train.output).glob(f"sweep-{config.train.name}-*")
    return found


def _trials(config: TuneConfig) -> list[dict[str, Any]]:
    """The trials as written, by number."""
    files = sorted((_sweep_folder(config) / "trials").glob("*.json"))
    return [json.loads(file.read_text()) for file in files]


def _children(config: TuneConfig) -> dict[str | None, list[str]]:
    """MLflow parent run -> its child runs; parents themselves stand under None."""
    client = MlflowClient(config.train.tracking.uri)
    experiment = client.get_experiment_by_name("sweep")
    families: dict[str | None, list[str]] = {None: []}
    if experiment is None:
        return families
    for run in client.search_runs([experiment.experiment_id]):
        families.setdefault(run.data.tags.get("mlflow.parentRunId"), []).append(run.info.run_id)
    return families


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_inputs(tmp_path_factory.mktemp("tune"))
    write_suite(folder / "suite")
    return folder


@pytest.fixture(scope="module")
def swept(folder: Path, ray_cluster: None) -> tuple[TuneConfig, Verdict, str]:
    """A grid of two trials, of which one fails, and what it printed."""
    config = _config(folder, SPLITS, search="grid")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        found = tune(config)
    return config, found, printed.getvalue()


def test_tune_trials_are_trained_and_evaluated_and_one_that_fails_is_named(
    swept: tuple[TuneConfig, Verdict, str],
) -> None:
    config, found, printed = swept
    good, bad = _trials(config)
    [run] = good["runs"]
    sweep = _sweep_folder(config)
    made = json.loads(Path(sweep, run["folder"], "config.json").read_text())["config"]
    assert (made["objective"]["lambda_igc"], made["data"]["split"]) == (0.25, "train")
    scores = json.loads(Path(sweep, run["evaluation"], "summary.json").read_text())["averages"]
    assert good["scores"]["composition"] == next(s["value"] for s in scores if s["name"] == "composition")
    assert bad["error"].startswith("data.split: found 'dev'")
    assert f"trial 2 of 2 failed: {bad['error']}" in printed
    assert found.best is not None
    assert found.best.number == 1
    assert "best so far trial 1 (composition" in printed
    assert "3 steps of 8" not in printed  # what a trial prints is in its own file
    assert "3 steps of 8" in (sweep / "trials" / "tiny-trial-1.log").read_text()


def test_tune_best_yaml_names_the_run_that_is_finished(swept: tuple[TuneConfig, Verdict, str]) -> None:
    config, found, printed = swept
    file = _sweep_folder(config) / "best.yaml"
    assert str(file) in printed
    assert str(file.with_name("sweep.html")) in printed
    assert "<html" in file.with_name("sweep.html").read_text()
    best = from_settings(TrainConfig, yaml.safe_load(file.read_text()), "best")
    with contextlib.redirect_stdout(io.StringIO()) as trained:
        result = train(best)
    assert "already finished" in trained.getvalue()
    assert found.best is not None
    assert result.run_folder == found.best.runs[0].folder


def test_tune_mlflow_has_a_parent_and_a_child_for_each_trial_that_trains(
    swept: tuple[TuneConfig, Verdict, str],
) -> None:
    config, found, _ = swept
    families = _children(config)
    [parent] = families[None]
    assert found.best is not None
    best = found.best.runs[0].run_id
    assert families[parent] == [best]
    client = MlflowClient(config.train.tracking.uri)
    run = client.get_run(parent)
    assert run.info.status == "FINISHED"
    assert run.data.tags["best_run"] == best
    assert run.data.metrics["best/composition"] == found.best.scores["composition"]
    assert "eval/composition" in client.get_run(best).data.metrics


@pytest.mark.slow  # test_search_goes_on_with_… and test_train_finished_run_again_… hold the rules
def test_tune_again_adds_nothing_and_finds_the_same_best(swept: tuple[TuneConfig, Verdict, str]) -> None:
    config, found, _ = swept
    before = _children(config)
    again = tune(config)
    assert again.best == found.best
    assert _children(config) == before


ONE = '{"optimizer.lr": tune.choice([1e-3])}, {}'
ENDLESS = 100_000
"""Steps of a trial that something else ends."""


def _logs(config: TuneConfig) -> str:
    return "".join(file.read_text() for file in (_sweep_folder(config) / "trials").glob("*.log"))


@pytest.mark.slow  # test_asha_stops_the_worse_half_… holds the rule; this one waits for a validation
def test_tune_trial_that_asha_stops_frees_its_workers(folder: Path) -> None:
    config = _config(folder, ONE, name="asha", num_trials=3, max_steps=ENDLESS, asha_every_steps=20)
    ready, space = prepared(config)
    ledger = Ledger(Storage(sweep_folder(ready, space)))
    scores = {"composition": 2.0, "zero_shot": 2.0}  # better than any
    for number in (1, 2):
        settings = {"optimizer.lr": 0.1 * number}  # equal ones would be one row
        ledger.write(
            Trial(number=number, settings=settings, state="stopped", scores=scores, curve=[(20, scores)])
        )
    with pytest.raises(DeglaError, match="none of 3 trials finished"):
        tune(config)
    stopped = _trials(config)[2]
    assert stopped["state"] == "stopped"
    assert stopped["curve"][0][0] == 20
    deadline = time.monotonic() + 60
    while (free := ray.available_resources().get("CPU", 0)) < 8 and time.monotonic() < deadline:
        time.sleep(0.5)
    assert free == 8


@pytest.mark.slow  # trains until a budget is spent, twice
def test_tune_trial_that_a_budget_ends_resumes_in_the_middle(folder: Path) -> None:
    config = _config(folder, ONE, name="budget", num_trials=1, max_steps=ENDLESS, max_hours=60 / 3600)
    for _ in range(2):
        with pytest.raises(DeglaError, match="none of 1 trials finished"):
            tune(config)
        [trial] = _trials(config)
        assert trial["state"] == "running"
    assert "resumes after step" in _logs(config)


def test_tune_space_that_does_not_fit_is_refused_before_anything_runs(folder: Path) -> None:
    with pytest.raises(SettingError) as caught:
        tune(_config(folder, '{"objective.lambda_xyz": tune.uniform(0, 1)}, {}'))
    assert "objective.lambda_xyz" in str(caught.value)


def test_tune_more_trials_at_once_than_cpus_is_refused(folder: Path) -> None:
    with pytest.raises(SettingError, match="max_concurrent_trials"):
        tune(_config(folder, SPLITS, max_concurrent_trials=40))


@pytest.mark.slow  # test_verdict_without_a_finished_trial_… holds the rule
def test_tune_every_trial_fails_names_the_reason_and_they_ran_one_at_a_time(folder: Path) -> None:
    space = '{"optimizer.lr": tune.grid_search([1e30, 2e30])}, {}'
    config = _config(folder, space, name="fail", search="grid")
    before = set(_children(config)[None])  # `swept` may have run
    told = r"none of 2 trials finished: optimizer\.lr: found 1e\+30; .* loss of step 2 is not finite"
    with pytest.raises(DeglaError, match=told):
        tune(config)
    families = _children(config)
    [parent] = set(families[None]) - before
    client = MlflowClient(config.train.tracking.uri)
    infos = [client.get_run(child).info for child in families[parent]]
    assert [info.status for info in infos] == ["FAILED", "FAILED"]
    times = sorted((info.start_time, info.end_time) for info in infos)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(times))


@pytest.mark.slow
def test_tune_equal_trials_at_the_same_time_are_one(folder: Path, ray_cluster: None) -> None:
    config = _config(
        folder,
        '{"objective.lambda_igc": tune.choice([0.25])}, {}',
        name="equal",
        num_trials=2,
        max_concurrent_trials=2,
    )
    found = tune(config)
    [trial] = found.trials
    assert trial.error == ""
    assert [run["runs"] for run in _trials(config)] == [_trials(config)[0]["runs"]] * 2
