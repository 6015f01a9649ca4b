"""MLflow's own pages of our runs, in headless Chromium: the columns by which runs are compared are there."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_evaluation_compare import STAGE, write_evaluation
from test_reporting_browser import CHROMIUM, OPTIONS, playwright

from degla_ray import tracking
from degla_ray.config import TrackingConfig
from degla_ray.evaluation.summary import read_summary
from degla_ray.storage import Storage

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH (apt-get install chromium)"),
]


@pytest.fixture
def server(mlflow_uri: str, tmp_path: Path) -> Iterator[str]:
    """An MLflow server on loopback, over the store `mlflow_uri`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        mlflow_uri,
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, *command], stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/health", timeout=1)
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "server.log").read_text()
                time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def test_mlflow_pages_have_our_scores_as_columns(server: str, mlflow_uri: str, tmp_path: Path) -> None:
    config = TrackingConfig(uri=mlflow_uri, experiment="pages")
    runs = []
    for label, skill in (("base", 0.5), ("degla", 0.9)):
        folder = Storage(write_evaluation(tmp_path / label, label, skill))
        run = tracking.running(
            config,
            f"evaluate {label}",
            label,
            folder.uri,
            {"evaluate": {"label": label}},
            {"degla.stage": STAGE},
        )
        with run as run_id:
            tracking.log_metrics(config, run_id, read_summary(folder).metrics())
            runs.append(str(run_id))
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=mlflow_uri)
    experiment = client.get_experiment_by_name("pages").experiment_id
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        for scheme in ("light", "dark"):
            page: Any = browser.new_page(color_scheme=scheme, viewport={"width": 1440, "height": 900})
            page.goto(f"{server}/#/experiments/{experiment}/runs")
            page.get_by_text("evaluate degla").first.wait_for(timeout=60_000)
            page.screenshot(path=tmp_path / f"runs-{scheme}.png")
            chosen = f'["{runs[0]}","{runs[1]}"]'
            page.goto(f'{server}/#/compare-runs?runs={chosen}&experiments=["{experiment}"]')
            page.get_by_text("composition").first.wait_for(timeout=60_000)
            page.locator(".js-plotly-plot").first.wait_for(timeout=60_000)
            page.screenshot(path=tmp_path / f"compare-{scheme}.png")
            assert page.get_by_text("evaluate base").count() > 0
            page.close()
        browser.close()
