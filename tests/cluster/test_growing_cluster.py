"""A cluster that starts with a head of 0 CPUs: jobs wait for nodes, and withdraw what they asked for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_head import Head, running_head

pytestmark = pytest.mark.timeout(900)

SCENES = ("--scenes.num_images=24", "--scenes.num_validation_images=8", "--scenes.test_items=4")


@pytest.fixture(scope="module")
def empty_head() -> Iterator[Head]:
    with running_head(num_cpus=0) as head:
        yield head


def start_waiting(head: Head, repo: Path, name: str, *job: str) -> None:
    """Submit a job to the empty cluster, and return once it says that it waits."""
    head.wait_until_empty()
    head.start(repo, name, *job)
    head.wait_for(name, lambda: "waits for " in head.logs(name), 120)


def test_job_on_an_empty_cluster_waits_for_a_node_and_withdraws_its_request_when_stopped(
    empty_head: Head, repo: Path, tmp_path: Path
) -> None:
    job = ["jobs/prepare.py", "--source=scenes", f"--output={tmp_path}/scenes", "--num_shards=2", *SCENES]
    start_waiting(empty_head, repo, "stopped", *job)
    assert "the cluster has 0 CPUs" in empty_head.logs("stopped")
    empty_head.wait_for("stopped", lambda: {"CPU": 1.0} in empty_head.requested(), 60)
    empty_head.stop("stopped")
    empty_head.wait_for_no_request()

    start_waiting(empty_head, repo, "goes-on", *job)
    with empty_head.node(2):
        ended = empty_head.wait_for_end("goes-on", 120)
    assert ended == "SUCCEEDED", empty_head.logs("goes-on")
    assert "goes on after" in empty_head.logs("goes-on")
    assert empty_head.logs("goes-on").count("waits for ") == 1


@pytest.mark.slow  # test_job_on_an_empty_cluster_… holds the rule
@pytest.mark.parametrize("job", ["rules", "scripted", "train", "evaluate", "neighbours", "tune"])
def test_every_job_waits_for_the_node_that_it_needs(
    empty_head: Head, repo: Path, inputs: Path, tmp_path: Path, job: str
) -> None:
    name, *options = options_of(job, inputs, tmp_path)
    start_waiting(empty_head, repo, job, f"jobs/{name}.py", *options)
    with empty_head.node(8):
        ended = empty_head.wait_for_end(job, 240)
    assert ended == "SUCCEEDED", empty_head.logs(job)
    assert "goes on after" in empty_head.logs(job)


@pytest.mark.slow
def test_job_submitted_while_a_node_dies_goes_on_with_the_next(
    empty_head: Head, repo: Path, tmp_path: Path
) -> None:
    """For some seconds Ray takes a node that died for a living one."""
    job = ["jobs/prepare.py", "--source=scenes", f"--output={tmp_path}/scenes", "--num_shards=2", *SCENES]
    with empty_head.node(2):
        pass
    empty_head.start(repo, "after-a-death", *job)
    with empty_head.node(2):
        ended = empty_head.wait_for_end("after-a-death", 120)
    assert ended == "SUCCEEDED", empty_head.logs("after-a-death")


@pytest.fixture(scope="module")
def inputs(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared scenes with their test sets, made on a Ray of this machine."""
    folder = tmp_path_factory.mktemp("inputs")
    options = [f"--output={folder}/scenes", "--source=scenes", "--num_shards=2", *SCENES]
    subprocess.run([sys.executable, "jobs/prepare.py", *options], cwd=repo, check=True, timeout=240)
    return folder


def options_of(job: str, inputs: Path, output: Path) -> list[str]:
    scenes, untracked = f"{inputs}/scenes", "--tracking.enabled=false"
    model = "--model.name=scenes-tiny", "--model.random_init=true"
    training = {"name": "x", "data.prepared": scenes, "objective.name": "clip", "model.name": "scenes-tiny"}
    training |= {"global_batch_size": "8", "max_steps": "2", "tracking.enabled": "false"}
    run = [f"{name}={value}" for name, value in training.items()]
    negatives = ["negatives", f"--prepared={scenes}", f"--output={output}/out", "--num_shards=2", untracked]
    space = output / "space.py"
    space.write_text(
        'from ray import tune\n\ndef space():\n    return {"optimizer.lr": tune.choice([1e-3])}, {}\n'
    )
    return {
        "rules": negatives,
        "scripted": [*negatives, "--engine=scripted"],
        "train": ["train", *(f"--{each}" for each in run), f"--output={output}/runs"],
        "evaluate": ["evaluate", *model, f"--suite={scenes}/tests", f"--output={output}/out", untracked],
        "neighbours": ["neighbours", *model, f"--prepared={scenes}", f"--output={output}/out", "--count=2"],
        "tune": [
            *("tune", *(f"--train.{each}" for each in run), f"--train.output={output}/runs"),
            *(
                "--train.model.random_init=true",
                f"--suite={scenes}/tests",
                "--num_trials=1",
                f"--space={space}",
            ),
        ],
    }[job]
