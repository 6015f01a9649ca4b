"""What a job needs of its cluster, and the wait for what the cluster lacks.

A cluster may start with a head of 0 CPUs and grow while it is used, so its present size decides nothing. A
job states its needs with `require`: the autoscaler is asked for what is missing, and the job goes on once the
nodes are there. A local Ray cannot grow and refuses at once.

The request goes through the actor by which Ray Data and Ray Train ask the autoscaler. It adds up the requests
of all jobs (a request to the autoscaler itself would replace theirs) and drops those that are not repeated,
such as a killed job's.
"""

from __future__ import annotations

import contextlib
import math
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from degla_ray import ray_setup
from degla_ray.config import RayConfig
from degla_ray.errors import SettingError

Bundle = Mapping[str, float]
"""Resources that one process reserves, all of them on one node: {"CPU": 4, "GPU": 1}."""

NO_GPU = SettingError("compute.use_gpu", True, "a cluster with a GPU, or false")
BOOTSTRAP = "~/ray_bootstrap_config.yaml"
"""Where `ray up` puts the cluster's configuration on its head."""
POLL_S = 1.0
EXPIRES_S, REPEAT_S = 60.0, 20.0
"""Seconds after which the autoscaler forgets a request, and after which it is repeated."""
_ANSWER_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Need:
    """What `count` units of a job (workers, engines, trials) reserve.

    Attributes:
        setting: name of the setting that asks for them.
        value: its value.
        unit: what each unit reserves: one bundle for each of its processes.
        count: units without which the job cannot begin.
        wanted: units that the job can use; at least `count`.
        detail: the settings that make up a unit, for messages.
        without_gpu: raised by a cluster that has no GPU.
    """

    setting: str
    value: object
    unit: Sequence[Bundle]
    count: int = 1
    wanted: int = 1
    detail: str = ""
    without_gpu: SettingError = NO_GPU

    def total(self, name: str) -> float:
        """Return how much of a resource a unit reserves."""
        return sum(bundle.get(name, 0.0) for bundle in self.unit)


@dataclass(frozen=True, kw_only=True)
class NodeType:
    """Nodes that the autoscaler can start: at most `most` of them, each with `resources`."""

    name: str
    resources: Bundle
    most: int


def tasks(config: RayConfig, wanted: int) -> Need:
    """Return the need of Ray Data's tasks or actors, of one CPU each, of which one suffices."""
    return Need(setting="ray.num_cpus", value=config.num_cpus, unit=[{"CPU": 1.0}], wanted=wanted)


def require(config: RayConfig, needs: Sequence[Need]) -> None:
    """Return once the cluster has what the needs add up to; ask its autoscaler for what is missing.

    Args:
        config: where Ray runs, and how long to wait.
        needs: all that the job reserves at once.

    Raises:
        SettingError: the cluster is too small and cannot grow so far, or did not within `ray.wait_minutes`.
    """
    check(needs)
    lacking = _first_unmet(needs, _nodes())
    if lacking is None:
        return
    limit = f"{config.wait_minutes:g} min (ray.wait_minutes)"
    print(f"waits for {_said(lacking)}: {_growth()}; gives up after {limit}")
    started = time.monotonic()
    with _requested(needs) as repeat:
        while (lacking := _first_unmet(needs, _nodes())) is not None:
            if time.monotonic() - started > 60 * config.wait_minutes:
                found = f"{config.wait_minutes:g} and no room for {_said(lacking)}"
                raise SettingError("ray.wait_minutes", found, f"a longer wait, or nodes: {_growth()}")
            time.sleep(POLL_S)
            repeat()
    print(f"goes on after {time.monotonic() - started:.0f} s: {_present()}")


def check(needs: Sequence[Need]) -> None:
    """Refuse needs that the cluster can never meet: it is local, or its node types are too small.

    Raises:
        SettingError: names the first such need and what there is room for.
    """
    lacking = _first_unmet(needs, _nodes())
    if lacking is None:
        return
    if ray_setup.is_local():
        raise _refusal(needs, lacking, _nodes(), "the cluster's", "")
    types = node_types()
    if not types:
        return
    most = [dict(t.resources) for t in types for _ in range(t.most)] + _nodes()
    lacking = _first_unmet(needs, most)
    if lacking is not None:
        raise _refusal(needs, lacking, most, "the autoscaler's", f" ({_types_said(types)})")


def room(need: Need) -> tuple[int, int]:
    """Return how many units fit the nodes that are there (at least one), and how many may fit later."""
    now = max(1, fitting(need))
    return now, now if ray_setup.is_local() else need.wanted


def fitting(need: Need, beside: Sequence[Need] = ()) -> int:
    """Return how many of the wanted units fit the nodes that are there, with room for other needs left."""
    nodes = _nodes()
    for other in beside:
        _placed(other, nodes, other.count)
    return _placed(need, nodes, max(need.count, need.wanted))


def can_have(name: str) -> bool | None:
    """Return whether a node has the resource or a node type would bring it; None if nothing is known yet."""
    nodes, types = _nodes(), [] if ray_setup.is_local() else node_types()
    if any(node.get(name, 0) > 0 for node in [*nodes, *(t.resources for t in types)]):
        return True
    return False if nodes or types else None


def cpus_at_most() -> int:
    """Return the CPUs that the cluster has, or will have once its autoscaler has started all it can."""
    coming = 0.0 if ray_setup.is_local() else sum(t.most * t.resources.get("CPU", 0) for t in node_types())
    return int(max(coming, sum(node.get("CPU", 0) for node in _nodes())))


