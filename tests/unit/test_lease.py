"""One owner a folder: refused, given back, taken over; drivers that start at once; a local disk and S3."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from degla_ray import lease
from degla_ray.errors import SettingError
from degla_ray.lease import Lease, LeaseHeld, LeaseLost, owned
from degla_ray.stage import StageFolder
from degla_ray.storage import Storage

REPO = Path(__file__).resolve().parents[2]
HOLD = """
    import sys, time
    from degla_ray.lease import Lease
    from degla_ray.storage import Storage
    with Lease(Storage(sys.argv[1])):
        print("owns", flush=True)
        sys.stdin.read()
"""


@pytest.fixture(params=["disk", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "disk":
        return Storage(str(tmp_path / "out"))
    return Storage(f"{request.getfixturevalue('s3_bucket')}/out")


def driver(folder: Storage, code: str = HOLD) -> subprocess.Popen[str]:
    """Another process that takes the lease; it runs until its stdin is closed."""
    command = [sys.executable, "-c", textwrap.dedent(code), folder.uri]
    env = dict(os.environ, PYTHONPATH=str(REPO))
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def claims(folder: Storage) -> list[str]:
    return [name for name in folder.names() if name.startswith("lease-")]


def wait_for(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def plant(folder: Storage, **changes: object) -> None:
    """The claim of a driver on another host."""
    owner = {"host": "elsewhere", "pid": 7, "since": "2026-01-01T00:00:00+00:00", "machine": "other"}
    folder.write_json({**owner, "started": "1", "owns": True, **changes}, "lease-0.json")


def test_lease_of_a_living_driver_is_refused_by_name_and_free_after_it(folder: Storage) -> None:
    with driver(folder) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "owns\n"
        with pytest.raises(LeaseHeld, match=rf"pid {process.pid}, since 20\d\d-") as caught, Lease(folder):
            pass
        assert caught.value.owner.host == os.uname().nodename
        assert len(claims(folder)) == 1
        process.communicate()
    with Lease(folder):
        assert len(claims(folder)) == 1
    assert claims(folder) == []


def test_lease_of_a_killed_driver_is_taken_over_at_once(folder: Storage) -> None:
    process = driver(folder)
    assert process.stdout is not None
    assert process.stdout.readline() == "owns\n"
    process.kill()
    process.wait()
    started = time.monotonic()
    with Lease(folder):
        assert time.monotonic() - started < 5
        assert len(claims(folder)) == 1
    process.communicate()


def test_lease_of_a_driver_of_this_machine_that_sleeps_is_not_dead(tmp_path: Path) -> None:
    folder = Storage(str(tmp_path))
    plant(folder, pid=os.getpid(), machine=lease._machine(), started=lease._started(os.getpid()))
    os.utime(tmp_path / "lease-0.json", (0, 0))
    with pytest.raises(LeaseHeld, match=f"pid {os.getpid()}"), Lease(folder):
        pass


def test_lease_of_a_reused_pid_is_dead(tmp_path: Path) -> None:
    folder = Storage(str(tmp_path))
    plant(folder, pid=os.getpid(), machine=lease._machine(), started="1")
    with Lease(folder):
        assert len(claims(folder)) == 1


@pytest.mark.parametrize(("age", "free"), [(lease.DEAD_AFTER_S - 60, False), (lease.DEAD_AFTER_S + 1, True)])
def test_lease_of_another_host_is_dead_after_its_heartbeat_is_old(
    age: float, free: bool, tmp_path: Path
) -> None:
    folder = Storage(str(tmp_path))
    plant(folder)
    stamp = time.time() - age
    os.utime(tmp_path / "lease-0.json", (stamp, stamp))
    if free:
        with Lease(folder):
            assert not (tmp_path / "lease-0.json").exists()
    else:
        with pytest.raises(LeaseHeld, match="host elsewhere, pid 7"), Lease(folder):
            pass


def test_lease_of_drivers_that_start_at_once_has_one_owner(folder: Storage) -> None:
    """Each that owns counts the owners inside; all ask in the same moment."""
    drivers = 8 if folder.uri.startswith("/") else 2  # the S3 server of the tests is slow
    inside: list[int] = []
    most, refused, owned_by = [0], [0], [0]
    start = threading.Barrier(drivers)
    lock = threading.Lock()

    def ask(number: int) -> None:
        start.wait()
        try:
            with Lease(folder):
                with lock:
                    inside.append(number)
                    most[0], owned_by[0] = max(most[0], len(inside)), owned_by[0] + 1
                time.sleep(2.0)
                with lock:
                    inside.remove(number)
        except LeaseHeld:
            with lock:
                refused[0] += 1

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(drivers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most[0], owned_by[0], refused[0]) == (1, 1, drivers - 1)
    assert claims(folder) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_lease_is_given_back_on_every_exit(error: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(error), Lease(Storage(str(tmp_path / "out"))):
        raise error
    assert not (tmp_path / "out").exists()  # nothing was written to it


def test_lease_is_given_back_on_sigterm_through_a_job(tmp_path: Path) -> None:
    code = """
        import sys, time
        from dataclasses import dataclass
        from degla_ray import cli
        from degla_ray.lease import Lease
        from degla_ray.storage import Storage
        @dataclass(frozen=True, kw_only=True)
        class Config:
            output: str
            "x"
        def job(config):
            with Lease(Storage(config.output)):
                print("owns", flush=True)
                time.sleep(60)
        cli.run(Config, job, "x", ["--output", sys.argv[1]])
    """
    folder = Storage(str(tmp_path / "out"))
    process = driver(folder, code)
    assert process.stdout is not None
    assert process.stdout.readline() == "owns\n"
    assert claims(folder)
    process.terminate()
    process.communicate()
    assert process.returncode == 128 + 15
    assert claims(folder) == []


def test_lease_heartbeat_touches_and_does_not_keep_the_process(
    folder: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.05)
    with Lease(folder) as held:
        before = lease._stamps(folder)
        wait_for(lambda: lease._stamps(folder) != before)
        assert held._heart.daemon
    assert not held._heart.is_alive()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Take SIGINT as a process of a terminal does; tests that run in the background would ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_lease_that_was_taken_over_stops_its_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.05)
    folder = Storage(str(tmp_path))

    def work() -> None:
        with Lease(folder):
            folder.delete_file(claims(folder)[0])
            plant(folder)
            time.sleep(30)  # interrupted

    with pytest.raises(LeaseLost, match="taken over"):
        work()
    assert "the lease is lost" in capsys.readouterr().err
    assert claims(folder) == ["lease-0.json"]  # the new owner's stays


def test_lease_heartbeat_survives_a_store_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A claim that cannot be read is an error of the store, told of; later beats go on."""
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.05)
    folder = Storage(str(tmp_path))
    with Lease(folder) as held:
        broken = tmp_path / "lease-broken.json"
        broken.write_text("{")
        told = [""]

        def failed() -> bool:
            told[0] += capsys.readouterr().err
            return "heartbeat failed" in told[0]

        wait_for(failed)
        broken.unlink()
        before = lease._stamps(folder)
        wait_for(lambda: lease._stamps(folder) != before)
        assert held._heart.is_alive()


def test_lease_of_a_folder_that_cannot_be_written_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(SettingError, match=r"output: .*a folder that can be written"),
        Lease(Storage(str(tmp_path / "file" / "out"))),
    ):
        pass


def test_owned_finished_folder_has_no_lease_and_an_unfinished_one_has(tmp_path: Path) -> None:
    folder = StageFolder(str(tmp_path), "prepare", {}, 1)
    with owned(str(tmp_path)):
        assert len(claims(folder.storage)) == 1
        folder.write_receipt(0, {})
        folder.finish()
        assert len(claims(folder.storage)) == 1  # finishing tidies up, but not this
    with owned(str(tmp_path)):
        assert claims(folder.storage) == []
    assert json.loads((tmp_path / "manifest.json").read_text())["complete"]
