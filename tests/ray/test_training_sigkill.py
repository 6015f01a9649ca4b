"""SIGKILL of a whole training job, Ray included, at a random step: the resumed run gives the same result."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch

from degla_ray.storage import Storage
from degla_ray.training import checkpoint, checkpoint_folders
from degla_ray.training.trainer import TrainResult, train
from tests.training_inputs import read_trace, train_config, write_inputs

STEPS = 240
DEADLINE_S = 240.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("sigkill"))


@pytest.fixture
def short_temp() -> Iterator[Path]:
    """Ray's temporary folder must have a short path; a killed Ray does not remove its own."""
    path = Path(tempfile.mkdtemp(prefix="k-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.mark.slow  # test_train_continued_by_another_driver_… holds the rule
@pytest.mark.timeout(900)
def test_train_job_killed_at_a_random_step_then_rerun_equals_uninterrupted(
    folder: Path, short_temp: Path, repo: Path, ray_cluster: None
) -> None:
    """The same losses to 1e-6 and the same final weights; with two workers from there, to 1e-5."""
    settings = {"max_steps": STEPS}
    seed = random.randrange(10**6)
    kill_at = random.Random(seed).randrange(30, STEPS - 60)
    print(f"killing at or after step {kill_at}")
    run = kill_job(folder, short_temp, repo, kill_at)
    killed_after = json.loads((run / "progress.json").read_text())["step"]
    assert kill_at <= killed_after < STEPS
    steps_saved = list(checkpoint_folders.complete(Storage(str(run))))
    assert steps_saved
    assert steps_saved[-1] <= killed_after + 10
    (
        folder / "torn"
    ).mkdir()  # as by a kill within Ray's own writing, in a copy that goes on with two workers
    copy = folder / "torn" / run.name
    shutil.copytree(run, copy)
    record = copy / checkpoint_folders.RAY_SNAPSHOT
    record.write_bytes(record.read_bytes()[: record.stat().st_size // 2])
    (copy / checkpoint_folders.folder_name(STEPS - 1)).mkdir()
    (copy / checkpoint_folders.folder_name(STEPS - 1) / checkpoint.STUDENT).write_bytes(b"half")

    whole = train(train_config(folder, output=str(folder / "uninterrupted"), **settings))
    resumed = train(train_config(folder, output=str(folder / "killed"), **settings))
    assert resumed.run_folder == str(run)
    compare(whole, resumed, 1e-6)
    for name in (checkpoint.STUDENT, checkpoint.TEACHER, checkpoint.OPTIMIZER):
        left, right = (
            safetensors.torch.load_file(Path(r.run_folder) / checkpoint_folders.folder_name(STEPS) / name)
            for r in (whole, resumed)
        )
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)

    two = train(train_config(folder, output=str(folder / "torn"), num_workers=2, **settings))
    assert two.run_folder == str(copy)
    compare(whole, two, 1e-5)


def compare(whole: TrainResult, other: TrainResult, tolerance: float) -> None:
    left, right = read_trace(whole.trace_path), read_trace(other.trace_path)
    assert [row["step"] for row in left] == [row["step"] for row in right] == list(range(1, STEPS + 1))
    for one, two in zip(left, right, strict=True):
        assert one == pytest.approx(two, abs=tolerance, rel=tolerance)


def kill_job(folder: Path, temp: Path, repo: Path, kill_at: int) -> Path:
    """Start jobs/train.py in its own session, kill the whole session and return the run's folder."""
    arguments = {
        "name": "tiny",
        "output": folder / "killed",
        "data.prepared": folder / "prepared",
        "data.negatives": folder / "negatives",
        "data.decode_tasks": 1,
        "model.name": folder / "model.json",
        "optimizer.lr": 1e-3,
        "optimizer.warmup_steps": 5,
        "checkpoint.every_steps": 10,
        "tracking.enabled": "false",
        "global_batch_size": 16,
        "max_steps": STEPS,
    }
    command = [sys.executable, str(repo / "jobs" / "train.py")]
    command += [f"--{name}={value}" for name, value in arguments.items()]
    environment = os.environ | {"TMPDIR": str(temp), "PYTHONPATH": str(repo)}
    environment.pop("RAY_ADDRESS", None)
    with (temp / "output.txt").open("wb") as output:
        job = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        deadline = time.monotonic() + DEADLINE_S
        while (step := step_of(folder)) < kill_at:
            assert job.poll() is None, (temp / "output.txt").read_text()
            assert time.monotonic() < deadline, (temp / "output.txt").read_text()
            time.sleep(0.005)
        assert step < STEPS, "it ended before it could be killed"
    finally:
        for pid in descendants(job.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        job.wait()
    return next((folder / "killed").iterdir())


def step_of(folder: Path) -> int:
    for progress in (folder / "killed").glob("*/progress.json"):
        return int(json.loads(progress.read_text())["step"])
    return 0


def descendants(root: int) -> list[int]:
    """The process and all below it, the job's own Ray included, children first."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [root]
    for pid in found:  # grows as it goes
        found += [child for child, parent in parents.items() if parent == pid]
    return found[::-1]
