"""The console's line, and what reaches MLflow."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from degla_ray import tracking
from degla_ray.config import TrackingConfig
from degla_ray.storage import Storage
from degla_ray.training.job import PROGRESS, TRACE
from degla_ray.training.progress import Monitor, describe
from degla_ray.training.validation import Validation, ask, set_logged

MOMENT: dict[str, Any] = {
    "step": 120,
    "total_steps": 2000,
    "terms": {"loss": 1.25, "base": 1.0, "lr": 1e-4, "logit_scale": 14.3},
    "samples_per_s": 431.7,
    "training_share": 0.94,
    "wait_share": 0.031,
    "wait_s": 2.4,
    "teacher_distance": None,
    "eta_s": 3725.0,
}


def test_describe_says_everything_of_the_moment() -> None:
    line = describe("run", MOMENT)
    assert "\n" not in line
    for said in ("run", "120/2000", "432 samples/s", "94%", "loss 1.25", "1.00e-04", "2 s", "3%", "1:02:05"):
        assert said in line
    assert "0.5000" in describe("run", MOMENT | {"teacher_distance": 0.5})
    scored = Validation(step=100, state="done", metrics={"composition": 0.612}, headline="composition")
    assert "step 100: composition 61.2%" in describe("run", MOMENT, scored)


def test_monitor_logs_exact_values_at_fixed_steps_and_the_last(tmp_path: Path, mlflow_uri: str) -> None:
    config = TrackingConfig(uri=mlflow_uri)
    run_id = tracking.find_or_create_run(config, "run", "f", "folder", {})
    assert run_id is not None
    run = Storage(str(tmp_path / "run"))
    lines = "".join(f'{{"step": {s}, "loss": {s / 3!r}, "lr": 0.1}}\n' for s in range(1, 506))
    run.write_bytes(lines.encode(), TRACE)
    run.write_json(MOMENT, PROGRESS)
    with Monitor(run, "run", 505, config, run_id):
        pass
    curve = MlflowClient(config.uri).get_metric_history(run_id, "train/loss")
    assert {point.step: point.value for point in curve} == {s: s / 3 for s in [*range(3, 505, 3), 505]}
    assert MlflowClient(config.uri).get_run(run_id).data.metrics["train/samples_per_s"] == 431.7
    with Monitor(run, "run", 505, config, run_id, done=100):  # killed at the end, continued after step 100
        pass
    assert MlflowClient(config.uri).get_metric_history(run_id, "train/loss") == curve


def test_monitor_validation_whose_note_a_kill_prevented_is_logged_once(
    tmp_path: Path, mlflow_uri: str
) -> None:
    config = TrackingConfig(uri=mlflow_uri)
    run_id = tracking.find_or_create_run(config, "run", "f", "folder", {})
    run = Storage(str(tmp_path / "run"))
    done = Validation(step=100, state="done", metrics={"composition": 0.6}, headline="composition")
    run.write_json(dataclasses.asdict(done), "evaluations", "step-000000100.json")
    tracking.log_metrics(config, run_id, {"validation/composition": 0.6}, 100)
    with Monitor(run, "run", 505, config, run_id, done=100):
        pass
    curve = MlflowClient(config.uri).get_metric_history(run_id or "", "validation/composition")
    assert [(point.step, point.value) for point in curve] == [(100, 0.6)]


def test_monitor_tells_of_validations_once_and_logs_them_once(
    tmp_path: Path, mlflow_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = TrackingConfig(uri=mlflow_uri)
    run_id = tracking.find_or_create_run(config, "run", "f", "folder", {})
    run = Storage(str(tmp_path / "run"))
    done = Validation(step=100, state="done", metrics={"composition": 0.6}, headline="composition")
    set_logged(run, done)
    run.write_json(MOMENT | {"step": 505, "total_steps": 505}, PROGRESS)
    with Monitor(run, "run", 505, config, run_id):
        later = dataclasses.replace(done, step=200)
        run.write_json(dataclasses.asdict(later), "evaluations", "step-000000200.json")
        ask(run, 300)
    printed = capsys.readouterr().out
    assert "run: validation of step 200: composition 60.0% (0 s)" in printed
    assert "run: trained; waits for the validation of step 300" in printed
    assert "validation of step 100" not in printed
    with Monitor(run, "run", 505, config, run_id):
        pass
    curve = MlflowClient(config.uri).get_metric_history(run_id or "", "validation/composition")
    assert [(point.step, point.value) for point in curve] == [(200, 0.6)]


def test_monitor_goes_on_after_what_it_cannot_read_and_says_so_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run = Storage(str(tmp_path / "run"))
    run.write_json({"step": 1}, PROGRESS)  # none of what a line needs
    with Monitor(run, "run", 2000, TrackingConfig(enabled=False), None) as monitor:
        for _ in range(3):
            monitor._look_safely(None, last=True)
        run.write_json(MOMENT, PROGRESS)
    assert caplog.text.count("run: progress cannot be shown (KeyError: 'terms'); training goes on") == 1
    assert "run 120/2000 |" in capsys.readouterr().out