def node_types() -> list[NodeType]:
    """Return what the autoscaler can start; [] without an autoscaler, or if it does not tell."""
    return _of_ray_up(Path(BOOTSTRAP).expanduser()) or _told()


def _of_ray_up(file: Path) -> list[NodeType]:
    if not file.is_file():
        return []
    cluster = yaml.safe_load(file.read_text(encoding="utf-8"))
    return [
        NodeType(name=name, resources=kind["resources"], most=kind["max_workers"])
        for name, kind in cluster.get("available_node_types", {}).items()
        if kind.get("resources") and kind.get("max_workers") and name != cluster.get("head_node_type")
    ]


def _told() -> list[NodeType]:
    """Return the node types that an autoscaler has reported to Ray."""
    import ray._private.state

    known = ray._private.state.state.get_cluster_config()
    groups = known.node_group_configs if known is not None else ()
    return [
        NodeType(name=g.name, resources=dict(g.resources), most=g.max_count)
        for g in groups
        if g.max_count > 0
    ]


def _nodes() -> list[dict[str, float]]:
    """Return the total resources of each living node that has a CPU or a GPU and is not about to end."""
    import ray
    import ray._private.state

    ending = ray._private.state.state.get_draining_nodes()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in ending]
    living = [dict(node["Resources"]) for node in nodes]
    return [node for node in living if node.get("CPU", 0) > 0 or node.get("GPU", 0) > 0]


def _first_unmet(needs: Sequence[Need], nodes: Sequence[Bundle]) -> Need | None:
    """Return the first need that finds no room beside those before it, packed first-fit."""
    free = [dict(node) for node in nodes]
    return next((need for need in needs if _placed(need, free, need.count) < need.count), None)


def _placed(need: Need, free: list[dict[str, float]], most: int) -> int:
    """Take as many units as fit, at most `most`, out of the nodes' free resources; return their number."""
    for count in range(most):
        before = [dict(node) for node in free]
        for bundle in need.unit:
            # CPUs beside GPUs last, as Ray's scheduler takes them
            nodes = sorted(free, key=lambda node: node.get("GPU", 0))
            node = next((n for n in nodes if all(n.get(k, 0) >= v - 1e-9 for k, v in bundle.items())), None)
            if node is None:
                free[:] = before
                return count
            for name, amount in bundle.items():
                node[name] -= amount
    return most


def _refusal(
    needs: Sequence[Need], lacking: Need, nodes: Sequence[Bundle], whose: str, which: str
) -> SettingError:
    if lacking.total("GPU") and not any(node.get("GPU") for node in nodes):
        return lacking.without_gpu
    free = [dict(node) for node in nodes]
    for need in needs[: list(needs).index(lacking)]:
        _placed(need, free, need.count)
    left = _resources_said({k: sum(node.get(k, 0) for node in free) for k in ("CPU", "GPU")})
    of = f"{whose} {left}" if lacking is needs[0] else f"the {left} that the rest of the job leaves"
    most = _placed(lacking, free, lacking.count)
    expected = f"at most {most}: each takes" if lacking.count > 1 else "less: it takes"
    each = _unit_said(lacking) + (" on one node" if len(lacking.unit) == 1 else "")
    return SettingError(lacking.setting, lacking.value, f"{expected} {each} of {of}{which}")


@contextlib.contextmanager
def _requested(needs: Sequence[Need]) -> Iterator[Any]:
    """Ask the autoscaler for everything wanted while the block lasts; the yielded function repeats it."""
    import ray
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
        get_or_create_autoscaling_coordinator,
    )

    coordinator: Any = get_or_create_autoscaling_coordinator()
    name = f"degla-{uuid.uuid4().hex}"
    wanted = [dict(b) for need in needs for _ in range(max(need.count, need.wanted)) for b in need.unit]
    asked_at = -math.inf

    def repeat() -> None:
        nonlocal asked_at
        if time.monotonic() - asked_at >= REPEAT_S:
            asked_at = time.monotonic()
            coordinator.request_resources.remote(
                requester_id=name, resources=wanted, expire_after_s=EXPIRES_S
            )

    try:
        repeat()
        yield repeat
    finally:
        with contextlib.suppress(ray.exceptions.RayError):  # then it expires
            ray.get(coordinator.cancel_request.remote(name), timeout=_ANSWER_S)


def _said(need: Need) -> str:
    each = f"{need.count} x {_unit_said(need)}" if need.count > 1 else _unit_said(need)
    return each if need.value is None else f"{need.setting} {need.value}: {each}"


def _unit_said(need: Need) -> str:
    names = dict.fromkeys(name for bundle in need.unit for name in bundle)
    return _resources_said({name: need.total(name) for name in names}) + need.detail


def _resources_said(resources: Bundle) -> str:
    """Return resources as "4 CPUs, 1 GPU"; without any, "0 CPUs"."""
    parts = []
    for name, amount in resources.items():
        kind, _, model = name.partition(":")
        if kind in ("CPU", "GPU") and amount:
            parts.append(f"{amount:g} {kind}{'' if amount == 1 else 's'}")
        elif kind == "accelerator_type":
            parts.append(model)
    return ", ".join(parts) or "0 CPUs"


def _present() -> str:
    nodes = _nodes()
    totals = {name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
    return f"the cluster has {_resources_said(totals)}"


def _growth() -> str:
    """Return what the cluster has and what may come."""
    types = node_types()
    coming = f"its autoscaler can start {_types_said(types)}" if types else "nodes may still join it"
    return f"{_present()}, and {coming}"


def _types_said(types: Sequence[NodeType]) -> str:
    return ", ".join(f"{t.most} {t.name} of {_resources_said(t.resources)}" for t in types)
