"""Training while MLflow's server is down: refused at the start; later it goes on, and nothing is lost."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from degla_ray import remote_store
from degla_ray.config import TrackingConfig
from degla_ray.tracking_store import ServerSilent
from degla_ray.training.trainer import train
from tests.training_inputs import read_trace, train_config, write_inputs

# tests/unit/test_tracking_server.py holds the rules
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
STEPS = 250


class Server:
    """MLflow's own server, which can be killed and started again at the same address."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        self._command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/server.db"]
        self._command += ["--artifacts-destination", str(folder / "artifacts")]
        self._log = folder / "server.txt"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, start_new_session=True)
        end = time.monotonic() + 120
        while time.monotonic() < end:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=1).close()
                return
            except OSError:
                assert self._process.poll() is None, self._log.read_text()
                time.sleep(0.1)
        raise AssertionError(self._log.read_text())

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.kill()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("tracking"))


def in_the_middle(output: Path, act: list[object]) -> threading.Thread:
    """Return a thread that waits for the first checkpoint of the run below `output` and then acts."""

    def watch() -> None:
        while not list(output.glob("*/checkpoint_*/complete.json")):
            time.sleep(0.02)
        for each in act:
            each() if callable(each) else time.sleep(float(str(each)))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_train_server_that_is_down_at_the_start_is_refused_before_anything_is_written(
    folder: Path, tmp_path: Path, server: Server
) -> None:
    began = time.monotonic()
    with pytest.raises(ServerSilent, match=r"tracking\.uri: found .*Connection refused"):
        train(train_config(folder, output=str(tmp_path / "runs"), tracking=TrackingConfig(uri=server.url)))
    assert time.monotonic() - began < 10
    assert not list((tmp_path / "runs").glob("*/*"))


def test_train_server_killed_in_the_middle_gets_every_point_once_it_is_back(
    folder: Path, tmp_path: Path, server: Server, ray_cluster: None
) -> None:
    server.start()
    output, tracking = tmp_path / "runs", TrackingConfig(uri=server.url)
    outage = in_the_middle(output, [server.kill, 5, server.start])
    result = train(train_config(folder, output=str(output), max_steps=STEPS, tracking=tracking))
    outage.join()
    client = MlflowClient(server.url)
    curve = client.get_metric_history(str(result.mlflow_run_id), "train/loss")
    assert [(p.step, p.value) for p in curve] == [
        (r["step"], r["loss"]) for r in read_trace(result.trace_path)
    ]
    assert client.get_run(str(result.mlflow_run_id)).info.status == "FINISHED"
    assert {file.path for file in client.list_artifacts(str(result.mlflow_run_id))} >= {"trace.jsonl"}


def test_train_server_that_never_comes_back_costs_the_run_nothing_and_is_told(
    folder: Path,
    tmp_path: Path,
    server: Server,
    ray_cluster: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.start()
    monkeypatch.setattr(remote_store, "OUTAGE_S", 3.0)
    monkeypatch.setattr(remote_store, "FIRST_ANSWER_S", 0.0)
    output, tracking = tmp_path / "runs", TrackingConfig(uri=server.url)
    outage = in_the_middle(output, [server.kill])
    result = train(train_config(folder, output=str(output), max_steps=STEPS, tracking=tracking))
    outage.join()
    assert len(read_trace(result.trace_path)) == STEPS
    printed = " ".join(capsys.readouterr().out.split())
    assert f"not recorded, they are in {result.trace_path}" in printed
    assert "config.json and trace.jsonl are not recorded: tracking.uri: found" in printed
    assert "the end of run tiny-" in printed
