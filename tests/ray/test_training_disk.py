"""Training onto a disk that fills up: the file is named, and the rerun continues."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Iterator
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


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of 256 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        command = ["mount", "-t", "tmpfs", "-o", "size=256m", "none", str(folder)]
        subprocess.run(command, check=True, capture_output=True)
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


def test_train_disk_that_is_full_is_named_and_the_rerun_continues(
    folder: Path, disk: Path, ray_cluster: None
) -> None:
    config = train_config(folder, output=str(disk / "runs"), max_steps=STEPS)

    def wait_and_fill() -> None:
        while not list(disk.glob("runs/*/checkpoint_000000020/complete.json")):
            time.sleep(0.005)
        fill(disk)

    filler = threading.Thread(target=wait_and_fill, daemon=True)
    filler.start()
    with pytest.raises(DeglaError, match=r"/disk/runs/tiny-\w+/.*found no space left on device; expected"):
        train(config)
    filler.join()
    [run] = (disk / "runs").iterdir()
    assert checkpoint_folders.latest(Storage(str(run))) >= 20
    (disk / "other").unlink()
    result = train(config)
    whole = train(train_config(folder, name="whole", max_steps=STEPS))
    assert read_trace(result.trace_path) == read_trace(whole.trace_path)
