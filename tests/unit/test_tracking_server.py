"""An MLflow server that is down: told before a job begins, waited for while it runs, and never its end."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from degla_ray import remote_store, tracking, tracking_store
from degla_ray.config import CompareConfig, TrackingConfig
from degla_ray.errors import SettingError
from degla_ray.tracking_store import ServerSilent, or_told


class Answers:
    """A server on loopback that answers each request with a status, like a proxy or MLflow."""

    def __init__(self) -> None:
        self.status, self.asked, answers = 200, 0, self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answers.asked += 1
                known = {"experiment": {"experiment_id": "1", "name": "x", "lifecycle_stage": "active"}}
                body = json.dumps(known if answers.status == 200 else {"error_code": "DENIED"}).encode()
                self.send_response(answers.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.config = TrackingConfig(uri=f"http://127.0.0.1:{self.server.server_port}")
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def answers() -> Iterator[Answers]:
    running = Answers()
    yield running
    running.server.shutdown()
    running.server.server_close()


def test_require_server_that_is_there_passes(answers: Answers) -> None:
    tracking.require(answers.config)


@pytest.mark.parametrize("status", [502, 503])
def test_require_proxy_of_a_server_that_is_down_is_refused(status: int, answers: Answers) -> None:
    answers.status = status
    with pytest.raises(ServerSilent, match=rf"tracking\.uri: .*\(status {status}\).*tracking.enabled false"):
        tracking.require(answers.config)


def test_require_server_that_refuses_names_its_credentials(answers: Answers) -> None:
    answers.status = 401
    with pytest.raises(SettingError, match=r"tracking\.uri: .*MLFLOW_TRACKING_USERNAME"):
        tracking.require(answers.config)


def test_require_address_without_a_server_is_refused_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and does not listen
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ServerSilent, match=rf"found '{uri}'; .*\(Connection refused\)"):
            tracking.require(TrackingConfig(uri=uri))


def test_require_server_that_never_answers_is_refused_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking_store, "FIRST_ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(ServerSilent, match="timed out"):
        tracking.require(TrackingConfig(uri=f"http://127.0.0.1:{silent.getsockname()[1]}"))


def test_server_that_is_away_for_a_while_is_waited_for(answers: Answers) -> None:
    client = tracking_store.open_store(answers.config.uri)
    client.get_experiment_by_name("x")
    answers.status = 503
    threading.Timer(0.5, setattr, (answers, "status", 200)).start()
    assert client.get_experiment_by_name("x").experiment_id == "1"
    assert answers.asked > 2


def test_server_that_stays_away_is_told_and_the_job_goes_on(
    answers: Answers, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second call does not wait as long as the first."""
    client = tracking_store.open_store(answers.config.uri)
    client.get_experiment_by_name("x")
    answers.status = 503
    monkeypatch.setattr(remote_store, "OUTAGE_S", 1.0)
    monkeypatch.setattr(remote_store, "FIRST_ANSWER_S", 0.0)
    for _ in range(2):
        began = time.monotonic()
        with or_told("the scores are"):
            client.get_experiment_by_name("x")
    assert time.monotonic() - began < 0.5
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(
        f"MLflow: the scores are not recorded: tracking.uri: found '{answers.config.uri}'"
    )
    assert "status 503" in first
    assert second.startswith("MLflow: the scores are not recorded")


def test_tracking_uri_of_mlflows_own_variable_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert TrackingConfig().uri == "sqlite:///runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert CompareConfig(evaluations=[]).tracking.uri == "http://tracking:5000"
    assert TrackingConfig(uri="sqlite:///x.db").uri == "sqlite:///x.db"
