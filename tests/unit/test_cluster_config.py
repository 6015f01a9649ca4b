"""The repository's cluster files pass the offline checks, and files with a fault do not."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from degla_ray.cluster_config import check
from degla_ray.errors import DataError

CLUSTER = Path(__file__).parents[2] / "cluster.yaml"


def _rule(cidr: str) -> dict[str, Any]:
    return {"FromPort": 22, "ToPort": 22, "IpProtocol": "tcp", "IpRanges": [{"CidrIp": cidr}]}


def _set(*path: str | int, value: object) -> Callable[[Any], None]:
    def change(cluster: Any) -> None:
        for key in path[:-1]:
            cluster = cluster[key]
        cluster[path[-1]] = value

    return change


def _remove(*path: str | int) -> Callable[[Any], None]:
    def change(cluster: Any) -> None:
        for key in path[:-1]:
            cluster = cluster[key]
        del cluster[path[-1]]

    return change


def _written(tmp_path: Path, change: Callable[[Any], None]) -> str:
    cluster = yaml.safe_load(CLUSTER.read_text())
    change(cluster)
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(cluster))
    return str(path)


@pytest.mark.parametrize("file", ["cluster.yaml", "deploy/gcp.yaml", "deploy/on-premise.yaml"])
def test_cluster_config_repository_file_passes(file: str) -> None:
    check(str(CLUSTER.parent / file))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_set("max_wrkers", value=3), "max_wrkers"),
        (_set("max_workers", value="many"), "max_workers"),
        (_remove("provider"), "provider"),
        (_set("head_node_type", value="haed"), "head_node_type"),
        (_remove("available_node_types", "gpu_worker", "resources"), "resources"),
        (_set("available_node_types", "gpu_worker", "min_workers", value=99), "max_workers"),
        (
            _set("available_node_types", "head", "node_config", "InstanceTyp", value="m7i.large"),
            "InstanceTyp",
        ),
        (_set("available_node_types", "head", "node_config", "ImageId", value=7), "ImageId"),
        (
            _remove("available_node_types", "cpu_worker", "node_config", "SecurityGroupIds"),
            "SecurityGroupIds",
        ),
        (_set("provider", "security_group", value={"IpPermissions": [_rule("0.0.0.0/0")]}), "IpPermissions"),
        (_set("head_start_ray_commands", value=["ray start --head"]), "RAY_AUTH_MODE=token"),
        (
            _set("head_start_ray_commands", value=["RAY_AUTH_MODE=token ray start --dashboard-host=0.0.0.0"]),
            "every address",
        ),
        (_remove("head_start_ray_commands"), "head_start_ray_commands"),
        (_set("worker_start_ray_commands", value=["ray start --address=x"]), "worker_start_ray_commands"),
        (_remove("file_mounts", "~/.ray/auth_token"), "auth_token"),
        (_remove("available_node_types", "gpu_worker", "node_config", "IamInstanceProfile"), "gpu_worker"),
        (_set("setup_commands", value=["sudo apt-get install -y gcc"]), "DPkg::Lock::Timeout"),
        (
            _set("head_start_ray_commands", value=["RAY_AUTH_MODE=token ray start --head"]),
            "RAY_enable_autoscaler_v2",
        ),
        (
            _set("worker_start_ray_commands", value=["RAY_AUTH_MODE=token ray start --address=x"]),
            "OMP_NUM_THREADS",
        ),
        (
            _set(
                "worker_start_ray_commands",
                value=["unset OMP_NUM_THREADS; RAY_AUTH_MODE=token ray start --address=x"],
            ),
            "RAY_USAGE_STATS_ENABLED=0",
        ),
    ],
)
def test_cluster_config_faulty_file_is_refused_naming_the_fault(
    tmp_path: Path, change: Callable[[Any], None], named: str
) -> None:
    with pytest.raises(DataError) as caught:
        check(_written(tmp_path, change))
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_cluster_config_without_an_image_as_the_docs_say_passes(tmp_path: Path) -> None:
    page = (CLUSTER.parent / "docs" / "clusters" / "aws.md").read_text()
    [block] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)

    def change(cluster: Any) -> None:
        del cluster["docker"], cluster["initialization_commands"]
        cluster.update(yaml.safe_load(block))

    check(_written(tmp_path, change))


def test_cluster_config_mounted_folder_that_ray_up_would_hash_for_long_is_refused(tmp_path: Path) -> None:
    (tmp_path / "code" / ".venv").mkdir(parents=True)
    with (tmp_path / "code" / ".venv" / "torch.so").open("wb") as file:
        file.truncate(60_000_000)
    with pytest.raises(DataError, match="more than 50 MB"):
        check(_written(tmp_path, _set("file_mounts", "/home/ray/code", value=str(tmp_path / "code"))))


def test_cluster_config_on_premise_with_the_newer_autoscaler_is_refused(tmp_path: Path) -> None:
    text = (CLUSTER.parent / "deploy" / "on-premise.yaml").read_text()
    (tmp_path / "local.yaml").write_text(text.replace("autoscaler_v2=0", "autoscaler_v2=1"))
    with pytest.raises(DataError, match="last worker never starts"):
        check(str(tmp_path / "local.yaml"))


def test_cluster_config_command_broken_yaml_exits_2_with_one_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("provider: {type: aws\ncluster_name: x")
    for file in (path, tmp_path / "absent.yaml"):
        done = subprocess.run(
            [sys.executable, "-m", "degla_ray.cluster_config", str(file)],
            capture_output=True,
            text=True,
            cwd=CLUSTER.parent,
        )
        assert done.returncode == 2
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1
        assert str(file) in done.stderr
