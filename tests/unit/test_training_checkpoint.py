"""Checkpoints: everything comes back, and nothing half-written is ever taken for one."""

from __future__ import annotations

import json
import multiprocessing
import resource
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from degla_ray.config import OptimizerConfig, TeacherConfig
from degla_ray.errors import DataError
from degla_ray.model.teacher import Teacher
from degla_ray.storage import DiskRefuses, Storage
from degla_ray.training import checkpoint, checkpoint_folders
from degla_ray.training.checkpoint_folders import RAY_SNAPSHOT
from degla_ray.training.optimizer import build_optimizer
from degla_ray.training.state import TrainState
from degla_ray.training.workers import Workers

ALONE = Workers(rank=0, world_size=1, device=torch.device("cpu"))


def state_of(seed: int, steps: int = 0) -> TrainState:
    torch.manual_seed(seed)
    student = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1))
    state = TrainState(
        student=student,
        teacher=Teacher(student, TeacherConfig(decay=0.5)),
        optimizer=build_optimizer(student, OptimizerConfig(lr=0.1), device=torch.device("cpu")),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
    )
    train(state, steps)
    return state


def state_at(step: int, trace: list[str] | None = None) -> TrainState:
    state = state_of(0, 1)
    state.step, state.trace = step, trace or []
    return state


def train(state: TrainState, steps: int) -> None:
    assert state.teacher is not None
    for step in range(steps):
        state.optimizer.zero_grad()
        state.student(torch.full((2, 3), float(step + 1))).square().mean().backward()
        state.optimizer.step()
        state.teacher.update(state.student, 64)
        state.step += 1
        state.optimizer_steps += 1


def weights(state: TrainState) -> dict[str, torch.Tensor]:
    assert state.teacher is not None
    return {**state.student.state_dict(), **{f"t.{k}": v for k, v in state.teacher.state_dict().items()}}


def save(run: Storage, state: TrainState, record: dict[str, Any]) -> str:
    """Write a checkpoint as the loop's hook does, but at once; return its name."""
    return checkpoint.write(run, checkpoint.snapshot(state, record))


def test_checkpoint_saved_and_loaded_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    run = Storage(str(tmp_path))
    original = state_of(seed=0, steps=3)
    original.optimizer_steps = 2  # fp16's scaler skipped one
    original.trace = [json.dumps({"step": s, "loss": 1 / 3 + s}) for s in range(1, 4)]
    original.objective_state = {"threshold_K": torch.tensor([1 / 3, 2.0])}
    name = save(run, original, {"fingerprint": "f"})
    restored = state_of(seed=1)
    assert checkpoint.load(run, name, restored, ALONE)["fingerprint"] == "f"
    assert (restored.step, restored.optimizer_steps) == (3, 2)
    assert restored.trace == original.trace
    assert torch.equal(restored.objective_state["threshold_K"], original.objective_state["threshold_K"])
    for state in (original, restored):
        train(state, 2)
    for key, value in weights(original).items():
        assert torch.equal(value, weights(restored)[key]), key


class _Counting(Storage):
    """A folder that counts the files read from it."""

    reads = 0

    def read_bytes(self, *parts: str) -> bytes:
        self.reads += 1
        return super().read_bytes(*parts)


