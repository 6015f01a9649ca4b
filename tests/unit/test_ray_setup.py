"""Switches and addresses, without starting Ray."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from degla_ray import ray_setup


def test_set_environment_keeps_what_the_user_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    monkeypatch.delenv("RAY_TRAIN_V2_ENABLED", raising=False)
    ray_setup.set_environment()
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"
    assert os.environ["RAY_TRAIN_V2_ENABLED"] == "1"


def test_remove_abandoned_folders_of_living_processes_stay(tmp_path: Path) -> None:
    folders = {
        name: tmp_path / name for name in ("degla-killed", "degla-alive", "degla-starting", "other-killed")
    }
    for name, folder in folders.items():
        (folder / "session").mkdir(parents=True)
        if name != "degla-starting":
            (folder / "owner.lock").touch()
    with (folders["degla-alive"] / "owner.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        ray_setup.remove_abandoned(tmp_path)
    assert {name for name, folder in folders.items() if folder.exists()} == folders.keys() - {"degla-killed"}


@pytest.mark.parametrize(
    "first",
    ["from degla_ray import ray_setup; ray_setup.set_environment()", "import degla_ray.evaluation.run"],
)
def test_mlflow_telemetry_is_off_in_drivers_and_in_trials(tmp_path: Path, first: str) -> None:
    lines = f"{first}\n"
    lines += "from mlflow.telemetry import get_telemetry_client; print(get_telemetry_client())"
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", lines], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "None", done.stderr
    assert not [*tmp_path.rglob("*telemetry*")]
