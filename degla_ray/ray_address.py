"""Check that a usable Ray answers at an address before joining it.

`ray.init` retries an address where nothing answers for minutes, prints each attempt and cannot be
interrupted. A socket tells within ANSWER_S whether anything listens. A process of its own then asks Ray for
its versions, and is ended after PROBE_S; it makes joining 2 s slower.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from degla_ray.errors import SettingError

ANSWER_S = 5.0
PROBE_S = 30.0
ALONE = "leave it out to start Ray on this machine"
_NEXT = "`ray status --address HOST:PORT` checks one"


def usable(address: str, setting: str) -> str:
    """Return `host:port` of the running Ray that an address names.

    Args:
        address: `host:port`, or `auto` for the Ray of this machine.
        setting: where the address was set, for messages.

    Raises:
        SettingError: no such Ray, one that does not answer, or one of other versions; says what to do.
    """
    if address.startswith("ray://"):
        raise SettingError(setting, address, f"host:port of a head, such as {address[6:].split(':')[0]}:6379")
    place = _on_this_machine(setting) if address == "auto" else address
    named = address if place == address else f"{address}, which is {place}"
    host, _, port = place.rpartition(":")
    if not host or not port.isdecimal():
        raise SettingError(setting, named, "host:port of a head, such as 127.0.0.1:6379, or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
    except (OSError, OverflowError) as error:
        expected = f"a running Ray: nothing answers there ({error}); start it, or {ALONE}"
        raise SettingError(setting, named, expected) from error
    found = _versions(place, named, setting)
    own = _own_versions()
    if found != own:
        theirs, ours = (f"Ray {ray} on Python {python}" for ray, python in (found, own))
        raise SettingError(
            setting, named, f"a cluster of the same versions: it runs {theirs}, this is {ours}"
        )
    return place


def _on_this_machine(setting: str) -> str:
    """Return the address of the one Ray on this machine, or of the one that `ray start` started last."""
    from ray._private import services, utils

    services.find_gcs_addresses.cache_clear()
    running = sorted(services.find_gcs_addresses())
    last = utils.read_ray_address(None)
    if last in running:
        return str(last)
    if len(running) == 1:
        return str(running[0])
    if running:
        raise SettingError(setting, "auto", f"one of the {len(running)} here: {', '.join(running)}; {_NEXT}")
    ended = f"; the one that was started last, {last}, has ended" if last else ""
    raise SettingError(
        setting, "auto", f"a running Ray on this machine{ended}: `ray start --head`, or {ALONE}"
    )


def _versions(place: str, named: str, setting: str) -> tuple[str, str]:
    """Return the versions of Ray and Python at `host:port`, asked in a process of its own."""
    package = Path(__file__).resolve().parent.parent
    paths = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        asked = subprocess.run(
            [sys.executable, "-m", "degla_ray.ray_address", place],
            capture_output=True,
            text=True,
            timeout=PROBE_S,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        if "InvalidAuthToken" in _text(error.stderr):
            raise _wants_token(named, setting) from error
        expected = (
            f"a Ray that answers within {PROBE_S:g} s: another program listens there, or Ray hangs; {_NEXT}"
        )
        raise SettingError(setting, named, expected) from error
    if "InvalidAuthToken" in asked.stderr:
        raise _wants_token(named, setting)
    if asked.returncode:
        said = (asked.stderr.strip().splitlines() or ["nothing"])[-1]
        raise SettingError(setting, named, f"a running Ray; asked for its versions it said: {said[:200]}")
    ray_version, python_version = json.loads(asked.stdout.splitlines()[-1])
    return ray_version, python_version


def _wants_token(named: str, setting: str) -> SettingError:
    expected = "another cluster, or its token: RAY_AUTH_MODE=token and RAY_AUTH_TOKEN as it was started with"
    return SettingError(setting, named, f"{expected} (a Ray that a job started for itself takes no others)")


def _own_versions() -> tuple[str, str]:
    import ray

    return ray.__version__, platform.python_version()


def _text(output: bytes | str | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def _print_versions(place: str) -> None:
    from ray._common.usage.usage_lib import get_cluster_metadata

    raylet: Any = importlib.import_module("ray._raylet")  # compiled, and its type stub lacks the client
    found = get_cluster_metadata(raylet.GcsClient(address=place))
    print(json.dumps([found["ray_version"], found["python_version"]]))


if __name__ == "__main__":
    _print_versions(sys.argv[1])
