"""The console's line, and what reaches MLflow."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from degla_ray import tracking
from degla_ray.config import TrackingConfig
from degla_ray.storage import Storage
from degla_ray.training import trace
from degla_ray.training.console import describe
from degla_ray.training.job import PROGRESS
from degla_ray.training.progress import Monitor
from degla_ray.training.validation import Validation, request, set_logged

MOMENT: dict[str, Any] = {
    "step": 120,
    "total_steps": 2000,
    "terms": {"loss": 1.25, "base": 1.0, "lr": 1e-4, "logit_scale": 14.3},
    "samples_per_s": 431.7,
    "training_share": 0.94,
    "wait_share": 0.031,
    "wait_s": 2.4,
    "teacher_distance": None,
    "gradient_norm": 2.5,
    "peak_memory_gb": None,
    "mfu": None,
    "skipped_steps": 0,
    "eta_s": 3725.0,
}


def test_describe_without_a_width_says_everything_loss_rate_and_time_left_first() -> None:
    scored = Validation(step=100, state="done", metrics={"composition": 0.612}, headline="composition")
    line = describe("run", MOMENT | {"teacher_distance": 0.5}, scored)
    step, loss, rate, left, *others = line.split(" | ")
    assert (step, loss, rate, left) == ("run 120/2000", "loss 1.2500", "432 samples/s", "1:02:05 left")
    for part in ("base 1.0000", "94%", "lr 1.00e-04", "scale 14.30", "waited 2 s", "(3% now)", "0.5000 away"):
        assert part in " | ".join(others)
    assert "validation of step 100: composition 61.2%" in others
    assert "away" not in describe("run", MOMENT)
    assert "MFU 41%" in describe("run", MOMENT | {"mfu": 0.412})
    assert "skipped" not in line
    assert "3 steps skipped" in describe("run", MOMENT | {"skipped_steps": 3})


@pytest.mark.parametrize("name", ["run", "a-run-with-a-rather-long-name-0123456789abcdef", "図形-実験"])
def test_describe_fits_any_width_and_drops_the_least_important_first(name: str) -> None:
    whole = describe(name, MOMENT)
    parts = whole.split(" | ")[1:]
    for width in range(1, cell_len(whole) + 1):
        line = describe(name, MOMENT, width=width)
        assert cell_len(line) <= width
        if width >= len("120/2000 | loss 1.2500"):
            assert "120/2000 | loss 1.2500" in line
            shown = line.split(" | ")[1:]
            assert shown == parts[: len(shown)]
            rest = parts[len(shown) :]
            assert not rest or cell_len(f"{line} | {rest[0]}") > width
    assert line == whole


def test_monitor_on_a_terminal_shows_lines_that_fit_it(tmp_path: Path) -> None:
    run = Storage(str(tmp_path / "run"))
    run.write_json(MOMENT, PROGRESS)
    monitor = Monitor(run, "run", 2000, TrackingConfig(enabled=False), None)
    output = io.StringIO()
    monitor.console = Console(file=output, force_terminal=True, width=40, color_system=None)
    with monitor:
        pass
    lines = [Text.from_ansi(line).plain for line in output.getvalue().splitlines()]
    assert any("run 120/2000 | loss 1.2500" in line for line in lines)
    assert max(map(cell_len, lines)) <= 40


def test_monitor_prints_each_notice_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Storage(str(tmp_path / "run"))
    run.write_json(MOMENT | {"notices": ["a warning", "another"]}, PROGRESS)
    with Monitor(run, "run", 2000, TrackingConfig(enabled=False), None) as monitor:
        monitor._look_safely(None)
        run.write_json(MOMENT | {"step": 130, "notices": ["a warning", "another"]}, PROGRESS)
    printed = capsys.readouterr().out
    assert printed.count("run: a warning") == printed.count("run: another") == 1


def test_monitor_logs_exact_values_at_fixed_steps_and_the_last(tmp_path: Path, mlflow_uri: str) -> None:
    config = TrackingConfig(uri=mlflow_uri)
    run_id = tracking.find_or_create_run(config, "run", "f", "folder", {})
    assert run_id is not None
    run = Storage(str(tmp_path / "run"))
    trace.write(run, [f'{{"step": {s}, "loss": {s / 3!r}, "lr": 0.1}}' for s in range(1, 506)], 1)
    run.write_json(MOMENT, PROGRESS)
    with Monitor(run, "run", 505, config, run_id):
        pass
    curve = MlflowClient(config.uri).get_metric_history(run_id, "train/loss")
    assert {point.step: point.value for point in curve} == {s: s / 3 for s in [*range(3, 505, 3), 505]}
    assert MlflowClient(config.uri).get_run(run_id).data.metrics["train/samples_per_s"] == 431.7
    assert MlflowClient(config.uri).get_run(run_id).data.metrics["train/gradient_norm"] == 2.5
    # killed at the end, resumed after step 100
    with Monitor(run, "run", 505, config, run_id, resumed_step=100):
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
    tracking.log_metrics(config, run_id, {"eval/composition": 0.6}, 100)
    with Monitor(run, "run", 505, config, run_id, resumed_step=100):
        pass
    curve = MlflowClient(config.uri).get_metric_history(run_id or "", "eval/composition")
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
        request(run, 300)
    printed = capsys.readouterr().out
    assert "run: validation of step 200: composition 60.0% (0 s)" in printed
    assert "run: trained; waiting for the validation of step 300" in printed
    assert "validation of step 100" not in printed
    with Monitor(run, "run", 505, config, run_id):
        pass
    curve = MlflowClient(config.uri).get_metric_history(run_id or "", "eval/composition")
    assert [(point.step, point.value) for point in curve] == [(200, 0.6)]


def test_monitor_goes_on_after_what_it_cannot_read_and_says_so_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run = Storage(str(tmp_path / "run"))
    run.write_json({"step": 1, "total_steps": 2000}, PROGRESS)  # nothing else that a line needs
    with Monitor(run, "run", 2000, TrackingConfig(enabled=False), None) as monitor:
        for _ in range(3):
            monitor._look_safely(None, last=True)
        run.write_json(MOMENT, PROGRESS)
    assert caplog.text.count("run: cannot show progress (KeyError: 'terms'); training continues") == 1
    assert "run 120/2000 |" in capsys.readouterr().out
