"""A host that is gone stops a run with one line, and a stopped run has saved where it was."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ray_head import running_head
from test_growing_cluster import wait_until

from tests.training_inputs import write_inputs

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]


def test_training_that_loses_a_host_says_so_goes_on_with_another_and_saves_when_it_is_stopped(
    repo: Path, tmp_path: Path
) -> None:
    write_inputs(tmp_path)
    options = ["--name=x", f"--data.prepared={tmp_path}/prepared", f"--data.negatives={tmp_path}/negatives"]
    options += [f"--model.name={tmp_path}/model.json", f"--output={tmp_path}/runs", "--max_steps=100000"]
    options += ["--num_workers=2", "--compute.cpus=2", "--data.decode_tasks=1", "--global_batch_size=8"]
    options += ["--tracking.enabled=false", "--checkpoint.every_steps=20"]
    with running_head(num_cpus=0) as head:

        def has(text: str) -> bool:
            return re.search(text, head.logs("job")) is not None

        with head.node(3):
            with head.node(3):
                head.start(repo, "job", "jobs/train.py", *options)
                wait_until(
                    lambda: len(list(tmp_path.glob("runs/*/checkpoint_*"))) > 1, 240, lambda: head.logs("job")
                )
            wait_until(
                lambda: has(r"x-\w+: lost worker \d on 127\.0\.0\.1 .*at step \d+; continues from step \d+"),
                180,
                lambda: head.logs("job"),
            )
            wait_until(
                lambda: has(r"waits for room for 2 workers, now 1 .*: --num_workers 1"),
                120,
                lambda: head.logs("job"),
            )
            assert "Traceback" not in head.logs("job")
            with head.node(3):
                lost_at = int(re.findall(r"at step (\d+)", head.logs("job"))[0])
                wait_until(
                    lambda: int(re.findall(r"step (\d+)", head.logs("job"))[-1]) > lost_at + 20,
                    240,
                    lambda: head.logs("job"),
                )
                head.stop("job")
                saved = re.search(r"ends; saved step (\d+)", head.logs("job"))
                assert saved, head.logs("job")
                assert list(tmp_path.glob(f"runs/*/checkpoint_{int(saved[1]):09d}/complete.json"))
                wait_until(lambda: not head.requested(), 10, lambda: str(head.requested()))
        print(head.logs("job"))
