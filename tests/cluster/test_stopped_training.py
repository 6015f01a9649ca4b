"""A training that is told to end saves a checkpoint first, and its rerun continues from exactly that step."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ray_head import Head, running_head

from tests.training_inputs import read_trace, write_inputs

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]
END_S = 30
"""Seconds from the signal to the driver's end, at most: a few for the checkpoint and the workers' end."""


def test_training_told_to_end_saves_withdraws_its_request_and_its_rerun_continues_from_that_step(
    repo: Path, tmp_path: Path
) -> None:
    """One run: `ray job stop` of a submitted job, then SIGTERM and Ctrl-C of drivers on the cluster."""
    write_inputs(tmp_path)
    options = ["--name=x", f"--data.prepared={tmp_path}/prepared", f"--data.negatives={tmp_path}/negatives"]
    options += [f"--model.name={tmp_path}/model.json", f"--output={tmp_path}/runs", "--max_steps=100000"]
    options += ["--global_batch_size=8", "--data.decode_tasks=1", "--tracking.enabled=false"]
    saved = [0]
    with running_head(num_cpus=4) as head:
        for end in (by_job_stop, by_signal(signal.SIGTERM, 143), by_signal(signal.SIGINT, 130)):
            for left in tmp_path.glob("runs/*/progress.json"):  # of steps after the checkpoint
                left.unlink()
            printed = end(head, repo, options, lambda: step_of(tmp_path) >= saved[-1] + 20)
            resumed = re.search(r"; resumes after step (\d+)", printed)
            assert (int(resumed[1]) if resumed else 0) == saved[-1], printed
            said = re.search(r"^x-\w+: ends; saved step (\d+)$", printed, re.MULTILINE)
            assert said, printed
            assert int(said[1]) >= saved[-1] + 20
            saved.append(int(said[1]))
            [run] = tmp_path.glob("runs/x-*")
            [*_, last] = sorted(run.glob("checkpoint_*/complete.json"))
            assert last.parent.name == f"checkpoint_{saved[-1]:09d}"
            head.wait_for_no_request()
    trace = [row["step"] for row in read_trace(last.with_name("trace.jsonl"))]
    assert trace == list(range(1, saved[-1] + 1)), "every step once"
    print(f"saved after steps {saved[1:]}")


def by_job_stop(head: Head, repo: Path, options: list[str], ready: Callable[[], bool]) -> str:
    head.start(repo, "job", "jobs/train.py", *options)
    head.wait_for("job", ready, 120)
    assert head.requested(), "the run has asked the autoscaler for its workers"
    started = time.monotonic()
    head.stop("job")
    assert head.state("job") == "STOPPED"
    print(f"ray job stop: {time.monotonic() - started:.1f} s")
    return head.logs("job")


def by_signal(signum: signal.Signals, status: int) -> Callable[..., str]:
    def end(head: Head, repo: Path, options: list[str], ready: Callable[[], bool]) -> str:
        driver = subprocess.Popen(
            [sys.executable, "jobs/train.py", *options, f"--ray.address={head.address}"],
            cwd=repo,
            env=head.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # a shell lets what it starts in the background ignore Ctrl-C
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            deadline = time.monotonic() + 120
            while not ready():
                assert driver.poll() is None, driver.communicate()[0]
                assert time.monotonic() < deadline
                time.sleep(0.1)
            started = time.monotonic()
            driver.send_signal(signum)
            printed, _ = driver.communicate(timeout=END_S)
            print(f"{signum.name}: {time.monotonic() - started:.1f} s")
        finally:
            driver.kill()
        assert driver.returncode == status, printed
        return printed

    return end


def step_of(folder: Path) -> int:
    """Return the step in `progress.json`; 0 without it."""
    files = [*folder.glob("runs/*/progress.json")]
    return json.loads(files[0].read_text())["step"] if files else 0
