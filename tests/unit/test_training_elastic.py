"""How many workers a run with a range of them starts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision

from degla_ray import resources
from degla_ray.config import (
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    RayConfig,
    TrainComputeConfig,
    TrainConfig,
    ValidationSettings,
)
from degla_ray.storage import Storage
from degla_ray.training.elastic import Elastic
from degla_ray.training.job import ERROR, RECOVERY
from degla_ray.training.ray_train import needs

CONFIG = TrainConfig(
    name="x",
    data=DataConfig(prepared="p", decode_tasks=1),
    model=ModelConfig(name="scenes-base"),
    objective=ObjectiveConfig(name="clip"),
    compute=TrainComputeConfig(cpus=2),
    num_workers=(1, 4),
    global_batch_size=16,
)


class _Known(Elastic):
    """A policy to which Ray's coordinator, an actor, has given all of some nodes."""

    nodes: dict[str, dict[str, float]]

    def _maybe_send_resource_request(self) -> None:
        """Ask nobody."""

    def _get_reserved_resources(self) -> Any:
        return self.nodes


def policy_on(
    cpus: list[float], run: Storage, monkeypatch: pytest.MonkeyPatch, config: TrainConfig = CONFIG
) -> _Known:
    scaling = ScalingConfig(num_workers=(1, 4), resources_per_worker={"CPU": 2})
    policy = _Known(scaling, config, needs(config), "x", run)
    policy.nodes = {str(number): {"CPU": each} for number, each in enumerate(cpus)}
    monkeypatch.setattr(resources, "_nodes", lambda: [dict(node) for node in policy.nodes.values()])
    return policy


@pytest.mark.parametrize(
    ("cpus", "workers"),
    [([3], 1), ([3, 3], 2), ([3, 3, 3], 2), ([6, 6], 4), ([8], 2), ([3] * 9, 4), ([2, 2, 2, 2], 2)],
)
def test_elastic_starts_as_many_workers_as_divide_the_batch_and_have_room_with_their_decoders(
    cpus: list[float], workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes 2 CPUs on one node and one more anywhere; 3 workers do not divide a batch of 16."""
    decision = policy_on(
        cpus, Storage(str(tmp_path)), monkeypatch
    ).make_decision_for_non_running_worker_group()
    assert isinstance(decision, ResizeDecision)
    assert decision.num_workers == workers


def test_elastic_leaves_room_for_a_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    validated = dataclasses.replace(CONFIG, validation=ValidationSettings(every_steps=1, suite="s"))
    policy = policy_on([6], Storage(str(tmp_path)), monkeypatch, validated)
    decision = policy.make_decision_for_non_running_worker_group()
    assert isinstance(decision, ResizeDecision)
    assert decision.num_workers == 1


def test_elastic_waits_without_room_with_one_line_and_gives_up_at_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Storage(str(tmp_path))
    policy = policy_on([2], run, monkeypatch)
    for _ in range(3):
        assert isinstance(policy.make_decision_for_non_running_worker_group(), NoopDecision)
    assert run.read_json(RECOVERY) == ["waits for room for 1 worker, now 0; continues from step 0"]
    hasty = policy_on([2], run, monkeypatch, dataclasses.replace(CONFIG, ray=RayConfig(wait_minutes=0)))
    with pytest.raises(RuntimeError):
        hasty.make_decision_for_non_running_worker_group()
    assert "ray.wait_minutes: found 0" in run.read_json(ERROR)["message"]
