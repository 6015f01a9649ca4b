"""Ray as every job starts it, and errors that its workers send to the driver."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import ray.data
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer

from degla_ray import ray_address, ray_setup
from degla_ray.cli import user_error
from degla_ray.config import RayConfig
from degla_ray.errors import DataError, FingerprintMismatch, SettingError
from degla_ray.training.rendezvous import torch_config

pytestmark = pytest.mark.usefixtures("ray_cluster")


@ray.remote
def _worker_environment() -> dict[str, str]:
    import torch

    return dict(os.environ) | {"torch_threads": str(torch.get_num_threads())}


@ray.remote
def _mismatch() -> None:
    raise FingerprintMismatch("folder", {"a.b": (1, 2)})


@ray.remote
def _mismatch_of_a_task() -> None:
    ray.get(_mismatch.remote())


def _bad_setting(batch: Any) -> Any:
    raise SettingError("a.b", 1, "2")


def _bad_data(arguments: dict[str, Any]) -> None:
    raise DataError("file", "x", "y")


def test_ray_setup_workers_keep_memory_and_have_a_thread_for_each_cpu() -> None:
    one, two = ray.get([_worker_environment.remote(), _worker_environment.options(num_cpus=2).remote()])
    for name, value in ray_setup.WORKER_ENV.items():
        assert one[name] == value
        assert name not in os.environ
    assert (one["torch_threads"], two["torch_threads"]) == ("1", "2")


def test_ray_setup_local_cluster_wants_a_token() -> None:
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert len(os.environ["RAY_AUTH_TOKEN"]) >= 32


def test_ray_setup_local_folder_is_closed_to_others() -> None:
    """Ray opens its own folder (0777), so the one around it must be closed."""
    folder = Path(ray._private.worker.global_worker.node.get_temp_dir_path())
    assert folder.parent.name.startswith("degla-")
    assert folder.parent.stat().st_mode & 0o777 == 0o700


def listening(process: psutil.Process) -> list[tuple[str, int, str]]:
    """Address, port and process of each TCP socket that a process and its children listen on, by /proc."""
    found = []
    for each in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):  # it ended in between
            sockets = each.net_connections("tcp")
            found += [(s.laddr.ip, s.laddr.port, each.name()) for s in sockets if s.status == "LISTEN"]
    return found


def _others_cannot_reach(arguments: dict[str, Any]) -> None:
    """Exchange a number with the other worker, and write what all processes of this Ray listen on then."""
    import torch
    import torch.distributed as dist

    assert dist.get_world_size() == 2
    dist.all_reduce(torch.ones(1))
    if ray.train.get_context().get_world_rank() == 0:
        driver = psutil.Process(arguments["driver"])
        Path(arguments["file"]).write_text(json.dumps(listening(driver)))
    dist.barrier()


def reachable_by_others(sockets: list[tuple[str, int, str]]) -> list[tuple[str, int, str]]:
    addresses = [ipaddress.ip_address(address) for address, _, _ in sockets]
    plain = [getattr(address, "ipv4_mapped", None) or address for address in addresses]
    return [socket for socket, address in zip(sockets, plain, strict=True) if not address.is_loopback]


def test_ray_setup_local_cluster_listens_on_loopback_only() -> None:
    ray.get(_worker_environment.remote())  # a worker has ports of its own
    sockets = listening(psutil.Process())
    assert {"gcs_server", "raylet"} <= {name for _, _, name in sockets}
    assert reachable_by_others(sockets) == []


@pytest.mark.slow
def test_ray_setup_workers_of_a_training_listen_on_loopback_only(tmp_path: Path) -> None:
    """While their process group exists."""
    trainer = TorchTrainer(
        _others_cannot_reach,
        train_loop_config={"driver": os.getpid(), "file": str(tmp_path / "sockets.json")},
        torch_config=torch_config(),
        scaling_config=ScalingConfig(num_workers=2),
        run_config=ray.train.RunConfig(name="listens", storage_path=str(tmp_path)),
    )
    trainer.fit()
    sockets = json.loads((tmp_path / "sockets.json").read_text())
    assert {"gcs_server", "raylet"} <= {name for _, _, name in sockets}
    assert reachable_by_others(sockets) == []


def test_ray_setup_start_again_keeps_the_cluster() -> None:
    before = ray.get_runtime_context().gcs_address
    ray_setup.start(RayConfig())
    assert ray.get_runtime_context().gcs_address == before
    assert ray.cluster_resources()["CPU"] == 8


def test_ray_setup_address_for_job_submission_is_refused() -> None:
    with pytest.raises(SettingError, match="http:// is for"):
        ray_setup.start(RayConfig(address="http://127.0.0.1:8265"))


@pytest.mark.slow
def test_ray_setup_that_cannot_start_ends_in_one_line_and_leaves_no_folder(repo: Path) -> None:
    """Too little address space for Ray's processes: Ray gives up after 30 s."""
    code = (
        "import resource, sys\nfrom degla_ray import ray_setup\nfrom degla_ray.config import RayConfig\n"
        "from degla_ray.errors import DeglaError\n"
        "resource.setrlimit(resource.RLIMIT_AS, (3_000_000_000, 3_000_000_000))\n"
        "try:\n    ray_setup.start(RayConfig(address='local'))\n"
        "except DeglaError as error:\n    print(ray_setup._temp_dir, error, sep='\\n')\n"
    )
    environment = os.environ | {"PYTHONPATH": str(repo)}
    started = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    folder, said = started.stdout.splitlines()
    assert said.startswith("Ray did not start on this machine: ")
    assert not Path(folder).exists()


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """host:port of another Ray on this machine, started by `ray start`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = Path("/tmp") / f"degla-head-{port}"  # short: a socket's path may not exceed 107 bytes
    options = f"--head --port {port} --temp-dir {folder} --num-cpus 2 --include-dashboard false --block"
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    environment.pop("RAY_ADDRESS", None)
    program = Path(sys.executable).with_name("ray")
    started = subprocess.Popen(
        [str(program), "start", *options.split()],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 120
    while time.monotonic() < end and not _listens(port):
        time.sleep(0.5)
    yield f"127.0.0.1:{port}"
    started.terminate()
    started.wait(60)
    shutil.rmtree(folder, ignore_errors=True)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _refused(address: str) -> str:
    """The one line with which an address is refused."""
    with pytest.raises(SettingError) as caught:
        ray_address.usable(address, "ray.address")
    assert caught.value.setting == "ray.address"
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_ray_address_of_a_running_ray_is_joined_by_a_job_that_still_ends_in_its_own_way(
    head: str, repo: Path
) -> None:
    """A job saves before it ends on SIGTERM, for which Ray has a handler too."""
    code = (
        "import os, signal, sys, ray\n"
        "from degla_ray import ray_setup\nfrom degla_ray.config import RayConfig\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "ray_setup.start(RayConfig(address=sys.argv[1]))\n"
        "print(ray.get_runtime_context().gcs_address, ray.cluster_resources()['CPU'])\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(repo)}
    run = [sys.executable, "-c", code]
    joined = subprocess.run([*run, head], env=environment, capture_output=True, text=True, check=False)
    assert joined.stdout.split()[0].rpartition(":")[2] == head.rpartition(":")[2], joined.stderr
    assert joined.stdout.split()[1] == "2.0"
    assert joined.returncode == 143


def test_ray_address_where_nothing_answers_is_refused_at_once() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, but nobody listens
        started = time.monotonic()
        said = _refused(f"127.0.0.1:{closed.getsockname()[1]}")
        assert "nothing answers there" in said
        assert "leave it out to start Ray on this machine" in said
        assert time.monotonic() - started < 5
    assert "nothing answers there" in _refused("no-such-host.invalid:6379")


@pytest.mark.parametrize("address", ["nonsense", "host:", ":6379", "ray://127.0.0.1:10001"])
def test_ray_address_of_a_wrong_form_is_refused(address: str) -> None:
    assert "host:port of a head" in _refused(address)


def test_ray_address_of_another_program_is_refused_within_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_address, "PROBE_S", 5.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert "a Ray that answers within 5 s" in _refused(f"127.0.0.1:{silent.getsockname()[1]}")


def test_ray_address_of_a_ray_that_hangs_is_refused_within_the_deadline(
    head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_address, "PROBE_S", 5.0)
    asked = ["pgrep", "-f", f"gcs_server.*degla-head-{head.rpartition(':')[2]}"]
    server = int(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()[0])
    os.kill(server, signal.SIGSTOP)
    try:
        assert "a Ray that answers within 5 s" in _refused(head)
    finally:
        os.kill(server, signal.SIGCONT)


def test_ray_address_of_a_ray_with_a_token_names_the_token() -> None:
    own = ray.get_runtime_context().gcs_address
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", "another" * 5)
        assert "RAY_AUTH_TOKEN as it was started with" in _refused(own)
    assert ray_address.usable(own, "ray.address") == own


def test_ray_address_auto_with_two_rays_on_the_machine_names_both(head: str) -> None:
    own = ray.get_runtime_context().gcs_address
    said = _refused("auto")
    for address in (own, head):
        assert address.rpartition(":")[2] in said


def test_ray_address_of_a_ray_of_another_version_names_both_versions(head: str) -> None:
    from ray._common.usage import usage_constants
    from ray._private import ray_constants

    write = (
        "import json, sys\nfrom ray._raylet import GcsClient\n"
        "GcsClient(address=sys.argv[1]).internal_kv_put(sys.argv[2].encode(), sys.argv[3].encode(), True, "
        "namespace=sys.argv[4].encode())\n"
    )
    key, space = usage_constants.CLUSTER_METADATA_KEY, ray_constants.KV_NAMESPACE_CLUSTER
    content = json.dumps({"ray_version": "2.9.0", "python_version": "3.8.1"})
    subprocess.run([sys.executable, "-c", write, head, key.decode(), content, space.decode()], check=True)
    assert f"it runs Ray 2.9.0 on Python 3.8.1, this is Ray {ray.__version__} on Python" in _refused(head)


def test_user_error_from_a_task_and_a_task_of_a_task_is_found() -> None:
    for task in (_mismatch, _mismatch_of_a_task):
        with pytest.raises(ray.exceptions.RayTaskError) as caught:
            ray.get(task.remote())
        found = user_error(caught.value)
        assert type(found) is FingerprintMismatch
        assert found.fields == {"a.b": (1, 2)}
        assert str(found).startswith("folder: found the output of another configuration")


def test_user_error_from_ray_data_is_found() -> None:
    with pytest.raises(Exception) as caught:
        ray.data.range(3).map_batches(_bad_setting).materialize()
    found = user_error(caught.value)
    assert type(found) is SettingError
    assert str(found).splitlines()[0] == "a.b: found 1; expected 2"


@pytest.mark.slow  # test_user_error_of_a_worker_group_is_found holds the rule
def test_user_error_from_ray_train_is_found(tmp_path: Any) -> None:
    trainer = TorchTrainer(
        _bad_data,
        train_loop_config={},
        scaling_config=ScalingConfig(num_workers=1),
        run_config=ray.train.RunConfig(name="fails", storage_path=str(tmp_path)),
    )
    with pytest.raises(Exception) as caught:
        trainer.fit()
    found = user_error(caught.value)
    assert type(found) is DataError
    assert found.where == "file"
