"""Check that every node of a cluster sees a job's files, before the job computes anything.

The driver writes a token into each output folder and every other node reads it back, so a local folder that
happens to exist everywhere is found out, as is a store that a node has no credentials for. A local path that
the job reads must exist on every node. Takes about a second for a node, all at once; on one machine, nothing.
Nodes that join later are checked by their first task (`StageFolder.require_seen`, `training/loop.py`).
"""

from __future__ import annotations

import dataclasses
import os
import socket
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from degla_ray.errors import DeglaError, SettingError, one_line
from degla_ray.storage import Storage

ANSWER_S = 120.0
"""Seconds within which a node must answer; its first task may have to fetch the submitted files."""
_OF_ONE_NODE = ("cache", "tracking", "ray", "space", "output", "label")
"""Settings that name no file which other nodes read."""


def require_shared(config: object, outputs: Mapping[str, str], *, driver_only: Sequence[str] = ()) -> None:
    """Require that every node sees the output folders and the local files that the settings name.

    Args:
        config: the job's config.
        outputs: dotted setting -> folder that other nodes write to or read from.
        driver_only: dotted settings whose files only this process reads.

    Raises:
        SettingError: a node does not see a folder or file; names the setting and the node.
        DeglaError: a node cannot answer.
    """
    others = _other_nodes()
    if not others:
        return
    tokens = {
        setting: (Storage(uri).uri, f".seen-{uuid.uuid4().hex}.json") for setting, uri in outputs.items()
    }
    inputs = {name: path for name, path in _local_paths(config) if name not in driver_only}
    try:
        for uri, token in tokens.values():
            Storage(uri).write_json({"written_by": socket.gethostname()}, token)
        for host, unseen in _asked(others, tokens, inputs):
            for setting in unseen:
                found = outputs.get(setting, inputs.get(setting))
                expected = shared(setting, is_output=setting in outputs)
                raise SettingError(setting, found, f"{expected}; node {host} does not see it")
    finally:
        for uri, token in tokens.values():
            Storage(uri).delete_file(token)


def shared(setting: str = "output", *, is_output: bool = True) -> str:
    """Return what to give instead of a path that only some nodes see."""
    if setting.endswith("tracking.uri"):
        return "a store that every node sees: a server such as http://HOST:5000, or a file on a shared disk"
    what = "a folder that every node sees" if is_output else "a path that is the same on every node"
    return f"{what}: on a shared disk, or a URI such as s3://BUCKET/FOLDER"


def _other_nodes() -> dict[str, str]:
    """Return id -> address of the living nodes other than this one that can run workers."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    return {
        node["NodeID"]: node["NodeManagerAddress"]
        for node in ray.nodes()
        if node["Alive"]
        and node["NodeID"] != here
        and (node["Resources"].get("CPU") or node["Resources"].get("GPU"))
    }


def _asked(
    nodes: Mapping[str, str], tokens: Mapping[str, tuple[str, str]], inputs: Mapping[str, str]
) -> Iterator[tuple[str, list[str]]]:
    """Yield each living node's address and the settings of which it does not see the file."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0, max_retries=0)(unseen_here)
    asked = {
        node: look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            tokens, inputs
        )
        for node in nodes
    }
    for node, answer in asked.items():
        try:
            yield nodes[node], ray.get(answer, timeout=ANSWER_S)
        except ray.exceptions.RayError as error:
            if node not in _other_nodes():  # it died, which Ray notices seconds later
                continue
            raise DeglaError(
                f"node {nodes[node]} cannot run a task of this job: {one_line(error)}"
            ) from error


def unseen_here(tokens: Mapping[str, tuple[str, str]], inputs: Mapping[str, str]) -> list[str]:
    """Return the settings whose token or file this process cannot read."""
    unseen = [setting for setting, path in inputs.items() if not os.path.exists(path)]
    for setting, (uri, token) in tokens.items():
        try:
            Storage(uri).read_json(token)
        except (OSError, DeglaError):
            unseen.append(setting)
    return unseen


def _local_paths(config: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted name and the absolute path of every setting that names an existing local file."""
    for name, value in _entries(config):
        if name in _OF_ONE_NODE:
            continue
        setting = f"{prefix}{name}"
        if isinstance(value, str):
            path = Path(value).expanduser()
            if os.sep in value and "://" not in value and path.exists():
                yield setting, str(path.absolute())
        else:
            yield from _local_paths(value, f"{setting}.")


def _entries(config: object) -> Iterator[tuple[str, Any]]:
    if dataclasses.is_dataclass(config):
        yield from vars(config).items()
    elif isinstance(config, Mapping):
        yield from ((str(key), value) for key, value in config.items())
    elif isinstance(config, list | tuple):
        yield from ((str(number), value) for number, value in enumerate(config))
