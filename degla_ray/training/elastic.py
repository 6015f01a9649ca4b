"""Workers whose number changes while a run goes on, and that leave a host before it is taken away.

Ray Train changes the number of workers by starting all of them anew from the latest checkpoint. So that
nothing is computed again, Ray Train's controller first asks the workers for a checkpoint, after which they
leave (stopping.py). Trade-off: new workers import torch and build the model before they train, so more room
is looked for only now and then.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller.state import PreemptingState, TrainControllerState
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)
from ray.train.v2.api.preemption import PreemptionInfo

from degla_ray import resources
from degla_ray.config import TrainConfig
from degla_ray.resources import Bundle, Need
from degla_ray.storage import Storage
from degla_ray.training import checkpoint_folders, stopping
from degla_ray.training.recovery import Recovery, say

LOOK_S = 30.0
"""Seconds between looks for more room; the first comes as long after a start of the workers."""


class Elastic(ElasticScalingPolicy):
    """Ray Train's elastic scaling, by the numbers of workers that divide the global batch.

    Args:
        scaling: what each worker reserves; its range ends at allowed numbers.
        config: the run's config.
        needs: what the run reserves: workers first, then what goes on beside them.
        name: name of the run, for the console.
        run: the run's folder.
    """

    def __init__(
        self, scaling: ScalingConfig, config: TrainConfig, needs: Sequence[Need], name: str, run: Storage
    ) -> None:
        super().__init__(scaling)
        self._counts, self._needs, self._run = config.worker_counts, needs, run
        self._recovery = Recovery(config, needs[0], name, run, needs[1:])

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Return how many workers to start; wait, and tell it, while there is no room for the fewest."""
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, NoopDecision) and self._recovery.waits() is FailureDecision.RAISE:
            raise RuntimeError("no room for the fewest workers within ray.wait_minutes")
        return decision

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """Ask the workers to leave if there is room for more of them; they start anew once they have left."""
        decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        if isinstance(decision, ResizeDecision) and decision.num_workers > worker_group_state.num_workers:
            say(self._run, f"there is room for {decision.num_workers} workers: saves, and starts them")
            stopping.ask_to_leave(self._run.uri)
        return NoopDecision()

    def _count_possible_workers(self, reserved_resources: Mapping[str, Bundle]) -> int:
        # Ray Train's own count knows other jobs, but no decoders, and learns of a lost node within 20 s.
        room = min(
            super()._count_possible_workers(reserved_resources),
            resources.fitting(self._needs[0], self._needs[1:]),
        )
        return max((count for count in self._counts if count <= room), default=0)


class WorkerChanges(WorkerGroupCallback, ControllerCallback):
    """Has workers leave a host that is about to be taken away, and tells how many go on.

    Args:
        config: the run's config.
        run: the run's folder.
    """

    def __init__(self, config: TrainConfig, run: Storage) -> None:
        self._run = run
        self._tells = not isinstance(config.num_workers, int)  # else the first start goes without saying

    def before_controller_execute_resize_decision(self, resize_decision: ResizeDecision) -> None:
        """Forget what the workers that are gone did, and what was asked of them."""
        stopping.set_starting(self._run.uri)

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Tell how many workers train, and from where."""
        count, step = len(worker_group.get_workers()), max(checkpoint_folders.complete(self._run), default=0)
        if self._tells:
            begins = f"{'goes on' if step else 'starts'} from step {step}"
            say(self._run, f"{begins} with {count} worker{'s' if count > 1 else ''}")
        self._tells = True

    def after_controller_state_update(
        self, previous_state: TrainControllerState, current_state: TrainControllerState
    ) -> None:
        """Ask the workers to leave as soon as the first notice comes."""
        if isinstance(current_state, PreemptingState) and not isinstance(previous_state, PreemptingState):
            say(self._run, f"{_taken_away(current_state.preemption_info)}: saves, and goes on without it")
            stopping.ask_to_leave(self._run.uri)


def _taken_away(info: PreemptionInfo) -> str:
    """Return which hosts are taken away, and when."""
    known = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
    hosts = ", ".join(known.get(node, node) for node in info.preempted_node_ids)
    when = "" if info.deadline_ms is None else f" in {max(0.0, info.deadline_ms / 1000 - time.time()):.0f} s"
    return f"{hosts} is taken away{when}"
