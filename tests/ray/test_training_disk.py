"""Training onto a disk that fills up or becomes read-only: the path is named, and the rerun continues."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from degla_ray.errors import DeglaError
from degla_ray.storage import Storage
from degla_ray.training import checkpoint_folders
from degla_ray.training.trainer import train
from tests.training_inputs import read_trace, train_config, write_inputs

# test_checkpoint_on_a_full_disk_… holds the rule
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
STEPS = 120


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of 256 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mount("-t", "tmpfs", "-o", "size=256m", "none", str(folder))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a disk of the test's own cannot be mounted here: {error}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("disk"))


def fill(disk: Path) -> None:
    with contextlib.suppress(OSError), (disk / "other").open("wb", buffering=0) as file:
        while file.write(bytes(2**12)):
            pass


def empty(disk: Path) -> None:
    (disk / "other").unlink()


def read_only(disk: Path) -> None:
    """Remount it; files that are being written at this moment prevent that."""
    while subprocess.run(["mount", "-o", "remount,ro", str(disk)], capture_output=True).returncode:
        time.sleep(0.001)


def writable(disk: Path) -> None:
    mount("-o", "remount,rw", str(disk))


@pytest.mark.parametrize(
    ("spoil", "mend", "said", "workers"),
    [(fill, empty, "no space left on device", 1), (read_only, writable, "read-only file system", 2)],
)
def test_train_disk_that_refuses_a_checkpoint_is_named_and_the_rerun_continues(
    spoil: Callable[[Path], None],
    mend: Callable[[Path], None],
    said: str,
    workers: int,
    folder: Path,
    disk: Path,
    ray_cluster: None,
) -> None:
    config = train_config(folder, output=str(disk / "runs"), max_steps=STEPS, num_workers=workers)

    def wait_and_spoil() -> None:
        while not list(disk.glob("runs/*/checkpoint_000000020/complete.json")):
            time.sleep(0.005)
        spoil(disk)

    spoiler = threading.Thread(target=wait_and_spoil, daemon=True)
    spoiler.start()
    with pytest.raises(DeglaError, match=rf"/disk/runs/tiny-\w+/.*found {said}; expected") as raised:
        train(config)
    print(raised.value)
    spoiler.join()
    [run] = (disk / "runs").iterdir()
    saved = checkpoint_folders.latest(Storage(str(run)))
    assert saved >= 20
    mend(disk)
    for lease in run.glob("lease-*"):  # of this process, which on a read-only disk it could not delete
        lease.unlink()
    result = train(config)
    whole = train(train_config(folder, name="whole", max_steps=STEPS, num_workers=workers))
    assert read_trace(result.trace_path) == read_trace(whole.trace_path)
