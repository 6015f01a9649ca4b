"""Fixtures for all tests, and the rules that skip tests this machine cannot run.

What many tests need is made once a session: a store with MLflow's tables, a server that speaks S3. A stage
runs in this process (`run_stage`), because a process of its own imports torch for six seconds; the tests of
`jobs/*.py` and of submitted jobs start processes.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repo() -> Path:
    """Root of the repository."""
    return REPO


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real datasets: $DEGLA_DATA, else ../shared/data beside the repository; skips if absent."""
    folder = Path(os.environ.get("DEGLA_DATA", REPO.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder} (set DEGLA_DATA to a folder that holds flickr8k/)")
    return folder


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Any:
    """The torch device of a test that runs the same lines on a CPU and on a GPU."""
    import torch

    return torch.device(request.param)


@pytest.fixture
def run_stage() -> Iterator[Callable[..., int]]:
    """Run `degla STAGE …` in this process and return its exit status."""
    from degla_ray.commands import degla

    handler = signal.getsignal(signal.SIGTERM)

    def run(*words: object) -> int:
        before = sys.argv, sys.stdout, sys.stderr
        sys.argv = ["degla"]
        try:
            degla([str(word) for word in words])
        except SystemExit as end:
            return int(end.code or 0)
        finally:
            sys.argv, sys.stdout, sys.stderr = before
        return 0

    yield run
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="session")
def _mlflow_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, which take two seconds to make."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def mlflow_uri(_mlflow_tables: Path, tmp_path: Path) -> str:
    """URI of an empty MLflow store in the test's own folder."""
    shutil.copy(_mlflow_tables, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """URL of a server on loopback that speaks S3's protocol; every client of this process is led to it."""
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        yield settings["AWS_ENDPOINT_URL"]
    server.stop()


@pytest.fixture
def s3_bucket(s3_server: str) -> str:
    """URI of a new bucket on that server."""
    import boto3

    name = f"degla-{uuid.uuid4().hex[:12]}"
    boto3.client("s3", endpoint_url=s3_server).create_bucket(Bucket=name)
    return f"s3://{name}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip each test whose hardware or rights are missing, and give the reason."""
    for marker, reason in (("gpu", _why_no_gpu), ("network_namespace", _why_no_network_namespace)):
        marked = [item for item in items if item.get_closest_marker(marker)]
        why = reason() if marked else None
        for item in marked if why else ():
            item.add_marker(pytest.mark.skip(reason=why or ""))


def _why_no_gpu() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "no CUDA device"


def _why_no_network_namespace() -> str | None:
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not shutil.which("ip"):
        return "network namespaces need the `ip` command (iproute2)"
    done = subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True, text=True)
    return f"network namespaces are not permitted ({done.stderr.strip()})" if done.returncode else None