def _resume(rank: int, folder: str, name: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    run, state = _Counting(folder), state_of(seed=10 + rank)
    workers = Workers(rank=rank, world_size=2, device=torch.device("cpu"))
    assert checkpoint.load(run, name, state, workers)["fingerprint"] == "f"
    train(state, 2)
    torch.save((run.reads, state.step, state.trace, weights(state)), f"{folder}/worker{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow  # two processes that import torch
def test_checkpoint_is_read_by_worker_0_alone_and_restored_on_all(tmp_path: Path) -> None:
    original = state_of(seed=0, steps=3)
    original.trace = ["line 1", "line 2", "line 3"]
    name = save(Storage(str(tmp_path)), original, {"fingerprint": "f"})
    torch.multiprocessing.spawn(_resume, args=(str(tmp_path), name), nprocs=2)
    train(original, 2)
    for rank, reads in ((0, 6), (1, 0)):  # complete.json and the five files that it names
        found_reads, step, trace, found = torch.load(tmp_path / f"worker{rank}.pt")
        assert (found_reads, step, trace) == (reads, 5, original.trace)
        for key, value in weights(original).items():
            assert torch.equal(value, found[key]), key


def test_checkpoint_holds_no_pickle(tmp_path: Path) -> None:
    name = save(Storage(str(tmp_path)), state_at(1), {})
    suffixes = {path.suffix for path in (tmp_path / name).iterdir()}
    assert suffixes == {".safetensors", ".json", ".jsonl"}


@pytest.mark.parametrize("damage", ["no_receipt", "missing_file", "short_file"])
def test_checkpoint_not_whole_is_never_picked_up(tmp_path: Path, damage: str) -> None:
    run = Storage(str(tmp_path))
    save(run, state_at(1), {})
    folder = tmp_path / save(run, state_at(2), {})
    if damage == "no_receipt":
        (folder / "complete.json").unlink()
    elif damage == "missing_file":
        (folder / "teacher.safetensors").unlink()
    else:
        data = (folder / "student.safetensors").read_bytes()
        (folder / "student.safetensors").write_bytes(data[:-1])
    assert list(checkpoint_folders.complete(run)) == [1]
    assert checkpoint_folders.tidy(run) == 1
    assert not folder.exists()


def test_checkpoint_with_other_bytes_refused(tmp_path: Path) -> None:
    run = Storage(str(tmp_path))
    name = save(run, state_at(2), {})
    file = tmp_path / name / "student.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(DataError, match=r"student\.safetensors: found a checksum that does not match"):
        checkpoint.load(run, name, state_of(0), ALONE)


@pytest.mark.parametrize(
    "file", ["student.safetensors", "optimizer.safetensors", "trace.jsonl", "complete.json"]
)
@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied"])
def test_checkpoint_whose_bytes_changed_gives_way_to_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str, damage: str
) -> None:
    run = Storage(str(tmp_path))
    for step in (1, 2, 3):
        save(run, state_at(step, [f"line {step}"]), {})
    (tmp_path / RAY_SNAPSHOT).write_text(snapshot(2, 3))
    path = tmp_path / checkpoint_folders.folder_name(3) / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 128
    path.write_bytes({"flipped": data, "cut": data[:-1], "emptied": b""}[damage])
    assert checkpoint_folders.latest(run) == 2
    assert f"{path}: the checksum does not match" in caplog.text
    assert checkpoint_folders.tidy(run) == 2
    assert list(checkpoint_folders.complete(run)) == [2]
    restored = state_of(1)
    checkpoint.load(run, checkpoint_folders.folder_name(2), restored, ALONE)
    assert restored.trace == ["line 2"]


def test_checkpoint_none_left_whole_ends_the_run_and_deletes_nothing(tmp_path: Path) -> None:
    run = Storage(str(tmp_path))
    for step in (1, 2):
        save(run, state_at(step), {})
        file = tmp_path / checkpoint_folders.folder_name(step) / "state.json"
        file.write_bytes(file.read_bytes().replace(b"step", b"stop"))
    with pytest.raises(DataError, match=r"checkpoint_000000001/state\.json: found a checksum .* no earlier"):
        checkpoint_folders.tidy(run)
    assert list(checkpoint_folders.complete(run)) == [1, 2]


def test_checkpoint_on_a_full_disk_names_its_file_and_leaves_the_one_before(tmp_path: Path) -> None:
    """A limit on a file's size is a disk that has no room for it."""
    run = Storage(str(tmp_path))
    save(run, state_at(1), {})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(DiskRefuses, match=r"checkpoint_000000002/optimizer.* too large; expected room"):
            save(run, state_at(2), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert run.folders() == ["checkpoint_000000001"]
    assert checkpoint_folders.latest(run) == 1
    save(run, state_at(2), {})
    assert checkpoint_folders.latest(run) == 2


def test_checkpoint_on_a_read_only_disk_names_its_file(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "none", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a disk of the test's own cannot be mounted here")
    try:
        with pytest.raises(DiskRefuses, match=r"checkpoint_000000001/student.* read-only .*mount it anew"):
            save(Storage(str(tmp_path)), state_at(1), {})
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_checkpoint_writer_that_is_killed_leaves_the_whole_ones(tmp_path: Path) -> None:
    """SIGKILL within milliseconds of the first byte of a checkpoint, twelve times."""
    run, tensors = Storage(str(tmp_path)), {"x": torch.arange(2.0**18)}

    def write(first: int) -> None:
        for step in range(first, 10**6):
            files = {checkpoint.STUDENT: tensors, checkpoint.OPTIMIZER: tensors}
            texts = {checkpoint.STATE: b"{}", checkpoint.TRACE: b""}
            checkpoint.write(run, checkpoint.Snapshot(step=step, tensors=files, texts=texts))

    save(run, state_at(1), {})
    torn, last = 0, 1
    for number in range(12):
        writer = multiprocessing.get_context("fork").Process(target=write, args=(last + 1,))
        writer.start()
        while not run.exists(checkpoint_folders.folder_name(last + 1)):
            time.sleep(0.0005)
        time.sleep(0.002 * number)
        writer.kill()
        writer.join()
        torn += len(run.folders()) > len(checkpoint_folders.complete(run))
        before, last = last, checkpoint_folders.tidy(run) or 0
        assert last >= before
        assert checkpoint.read(run, checkpoint_folders.folder_name(last)).record is not None
    assert torn


def test_checkpoint_saved_over_a_torn_one_is_whole(tmp_path: Path) -> None:
    run = Storage(str(tmp_path))
    torn = tmp_path / checkpoint_folders.folder_name(2)
    torn.mkdir()
    (torn / "old.bin").write_bytes(b"left by a killed run")
    save(run, state_at(2), {})
    assert list(checkpoint_folders.complete(run)) == [2]
    assert not (torn / "old.bin").exists()


def snapshot(*steps: int) -> str:
    results = [{"checkpoint_dir_name": checkpoint_folders.folder_name(s), "metrics": {}} for s in steps]
    return json.dumps({"checkpoint_results": results, "latest_checkpoint_result": results[-1]})


def test_tidy_record_of_ray_that_fits_is_kept_with_the_latest(tmp_path: Path) -> None:
    run = Storage(str(tmp_path))
    for step in (1, 2, 3, 4):
        save(run, state_at(step), {})
    (tmp_path / RAY_SNAPSHOT).write_text(snapshot(2, 3))
    assert checkpoint_folders.tidy(run) == 4
    assert list(checkpoint_folders.complete(run)) == [2, 3, 4]
    assert (tmp_path / RAY_SNAPSHOT).exists()


@pytest.mark.parametrize("record", ['{"checkpoint_results": [', "", snapshot(7), "[]"])
def test_tidy_record_of_ray_that_is_broken_or_stale_is_removed(tmp_path: Path, record: str) -> None:
    run = Storage(str(tmp_path))
    save(run, state_at(5), {})
    (tmp_path / RAY_SNAPSHOT).write_text(record)
    assert checkpoint_folders.tidy(run) == 5
    assert not (tmp_path / RAY_SNAPSHOT).exists()


def test_tidy_empty_folder_gives_none(tmp_path: Path) -> None:
    assert checkpoint_folders.tidy(Storage(str(tmp_path / "new"))) is None
