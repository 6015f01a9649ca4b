"""Two nodes of which one does not see a folder, in a mount namespace of its own: refused before any work."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_head import Head, running_head

from tests.training_inputs import write_inputs

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the second node does not see."""
    return tmp_path_factory.mktemp("disk")


@pytest.fixture(scope="module")
def two_nodes(hidden: Path) -> Iterator[Head]:
    """A head without CPUs, and a node with a disk of its own under the same path."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("mount namespaces are not permitted")
    mount = f'mount -t tmpfs none {hidden} && exec "$@"'
    with running_head(num_cpus=0) as head, head.node(4, "unshare", "--mount", "sh", "-c", mount, "sh"):
        yield head


def test_output_on_a_disk_of_one_node_is_refused_and_named(two_nodes: Head, repo: Path, hidden: Path) -> None:
    options = ["--source=scenes", f"--output={hidden}/scenes", "--num_shards=2"]
    done = two_nodes.submit(repo, "jobs/prepare.py", *options)
    assert done.returncode != 0
    assert f"error: output: found '{hidden}/scenes'; expected a folder that every node sees" in done.stdout
    assert not list(hidden.glob("scenes/receipts/*")), "a shard was written"
    assert not list(hidden.glob("scenes/.seen-*")), "a token was left"


@pytest.mark.slow  # test_output_on_a_disk_… holds the rule
@pytest.mark.parametrize("setting", ["model.name", "data.prepared", "output"])
def test_training_on_a_file_of_one_node_is_refused_and_named(
    two_nodes: Head, repo: Path, hidden: Path, tmp_path: Path, setting: str
) -> None:
    write_inputs(hidden)
    write_inputs(tmp_path)
    places = {"model.name": "model.json", "data.prepared": "prepared", "output": "runs"}
    paths = {name: tmp_path / place for name, place in places.items()}
    paths[setting] = hidden / places[setting]
    options = [f"--{name}={path}" for name, path in paths.items()]
    options += ["--name=x", "--objective.name=clip", "--tracking.enabled=false", "--max_steps=2"]
    done = two_nodes.submit(repo, "jobs/train.py", *options, "--global_batch_size=4")
    assert done.returncode != 0
    assert f"error: {setting}: found {str(paths[setting])!r}; expected a" in done.stdout, done.stdout
    assert "does not see it" in done.stdout
    assert not list(paths["output"].glob("x-*/progress.json")), json.dumps(options)


@pytest.mark.slow  # test_output_on_a_disk_… holds the rule
def test_sweep_with_its_mlflow_store_on_one_disk_is_refused(
    two_nodes: Head, repo: Path, hidden: Path, tmp_path: Path
) -> None:
    write_inputs(tmp_path)
    train = {"name": "x", "data.prepared": tmp_path / "prepared", "data.negatives": tmp_path / "negatives"}
    train |= {"model.name": tmp_path / "model.json", "model.random_init": "true", "max_steps": 1}
    train |= {"output": tmp_path / "runs", "tracking.uri": f"sqlite:///{hidden}/mlflow.db"}
    options = [f"--train.{name}={value}" for name, value in train.items()]
    options += [f"--prepared={tmp_path}/prepared", "--split=train", "--num_trials=1"]
    done = two_nodes.submit(repo, "jobs/tune.py", *options, "--train.data.decode_tasks=1")
    assert done.returncode != 0
    told = f"error: train.tracking.uri: found '{hidden}'; expected a store that every node sees: a server"
    assert told in done.stdout, done.stdout
