"""A Ray head in processes of its own, as `ray start` makes it; jobs are submitted to it, nodes join it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

RAY = str(Path(sys.executable).with_name("ray"))
START_TIMEOUT_S = 90


@dataclass(frozen=True)
class Head:
    """A running Ray head.

    Attributes:
        dashboard: URL to submit jobs to.
        address: host:port that nodes join.
        env: environment of a client: address and token.
    """

    dashboard: str
    address: str
    env: dict[str, str]

    def submit(self, repo: Path, *job: str, timeout: float = 280) -> subprocess.CompletedProcess[str]:
        """`ray job submit --working-dir . -- python JOB...` in the repository; waits for the job's end."""
        command = [RAY, "job", "submit", "--working-dir", ".", "--", "python", *job]
        return subprocess.run(
            command, cwd=repo, env=self.env, capture_output=True, text=True, timeout=timeout
        )

    def start(self, repo: Path, name: str, *job: str) -> None:
        """`submit` under a submission id of one's own, without waiting for the job's end."""
        command = [RAY, "job", "submit", "--no-wait", f"--submission-id={name}", "--working-dir", "."]
        subprocess.run([*command, "--", "python", *job], cwd=repo, env=self.env, check=True, timeout=120)

    def logs(self, name: str) -> str:
        """Return what a job has printed so far, as `ray job logs` would, which starts a process for it."""
        return self._job(f"{name}/logs")["logs"]

    def state(self, name: str) -> str:
        """Return a job's state: RUNNING, SUCCEEDED, …"""
        return self._job(name)["status"]

    def _job(self, path: str) -> dict[str, Any]:
        request = urllib.request.Request(f"{self.dashboard}/api/jobs/{path}", headers=_token(self.env))
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def wait_for(self, name: str, true: Callable[[], bool], seconds: float) -> None:
        """Wait for something that a running job does; fail with its output if it ends without, or late."""
        deadline = time.monotonic() + seconds
        while not true():
            runs = self.state(name) in ("PENDING", "RUNNING")
            assert true() or (runs and time.monotonic() < deadline), self.logs(name)
            time.sleep(0.5)

    def wait_for_end(self, name: str, seconds: float) -> str:
        """Wait for a job's end; return its state."""
        self.wait_for(name, lambda: self.state(name) not in ("PENDING", "RUNNING"), seconds)
        return self.state(name)

    def wait_for_no_request(self, seconds: float = 20) -> None:
        """Wait until nothing is asked of the autoscaler."""
        deadline = time.monotonic() + seconds
        while left := self.requested():
            assert time.monotonic() < deadline, left

    def requested(self) -> list[dict[str, float]]:
        """Return the resources that the autoscaler has been asked for."""
        return self._answer(_REQUESTED)

    def wait_until_empty(self) -> None:
        """Wait until Ray knows of the head and of no other node."""
        assert self._answer(_ALONE), "nodes are there"

    def _answer(self, script: str) -> Any:
        """Return what a script prints as JSON in its last line; it gets the head's address."""
        command = [sys.executable, "-c", script, self.address]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    @contextmanager
    def node(self, num_cpus: int, *before: str) -> Iterator[subprocess.Popen]:
        """A node that joins the head; yields the process that ends with it.

        Args:
            num_cpus: its logical CPUs.
            before: command that starts the node's command, such as one that hides a folder from it.
        """
        # As on a host of its own: a node deletes a running job's files before it unpacks them again, also
        # where it shares the folder with the node that the job runs on.
        temp_dir = tempfile.mkdtemp(prefix="degla-node-", dir="/tmp")
        command = [*before, RAY, "start", "--block", f"--address={self.address}", f"--num-cpus={num_cpus}"]
        command += [f"--temp-dir={temp_dir}", "--node-ip-address=127.0.0.1"]
        command += _ports("--dashboard-agent-listen-port", "--metrics-export-port")
        # One node at a time: of two that start at once on one machine, one may abort.
        process = subprocess.Popen(
            command,
            env=self.env | {"PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        assert any("Ray runtime started" in line for line in process.stdout), "the node did not start"
        try:
            yield process
        finally:
            _end(process)
            shutil.rmtree(temp_dir, ignore_errors=True)

    def stop(self, name: str) -> None:
        """`ray job stop`; waits for the job's end."""
        subprocess.run([RAY, "job", "stop", name], env=self.env, check=True, timeout=120)


_REQUESTED = """
import json, sys
from ray._raylet import GcsClient
from ray.autoscaler.v2.sdk import get_cluster_resource_state
client = GcsClient(address=sys.argv[1])
state = get_cluster_resource_state(client)
requests = [r for c in state.cluster_resource_constraints for r in c.resource_requests]
older = json.loads(client.internal_kv_get(b"autoscaler_resource_request", None) or "[]")
print(json.dumps(older + [dict(r.request.resources_bundle) for r in requests for _ in range(r.count)]))
"""

_ALONE = """
import sys, time
from ray._raylet import GcsClient
client, end = GcsClient(address=sys.argv[1]), time.monotonic() + 60
living = lambda: sum(node.state == 0 for node in client.get_all_node_info().values())
while living() != 1 and time.monotonic() < end:
    time.sleep(0.5)
print("true" if living() == 1 else "false")
"""


def _token(env: dict[str, str]) -> dict[str, str]:
    return {"Authorization": f"Bearer {env['RAY_AUTH_TOKEN']}"}


def _ports(*options: str) -> list[str]:
    return [f"{option}={_free_port()}" for option in options]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running_head(num_cpus: int = 8) -> Iterator[Head]:
    """A Ray head on loopback with a dashboard and a token, ended by the ids of its own processes."""
    temp_dir = Path(tempfile.mkdtemp(prefix="degla-head-", dir="/tmp"))
    port, gcs = _free_port(), _free_port()
    dashboard = f"http://127.0.0.1:{port}"
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTEST_"))} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": "60",  # by default, a stopped job is killed after 3 s
        # A job's `python` is the one on the head's path, as where the environment is activated.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    ports = ("--ray-client-server-port", "--dashboard-agent-listen-port", "--metrics-export-port")
    command = [RAY, "start", "--head", "--block", f"--num-cpus={num_cpus}", f"--temp-dir={temp_dir}"]
    command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}"]
    command += [f"--port={gcs}", *_ports(*ports)]
    log = (temp_dir / "head.log").open("w")
    process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait_for(dashboard, env["RAY_AUTH_TOKEN"], process, temp_dir / "head.log")
        yield Head(dashboard, f"127.0.0.1:{gcs}", env | {"RAY_API_SERVER_ADDRESS": dashboard})
    finally:
        _end(process)
        log.close()
        shutil.rmtree(temp_dir, ignore_errors=True)


def _wait_for(dashboard: str, token: str, process: subprocess.Popen, log: Path) -> None:
    request = urllib.request.Request(f"{dashboard}/api/jobs/", headers={"Authorization": f"Bearer {token}"})
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                assert answer.status == 200
                return
        except OSError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no Ray head at {dashboard} ({error}):\n{log.read_text()}") from error
            process_wait(process, 0.2)


def process_wait(process: subprocess.Popen, seconds: float) -> None:
    """Wait until the process has ended, or for the given number of seconds."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return


def _end(process: subprocess.Popen) -> None:
    """Kill a process and all its descendants, and nothing else; asked politely, they take 20 seconds."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    process.kill()
    process.wait()
    for each in family:
        each.kill()
    psutil.wait_procs(family, timeout=10)
