"""When a run that lost workers goes on, when it gives up, and what it says."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from ray.exceptions import RayActorError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError, WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from degla_ray import resources
from degla_ray.config import DataConfig, ModelConfig, ObjectiveConfig, RayConfig, TrainConfig
from degla_ray.storage import Storage
from degla_ray.training import stopping
from degla_ray.training.job import ERROR, PROGRESS, RECOVERY
from degla_ray.training.ray_train import needs
from degla_ray.training.recovery import MAX_FAILURES, Recovery

CONFIG = TrainConfig(
    name="x",
    data=DataConfig(prepared="p", decode_tasks=1),
    model=ModelConfig(name="scenes-base"),
    objective=ObjectiveConfig(name="clip"),
    num_workers=4,
    global_batch_size=12,
)
GONE = "The actor died because its node has died.\n\tpid: 1\n\tip: 10.0.0.3\n"


@pytest.fixture
def run(tmp_path: Path) -> Storage:
    folder = Storage(str(tmp_path))
    folder.write_json({"step": 153}, PROGRESS)
    return folder


@pytest.fixture(autouse=True)
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """The cluster's nodes, as Ray would list them."""
    present: list[dict[str, float]] = [{"CPU": 4.0}, {"CPU": 4.0}]
    monkeypatch.setattr(resources, "_nodes", lambda: [dict(node) for node in present])
    return present


def lost() -> WorkerGroupError:
    return WorkerGroupError("died", {1: RayActorError(error_msg=GONE)})


def save(run: Storage, step: int) -> None:
    run.write_json({}, f"checkpoint_{step:09d}", "complete.json")


def policy_of(run: Storage, config: TrainConfig = CONFIG) -> Recovery:
    return Recovery(config, needs(config)[0], "x", run)


def test_policies_of_the_controller_import_neither_torch_nor_open_clip() -> None:
    """Each training starts a controller, which would import them for four seconds of a core."""
    code = "import sys, degla_ray.training.recovery, degla_ray.training.elastic\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "open_clip"} & set(done.stdout.split())


def test_run_gives_up_after_losses_without_a_checkpoint_in_between(run: Storage) -> None:
    policy = policy_of(run)
    assert [policy.make_decision(lost()) for _ in range(MAX_FAILURES)] == [
        FailureDecision.RETRY
    ] * MAX_FAILURES
    assert policy.make_decision(lost()) is FailureDecision.RAISE
    told = "x: lost worker 1 on 10.0.0.3 at step 153, and 2 times before without a checkpoint in between; "
    assert run.read_json(ERROR)["message"] == told + "the same command continues from step 0"


def test_run_that_gets_on_between_losses_never_gives_up(run: Storage) -> None:
    policy = policy_of(run)
    for step in range(10, 10 * (MAX_FAILURES + 4), 10):
        save(run, step)
        assert policy.make_decision(lost()) is FailureDecision.RETRY
    assert run.read_json(RECOVERY)[0] == (
        "lost worker 1 on 10.0.0.3 at step 153; continues from step 10 "
        "(1 more try before the next checkpoint)"
    )


def test_workers_that_left_as_they_were_asked_to_do_not_count_as_lost(run: Storage) -> None:
    policy = policy_of(run)
    for _ in range(MAX_FAILURES + 1):
        left = WorkerGroupError("left", {0: stopping.Left(), 1: stopping.Left()})
        assert policy.make_decision(left) is FailureDecision.RETRY
    assert not run.exists(RECOVERY)


def test_error_that_would_recur_ends_the_run(run: Storage) -> None:
    run.write_json({"message": "optimizer.lr: found 1; expected less"}, ERROR)
    assert policy_of(run).make_decision(lost()) is FailureDecision.RAISE
    assert not run.exists(RECOVERY)


def test_run_without_room_waits_with_one_line_and_gives_up_at_the_deadline(
    run: Storage, nodes: list[dict[str, float]]
) -> None:
    """Of the three workers that still fit, and the batch of 12 could go to, the line names the number."""
    nodes[:] = [{"CPU": 6.0}]
    timeout = ControllerError(WorkerGroupStartupTimeoutError(num_workers=4))
    save(run, 150)
    policy = policy_of(run)
    assert policy.make_decision(lost()) is FailureDecision.RETRY
    assert policy.make_decision(timeout) is FailureDecision.RETRY
    assert run.read_json(RECOVERY)[1:] == [
        "waits for room for 4 workers, now 3 (lost worker 1 on 10.0.0.3 at step 153); "
        "continues from step 150; go on with fewer: --num_workers 3"
    ]
    hasty = policy_of(run, dataclasses.replace(CONFIG, ray=RayConfig(wait_minutes=0)))
    assert hasty.make_decision(timeout) is FailureDecision.RAISE
    assert "ray.wait_minutes: found 0" in run.read_json(ERROR)["message"]


def test_host_whose_health_check_fails_is_lost_and_named(run: Storage) -> None:
    """As Ray Train tells of a node that vanished: the check's error holds the worker's."""
    worker = "A worker health check failed. Worker info: ActorMetadata(hostname='vm', node_ip='10.0.0.3')"
    found = WorkerHealthCheckFailedError(worker, RayActorError(error_msg="its node has died"))
    policy_of(run).make_decision(WorkerGroupError("died", {1: found}))
    [line, *_] = run.read_json(RECOVERY)
    assert line.startswith("lost worker 1 on 10.0.0.3 at step 153; continues from step 0 ")
