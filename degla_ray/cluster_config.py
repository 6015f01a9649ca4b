"""Check a cluster file without a cloud account: `python -m degla_ray.cluster_config cluster.yaml`.

Checks Ray's schema, each node type's parameters of EC2's RunInstances (which Ray's schema leaves open), this
project's rules on access (nothing open to every address, token authentication, a role for every node), and
what fails or stalls when a cluster first starts. It cannot check whether the account has these images,
instance types and quotas. Takes 2 s and needs no network.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from degla_ray.errors import DataError, DeglaError

_WHOLE_WORLD = ("0.0.0.0", "::/0")
_TOKEN_FILE = ".ray/auth_token"
_ROLE = {"aws": "IamInstanceProfile", "gcp": "serviceAccounts"}
_MOUNTED_BYTES = 50e6
_BEFORE_START = {
    "unset OMP_NUM_THREADS": "`ray up` sets it to 1, so that no process would compute with more threads",
    "RAY_USAGE_STATS_ENABLED=0": "`ray up` switches on the reports that Ray sends of its use",
}


def check(path: str) -> None:
    """Check a cluster file.

    Args:
        path: YAML file as `ray up` takes it.

    Raises:
        DataError: the file is invalid; names the first fault.
    """
    try:
        with open(path, encoding="utf-8") as file:
            cluster = yaml.safe_load(file)
    except FileNotFoundError:
        raise DataError(path, "no such file", "a cluster file for `ray up`") from None
    except yaml.YAMLError as error:
        raise DataError(path, " ".join(str(error).split()), "YAML") from error
    if not isinstance(cluster, dict):
        raise DataError(path, type(cluster).__name__, "settings such as cluster_name and provider")
    _check_ray_schema(path, cluster)
    if cluster["provider"]["type"] == "aws":
        _check_ec2(path, cluster)
    _check_access(path, cluster)
    _check_roles(path, cluster)
    _check_start(path, cluster)
    _check_mounts(path, cluster)


def _check_ray_schema(path: str, cluster: dict[str, Any]) -> None:
    # Private functions of Ray, which `ray up` calls too; pyproject pins Ray to one minor version.
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    level = logging.getLogger("ray").level
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        validate_config(prepare_config(_copy(cluster)))
    except ValidationError as error:
        where = ".".join(str(part) for part in error.absolute_path) or "top level"
        raise DataError(path, f"{where}: {error.message}", "what Ray's cluster schema allows") from error
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise DataError(path, f"{type(error).__name__}: {error}", "what `ray up` accepts") from error
    finally:
        logging.getLogger("ray").setLevel(level)


def _check_ec2(path: str, cluster: dict[str, Any]) -> None:
    from botocore.session import get_session
    from botocore.validate import ParamValidator

    request = get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for name, node_type in cluster.get("available_node_types", {}).items():
        parameters = {"MinCount": 1, "MaxCount": 1, **node_type.get("node_config", {})}
        problems = ParamValidator().validate(parameters, request)
        if problems.has_errors():
            found = " ".join(problems.generate_report().split())
            raise DataError(path, f"available_node_types.{name}.node_config: {found}", "EC2 RunInstances")


def _check_access(path: str, cluster: dict[str, Any]) -> None:
    for where, text in _strings(cluster, ""):
        if any(world in text for world in _WHOLE_WORLD):
            raise DataError(path, f"{where}: {text!r}", "nothing that is open to every address")
    if cluster["provider"]["type"] == "aws":
        for name, node_type in cluster.get("available_node_types", {}).items():
            if not node_type.get("node_config", {}).get("SecurityGroupIds"):
                raise DataError(
                    path,
                    f"available_node_types.{name}.node_config: no SecurityGroupIds",
                    "a security group of your own (the one that Ray makes opens SSH to every address)",
                )
    for field in ("head_start_ray_commands", "worker_start_ray_commands"):
        for command in cluster.get(field, []):
            if "ray start" in command and "RAY_AUTH_MODE=token" not in command:
                raise DataError(path, f"{field}: {command!r}", "RAY_AUTH_MODE=token before `ray start`")
    if not any("ray start" in command for command in cluster.get("head_start_ray_commands", [])):
        # By default, Ray's start commands open the dashboard on every interface, without a token.
        raise DataError(path, "head_start_ray_commands: no `ray start`", "one with RAY_AUTH_MODE=token")
    if not any(target.endswith(_TOKEN_FILE) for target in cluster.get("file_mounts", {})):
        raise DataError(path, "file_mounts: no token file", f"one that ends in {_TOKEN_FILE}, for every node")


def _check_roles(path: str, cluster: dict[str, Any]) -> None:
    """Check that every node may use the storage: Ray itself gives a role to the head alone."""
    role = _ROLE.get(cluster["provider"]["type"])
    for name, node_type in cluster.get("available_node_types", {}).items() if role else ():
        if not node_type.get("node_config", {}).get(role):
            found = f"available_node_types.{name}.node_config: no {role}"
            raise DataError(path, found, "one that may read and write the storage")


def _check_start(path: str, cluster: dict[str, Any]) -> None:
    """Check the commands of a node's start: none depends on who runs `ray up`, none meets apt's own lock."""
    local = cluster["provider"]["type"] == "local"
    pinned = "RAY_enable_autoscaler_v2=0" if local else "RAY_enable_autoscaler_v2="
    start = next(each for each in cluster["head_start_ray_commands"] if "ray start" in each)
    if pinned not in start:
        why = "; with the newer one the last worker never starts" if local else ""
        raise DataError(path, f"head_start_ray_commands: {start!r}", f"{pinned} before `ray start`{why}")
    for field in ("head_start_ray_commands", "worker_start_ray_commands"):
        for command in cluster.get(field, []):
            before, starts, _ = command.partition("ray start")
            for needed, why in _BEFORE_START.items():
                if starts and needed not in before:
                    raise DataError(path, f"{field}: {command!r}", f"`{needed}` before `ray start`: {why}")
    for where, text in _strings(cluster, ""):
        if "apt-get" in text and text.count("apt-get") != text.count("DPkg::Lock::Timeout"):
            expected = (
                "`apt-get -o DPkg::Lock::Timeout=SECONDS`: a machine runs apt itself at its first start"
            )
            raise DataError(path, f"{where}: {text!r}", expected)


def _check_mounts(path: str, cluster: dict[str, Any]) -> None:
    """Check that mounts are small: `ray up` hashes them whole, whatever rsync_exclude says."""
    for target, source in cluster.get("file_mounts", {}).items():
        size = 0
        for file in Path(source).expanduser().rglob("*"):
            size += file.stat().st_size if file.is_file() else 0
            if size > _MOUNTED_BYTES:
                found = f"file_mounts.{target}: {source!r} holds more than {_MOUNTED_BYTES / 1e6:g} MB"
                expected = "less; code comes with `ray job submit --working-dir`, packages with an image"
                raise DataError(path, found, expected)


def _strings(value: object, where: str) -> Iterator[tuple[str, str]]:
    """Yield every string in `value` with its dotted path."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _strings(inner, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _strings(inner, f"{where}[{index}]")
    elif isinstance(value, str):
        yield where, value


def _copy(cluster: dict[str, Any]) -> dict[str, Any]:
    """Return a copy without shared parts: YAML anchors share objects, and Ray modifies its argument."""
    return yaml.safe_load(yaml.dump(cluster, Dumper=_NoAliases))


class _NoAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


def main() -> None:
    """Check the files named on the command line; print one line and exit with 2 at the first fault."""
    try:
        for path in sys.argv[1:]:
            check(path)
    except DeglaError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"valid: {' '.join(sys.argv[1:])}")


if __name__ == "__main__":
    main()
