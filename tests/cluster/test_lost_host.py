"""A host that is gone stops a run with one line, and a stopped run has saved where it was."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from ray_head import running_head

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

        def printed(pattern: str, seconds: float) -> None:
            head.wait_for("job", lambda: re.search(pattern, head.logs("job")) is not None, seconds)

        with head.node(3):
            with head.node(3):
                head.start(repo, "job", "jobs/train.py", *options)
                head.wait_for("job", lambda: len([*tmp_path.glob("runs/*/checkpoint_*")]) > 1, 120)
            printed(r"x-\w+: lost worker \d on [\d.]+ at step \d+; continues from step \d+", 120)
            printed(r"waits for room for 2 workers, now 1 .*: --num_workers 1", 120)
            assert "Traceback" not in head.logs("job")
            with head.node(3):
                lost_at = int(re.findall(r"at step (\d+)", head.logs("job"))[0])
                head.wait_for("job", lambda: step_of(tmp_path) > lost_at + 20, 120)
                head.stop("job")
                saved = re.search(r"ends; saved step (\d+)", head.logs("job"))
                assert saved, head.logs("job")
                assert [*tmp_path.glob(f"runs/*/checkpoint_{int(saved[1]):09d}/complete.json")]
                head.wait_for_no_request()
        print(head.logs("job"))


def step_of(folder: Path) -> int:
    [file] = folder.glob("runs/*/progress.json")
    return json.loads(file.read_text())["step"]
