"""A run with a range of workers, over hosts that are lost, taken away and join."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from ray_head import Head, running_head

from degla_ray.storage import Storage
from degla_ray.training import trace
from tests.training_inputs import write_inputs

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]


class Run:
    """A run over `write_inputs(folder)`, as a job of a cluster with room for a worker a node."""

    def __init__(self, head: Head, repo: Path, folder: Path, name: str, **settings: object) -> None:
        self._head, self._folder, self._name = head, folder, name
        given = {"name": name, "data.prepared": folder / "prepared", "data.negatives": folder / "negatives"}
        given |= {"model.name": folder / "model.json", "output": folder / "runs", "max_steps": 100_000}
        given |= {"compute.cpus": 2, "data.decode_tasks": 1, "global_batch_size": 32, "optimizer.lr": 1e-4}
        given |= {"tracking.enabled": "false", "checkpoint.every_minutes": "null"} | settings
        head.start(repo, name, "jobs/train.py", *(f"--{key}={value}" for key, value in given.items()))

    @property
    def printed(self) -> str:
        return self._head.logs(self._name) or ""

    @property
    def fingerprint(self) -> str:
        [folder] = self._folder.glob(f"runs/{self._name}-*")
        return folder.name.removeprefix(f"{self._name}-")

    @property
    def step(self) -> int:
        """The latest step that was shown."""
        found = list(self._folder.glob(f"runs/{self._name}-*/progress.json"))
        return int(json.loads(found[0].read_text())["step"]) if found else 0

    @property
    def trace(self) -> list[dict[str, float]]:
        """What has been written of the trace, every few seconds."""
        [folder] = self._folder.glob(f"runs/{self._name}-*")
        return trace.rows_after(Storage(str(folder)), 0)

    def wait_for_step(self, step: int) -> None:
        self._head.wait_for(self._name, lambda: self.step >= step, 120)

    def wait_for_line(self, line: str) -> int:
        """Return the number in a line that is printed."""
        self._head.wait_for(self._name, lambda: re.search(line, self.printed) is not None, 120)
        return int(re.findall(line, self.printed)[0])


def test_elastic_run_that_lost_a_host_and_got_another_has_the_losses_of_one_that_did_not(
    repo: Path, tmp_path: Path
) -> None:
    """Two workers, one, two; nothing is computed again but what the lost host left unsaved."""
    write_inputs(tmp_path)
    with running_head(num_cpus=0) as head, head.node(3):
        ranged = {"num_workers": "[1,2]", "micro_batch_size": 4, "checkpoint.every_steps": 10}
        with head.node(3):
            run = Run(head, repo, tmp_path, "elastic", **ranged)
            run.wait_for_line(r"starts from step (\d+) with 2 workers\n")
            run.wait_for_step(25)
        run.wait_for_line(r"lost worker \d on \S+ .*at step (\d+); continues from step \d+ \(")
        alone = run.wait_for_line(r"goes on from step (\d+) with 1 worker\n")
        with head.node(3):
            run.wait_for_line(r"there is room for (\d) workers: saves, and starts them")
            again = run.wait_for_line(r"with 1 worker\n[\s\S]*goes on from step (\d+) with 2 workers\n")
            run.wait_for_step(again + 20)
        assert 20 <= alone < again
        assert "Traceback" not in run.printed
    with running_head(num_cpus=0) as head, head.node(3):
        whole = Run(head, repo, tmp_path, "whole", num_workers=1)
        whole.wait_for_step(again + 30)
    assert run.fingerprint == whole.fingerprint
    pairs = list(zip(run.trace, whole.trace, strict=False))
    assert len(pairs) > again
    for one, other in pairs:
        assert one == pytest.approx(other, abs=1e-5, rel=1e-5), one["step"]


def test_elastic_run_whose_host_is_told_to_end_saves_in_time_and_computes_nothing_again(
    repo: Path, tmp_path: Path
) -> None:
    """SIGTERM to the host's Ray, which then has 30 s; no checkpoint is due before the run's end."""
    write_inputs(tmp_path)
    seen = [0]
    with running_head(num_cpus=0) as head, head.node(3), head.node(3) as host:
        run = Run(head, repo, tmp_path, "told", num_workers="[1,2]", micro_batch_size=4)
        run.wait_for_line(r"starts from step (\d+) with 2 workers\n")
        run.wait_for_step(30)
        host.terminate()
        told = time.time()

        def alone() -> bool:
            seen.append(run.step)
            return "with 1 worker\n" in run.printed

        head.wait_for("told", alone, 120)
        assert run.wait_for_line(r"\S+ is taken away in (\d+) s: saves, and goes on without") <= 30
        saved = run.wait_for_line(r"goes on from step (\d+) with 1 worker\n")
        assert saved >= max(seen)
        [complete] = tmp_path.glob(f"runs/*/checkpoint_{saved:09d}/complete.json")
        print(f"saved step {saved}, {complete.stat().st_mtime - told:.1f} s after the notice")
        assert complete.stat().st_mtime - told < 30
        run.wait_for_step(saved + 10)
        assert "lost worker" not in run.printed
        assert "Traceback" not in run.printed
