"""What worker 0 records after a log interval, and when training ends with an error."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from degla_ray.config import DataConfig, ModelConfig, OptimizerConfig, TrainComputeConfig, TrainConfig
from degla_ray.errors import SettingError
from degla_ray.loader.order import BatchOrder
from degla_ray.loader.samples import load_samples
from degla_ray.storage import Storage
from degla_ray.training import checkpoint, checkpoint_folders, trace
from degla_ray.training.hooks import Checkpoint, Log
from degla_ray.training.interval import MAX_SKIPPED, LogInterval
from degla_ray.training.job import PROGRESS, Job
from degla_ray.training.loop import out_of_memory
from degla_ray.training.nonfinite import FOLDER, NOTICES, NonfiniteSteps, sample_ids
from degla_ray.training.optimizer import build_optimizer
from degla_ray.training.sanity import Candidates
from degla_ray.training.speed import Speed
from degla_ray.training.state import TrainState
from degla_ray.training.usage import Usage
from degla_ray.training.workers import Workers
from tests.training_inputs import write_inputs

BLIND = math.log(16)
WORKERS = Workers(rank=0, world_size=1, device=torch.device("cpu"))


def job_of(folder: Path, precision: Any = "fp32") -> Job:
    return Job(
        config=TrainConfig(
            name="x",
            data=DataConfig(prepared="", negatives=""),
            model=ModelConfig(name="scenes-base"),
            optimizer=OptimizerConfig(lr=0.5),
            global_batch_size=16,
            compute=TrainComputeConfig(precision=precision),
        ),
        fingerprint="f",
        run_folder=str(folder),
        samples=None,
        order=BatchOrder(seed=0, num_rows=32, batch_size=16),
        total_steps=100,
        versions={},
        candidates=Candidates(images=16, texts=16.0),
        short_side=32,
        data="",
    )


def log_of(
    folder: Path,
    notices: list[str],
    *,
    warns_of_loss: bool,
    precision: Any = "fp32",
    nonfinite_steps: Any = "stop",
    run: Storage | None = None,
) -> Log:
    job, run = job_of(folder, precision), run or Storage(str(folder))
    job = dataclasses.replace(job, config=dataclasses.replace(job.config, nonfinite_steps=nonfinite_steps))
    nonfinite = NonfiniteSteps(WORKERS, run, job, lambda step: [f"sample-{step}-{n}" for n in range(16)])
    return Log(WORKERS, run, job, nonfinite, notices, warns_of_loss=warns_of_loss)


def state_at(step: int) -> TrainState:
    student = nn.Linear(2, 2)
    return TrainState(
        student=student,
        teacher=None,
        optimizer=build_optimizer(student, OptimizerConfig(), device=torch.device("cpu")),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        step=step,
        optimizer_steps=step,
    )


def interval_of(*losses: float, first: int = 1, report: bool = False) -> LogInterval:
    rows = [{"step": s, "loss": x, "base": x, "lr": 0.1} for s, x in enumerate(losses, first)]
    return LogInterval(
        rows=rows,
        speed=Speed(step_s=0.5, training_share=0.9),
        wait_share=0.1,
        wait_s=2.0,
        first_wait_s=1.0,
        usage=Usage(phase_ms={"forward": 100.0, "backward": 250.0}, tokens_per_s=1e4, mfu=None),
        stop=False,
        leave=False,
        save=False,
        written=0,
        report=report,
    )


def test_log_writes_the_mean_of_the_interval_and_the_trace_of_all_steps(tmp_path: Path) -> None:
    run, state = Storage(str(tmp_path)), state_at(1)
    log = log_of(tmp_path, ["a notice"], warns_of_loss=True)
    log.after_step(state, interval_of(1.0))
    log.wait()
    assert trace.rows_after(run, 0) == []
    state.step = 3
    first = next(state.student.parameters())
    first.grad = torch.zeros_like(first)
    first.grad.view(-1)[:2] = torch.tensor([3.0, 4.0])
    log.after_step(state, interval_of(2.0, 4.0, first=2, report=True))
    log.wait()
    progress = run.read_json(PROGRESS)
    assert (progress["step"], progress["terms"]["loss"], progress["samples_per_s"]) == (3, 3.0, 32.0)
    assert progress["gradient_norm"] == 5.0
    assert (progress["backward_ms"], progress["tokens_per_s"], progress["mfu"]) == (250.0, 1e4, None)
    assert progress["eta_s"] == 48.5
    assert progress["notices"] == ["a notice"]
    assert [row["loss"] for row in trace.rows_after(run, 0)] == [1.0, 2.0, 4.0]


class _Counting(Storage):
    """A folder that counts the bytes written to it."""

    written = 0

    def write_bytes(self, data: bytes, *parts: str) -> None:
        self.written += len(data)
        super().write_bytes(data, *parts)


def test_log_writes_a_bounded_part_of_the_trace_at_a_report_however_long_it_is(tmp_path: Path) -> None:
    run = _Counting(str(tmp_path))
    log, state = log_of(tmp_path, [], warns_of_loss=False, run=run), state_at(0)
    largest = []
    for first in range(1, 5001, 50):
        before, state.step = run.written, first + 49
        log.after_step(state, interval_of(*range(first, first + 50), first=first, report=True))
        log.wait()
        largest.append(run.written - before)
    assert [row["step"] for row in trace.rows_after(run, 0)] == list(range(1, 5001))
    assert [row["step"] for row in trace.rows_after(run, 4990)] == list(range(4991, 5001))
    assert max(largest) < 0.3 * len(trace.as_bytes(state.trace))
    assert max(largest[80:]) < 1.1 * max(largest[:40])


def test_log_of_a_resumed_run_writes_the_steps_that_a_killed_one_had_left_again(tmp_path: Path) -> None:
    run = Storage(str(tmp_path))
    for resumed_step, last in ((0, 1070), (990, 1200)):
        log, state = log_of(tmp_path, [], warns_of_loss=False), state_at(last)
        state.trace = [json.dumps({"step": s, "loss": float(s)}) for s in range(1, resumed_step + 1)]
        rows = range(resumed_step + 1, last + 1)
        log.after_step(state, interval_of(*map(float, rows), first=rows[0], report=True))
        log.wait()
    found = trace.rows_after(run, 0)
    assert [(row["step"], row["loss"]) for row in found] == [(s, float(s)) for s in range(1, 1201)]


def test_log_that_cannot_be_written_stops_no_run_is_said_once_and_written_later(tmp_path: Path) -> None:
    run, state = Storage(str(tmp_path)), state_at(0)
    log = log_of(tmp_path, [], warns_of_loss=False)
    in_the_way = tmp_path / trace.PARTS
    in_the_way.write_text("a file where the folder of the trace belongs")
    for state.step in (1, 2, 3, 4):
        if state.step == 4:
            in_the_way.unlink()
        log.after_step(state, interval_of(float(state.step), first=state.step, report=True))
        log.wait()
    assert [row["step"] for row in trace.rows_after(run, 0)] == [1, 2, 3, 4]
    [notice] = run.read_json(PROGRESS)["notices"]
    assert "trace of step 1 could not be written" in notice


@pytest.mark.parametrize(
    ("loss", "first", "trained", "warns"),
    [
        (BLIND + 0.1, 1, True, True),
        (BLIND - 0.1, 1, True, False),
        (BLIND + 0.1, 11, True, False),  # a resumed run
        (BLIND + 0.1, 1, False, False),  # random weights
    ],
)
def test_log_warns_of_the_first_loss_of_a_trained_model_only(
    tmp_path: Path, loss: float, first: int, trained: bool, warns: bool
) -> None:
    run = Storage(str(tmp_path))
    log = log_of(tmp_path, [], warns_of_loss=trained)
    log.after_step(state_at(first), interval_of(loss, first=first))
    log.wait()
    assert any("first loss" in notice for notice in run.read_json(PROGRESS)["notices"]) == warns


def test_log_ends_the_run_at_a_loss_that_is_not_finite_and_names_its_step(tmp_path: Path) -> None:
    log = log_of(tmp_path, [], warns_of_loss=False)
    state = state_at(6)
    found = r"optimizer\.lr: found 0\.5; .* nonfinite_steps skip: the loss of step 6 is not finite \(.*nan\)"
    with pytest.raises(
        SettingError, match=found + r".* sample-6-0, sample-6-1, sample-6-2 … .*000000006\.json"
    ):
        log.after_step(state, interval_of(1.0, math.nan, first=5))
    assert state.trace == []
    written = Storage(str(tmp_path)).read_json(FOLDER, "step_000000006.json")
    assert written["samples"] == [f"sample-6-{n}" for n in range(16)]


def test_log_counts_steps_that_are_skipped_and_names_the_first_of_them(tmp_path: Path) -> None:
    run, state = Storage(str(tmp_path)), state_at(40)
    log = log_of(tmp_path, [], warns_of_loss=False, nonfinite_steps="skip")
    state.optimizer_steps = 28
    log.after_step(state, interval_of(*[1.0, math.nan] * (NOTICES + 2), first=17))
    log.wait()
    progress = run.read_json(PROGRESS)
    assert progress["skipped_steps"] == 12
    assert len(progress["notices"]) == NOTICES
    assert progress["notices"][0].startswith("skipped: the loss of step 18 is not finite")
    assert len(run.names(FOLDER)) == NOTICES + 2
    state.skipped = MAX_SKIPPED
    with pytest.raises(
        SettingError, match=r"optimizer\.lr: found 0\.5; expected a lower one: the last 25 steps"
    ):
        log.after_step(state, interval_of(1.0, first=41))


def test_sample_ids_are_those_that_the_workers_of_a_step_decode(tmp_path: Path) -> None:
    folder = write_inputs(tmp_path, images=16)
    data = DataConfig(prepared=str(folder / "prepared"), negatives=str(folder / "negatives"))
    samples = load_samples(data, with_negatives=True)
    order = BatchOrder(seed=0, num_rows=len(samples), batch_size=8)
    rows = np.concatenate([order.batch(2, rank, 2).row_B for rank in range(2)])
    assert sample_ids(samples, order, 3) == [samples.sample_id[int(row)].as_py() for row in rows]


@pytest.mark.parametrize(("skipped", "ends"), [(MAX_SKIPPED - 1, False), (MAX_SKIPPED, True)])
def test_log_fp16_may_skip_some_steps_but_not_many_in_a_row(tmp_path: Path, skipped: int, ends: bool) -> None:
    log = log_of(tmp_path, [], precision="fp16", warns_of_loss=False)
    state = state_at(40)
    state.skipped = skipped
    if not ends:
        log.after_step(state, interval_of(math.inf, first=40))
        return
    with pytest.raises(SettingError, match=r"precision: found 'fp16'; .* up to step 40 were skipped"):
        log.after_step(state, interval_of(math.inf, first=40))


@pytest.mark.parametrize(
    ("compute", "named"),
    [
        ({"precision": "fp32"}, ["micro_batch_size 8", "activation_checkpointing true", "precision bf16"]),
        ({"precision": "bf16", "activation_checkpointing": True}, ["micro_batch_size 8"]),
    ],
)
def test_out_of_memory_names_the_settings_that_help(compute: dict[str, Any], named: list[str]) -> None:
    config = dataclasses.replace(job_of(Path()).config, compute=TrainComputeConfig(**compute))
    message = str(out_of_memory(config, world_size=1))
    assert [part for part in named if part in message] == named
    assert message.count(";") == 1 + len(named)


def _save_hook(run: Storage) -> Checkpoint:
    return Checkpoint(WORKERS, run, job_of(Path(run.path())), {})


def test_checkpoint_is_of_its_step_although_training_goes_on(tmp_path: Path) -> None:
    run, state = Storage(str(tmp_path)), state_at(4)
    save = _save_hook(run)
    weights = {name: tensor.clone() for name, tensor in state.student.state_dict().items()}
    save.after_step(state, dataclasses.replace(interval_of(1.0), save=True))
    with torch.no_grad():
        for parameter in state.student.parameters():
            parameter.add_(1.0)
    state.step = 5
    save.wait()
    assert (save.next_written(), save.next_written()) == (4, 0)
    restored = state_at(0)
    checkpoint.restore(restored, checkpoint.read(run, checkpoint_folders.folder_name(4)))
    assert restored.step == 4
    for name, tensor in restored.student.state_dict().items():
        assert torch.equal(tensor, weights[name])


def test_checkpoints_are_reported_once_in_the_order_of_their_steps(tmp_path: Path) -> None:
    run, state = Storage(str(tmp_path)), state_at(1)
    save = _save_hook(run)
    for step in (1, 2, 3):
        state.step = step
        save.after_step(state, dataclasses.replace(interval_of(1.0), save=True))
    save.wait()
    assert [save.next_written() for _ in range(4)] == [1, 2, 3, 0]
    assert list(checkpoint_folders.complete(run)) == [1, 2, 3]


def test_checkpoint_that_cannot_be_written_ends_the_run(tmp_path: Path) -> None:
    run, state = Storage(str(tmp_path / "run")), state_at(1)
    (tmp_path / "run").write_text("a file in place of the run's folder")
    save = _save_hook(run)
    save.after_step(state, dataclasses.replace(interval_of(1.0), save=True))
    with pytest.raises(OSError, match="run"):
        save.wait()
