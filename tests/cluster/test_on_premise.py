"""docs/clusters/on-premise.md as it is printed: `ray up` over SSH, every job on its hosts, and the end.

The hosts are namespaces of this machine with OpenSSH and rsync. $STORAGE is a folder that all of them see,
as a shared disk would be. Only the installation is left out: each host's ~/env is this test's environment.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hosts import Host, network, sshd_program, start_sshd

from degla_ray.stage import is_complete
from tests.training_inputs import read_trace, write_inputs

pytestmark = [
    pytest.mark.network_namespace,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        sshd_program() is None or shutil.which("rsync") is None,
        reason="no OpenSSH server or no rsync (apt-get install openssh-server rsync)",
    ),
]

SMALL = {
    "prepare": "--num_shards 2 --scenes.num_images 96 --scenes.num_validation_images 8 --scenes.test_items 8",
    "negatives": "--num_shards 2",
    "train": "--global_batch_size 16",
    "evaluate": "--bootstrap_samples 20",
    "tune": "--num_trials 2 --train.global_batch_size 16 --train.max_steps 6",
}


@dataclass(frozen=True)
class Cluster:
    """A running cluster.

    Attributes:
        repo: root of the repository.
        laptop: the host that commands are typed on.
        nodes: the head, then the workers.
        file: the cluster's file, in place of deploy/on-premise.yaml.
        storage: $STORAGE.
        exports: the command that tells a shell of the laptop where the cluster is.
        submissions: the page's commands that submit a job, by stage.
        end: the page's commands that end the cluster.
    """

    repo: Path
    laptop: Host
    nodes: list[Host]
    file: Path
    storage: Path
    exports: str
    submissions: dict[str, str]
    end: list[str]

    def bash(self, command: str, timeout: float = 240) -> str:
        """Run a command as it is typed on the laptop, in the repository."""
        line = self.on_these_hosts(f"{self.exports}; {command}")
        return self.laptop.run("bash", "-ec", line, cwd=self.repo, timeout=timeout)

    def submit(self, stage: str) -> None:
        """Run the page's command that submits a stage, with small data."""
        assert "succeeded" in self.bash(f"{self.submissions[stage]} {SMALL[stage]}")

    def on_these_hosts(self, command: str) -> str:
        """Return a command of the page for this cluster's file."""
        return command.replace("deploy/on-premise.yaml", str(self.file))


def _addressed(text: str) -> str:
    """Return a text of the documentation with these hosts' addresses and user, and one worker more."""
    text = text.replace("10.0.0.3]", "10.0.0.3, 10.0.0.4]").replace("10.0.0.3;", "10.0.0.3 10.0.0.4;")
    return text.replace("10.0.0.", "10.77.0.").replace("USER", "root")


def _blocks(page: Path) -> list[list[str]]:
    """Return the lines of each of the page's blocks of commands; `ray up` and `ray down` ask nothing."""
    text = re.sub(r"\bray (up|down)\b", r"ray \1 --yes", _addressed(page.read_text()))
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    return [[line.partition("# ")[0].strip() for line in block.splitlines()] for block in blocks]


def _write_file(repo: Path, folder: Path, laptop: Host) -> Path:
    """Write deploy/on-premise.yaml for these hosts, each with four logical CPUs."""
    text = _addressed((repo / "deploy" / "on-premise.yaml").read_text())
    changes = {
        "/mnt/shared/degla-ray": f"{folder}/shared",
        "HOST:5000": f"{laptop.ip}:5000",
        "--address=$RAY_HEAD_IP:6379": "--address=$RAY_HEAD_IP:6379 --num-cpus=4",
    }
    for found, given in changes.items():
        assert text.count(found) == 1, found
        text = text.replace(found, given)
    (folder / "on-premise.yaml").write_text(text)
    return folder / "on-premise.yaml"


@pytest.fixture(scope="module")
def cluster(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster, brought up by the page's commands."""
    folder = tmp_path_factory.mktemp("hosts")
    _, start, submit, end = _blocks(repo / "docs" / "clusters" / "on-premise.md")
    token, up, dashboard, exports = start
    submissions = {re.findall(r"jobs/(\w+)\.py", line)[0]: line for line in submit}
    with network(folder, ["head", "one", "two", "three", "laptop"]) as hosts:
        *nodes, laptop = hosts
        (laptop.home / ".ssh").mkdir()
        (laptop.home / ".ssh" / "config").write_text("StrictHostKeyChecking accept-new\n")
        start_sshd(nodes, laptop.home / ".ssh" / "id_ed25519")
        file = _write_file(repo, folder, laptop)
        made = Cluster(repo, laptop, nodes, file, folder / "shared", exports, submissions, end)
        store = f"sqlite:///{folder}/mlflow.db"
        server = ["mlflow", "server", "--host", laptop.ip, "--port", "5000", "--backend-store-uri", store]
        server += ["--workers", "1", "--artifacts-destination", f"{folder}/artifacts"]
        laptop.start(*server, log=folder / "mlflow.log", MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
        made.bash(token)
        made.bash(up)
        laptop.start("bash", "-c", made.on_these_hosts(dashboard), log=folder / "dashboard.log")
        for address in (f"{laptop.ip}/5000", "127.0.0.1/8265"):
            made.bash(f"until (echo > /dev/tcp/{address}) 2> /dev/null; do sleep 0.5; done", timeout=60)
        yield made


@pytest.fixture(scope="module")
def trained(cluster: Cluster) -> Path:
    """$STORAGE once the page's first three jobs have run."""
    for stage in ("prepare", "negatives", "train"):
        cluster.submit(stage)
    return cluster.storage


def test_on_premise_prepare_negatives_and_train_run_as_printed(trained: Path) -> None:
    assert is_complete(str(trained / "scenes"))
    assert is_complete(str(trained / "scenes-negatives"))
    [result] = trained.glob("train/first-*/result.json")
    assert json.loads(result.read_text())["steps"] == 200


def test_on_premise_evaluate_runs_as_printed(cluster: Cluster, trained: Path) -> None:
    cluster.submit("evaluate")
    assert is_complete(str(trained / "evaluate" / "first"))


def test_on_premise_tune_runs_as_printed(cluster: Cluster, trained: Path) -> None:
    cluster.submit("tune")
    assert len([*trained.glob("tune/loss-weights-*/result.json")]) == 2
    [sweep] = trained.glob("tune/sweep-*/result.json")
    assert json.loads(sweep.read_text())["objectives"]


def test_on_premise_process_has_a_thread_for_each_cpu_that_it_reserves(cluster: Cluster) -> None:
    threads = "ray.remote(num_cpus=3)(lambda: os.environ['OMP_NUM_THREADS'])"
    code = f"import os, ray; ray.init(); print('threads', ray.get({threads}.remote()))"
    assert "threads 3" in cluster.bash(f'ray job submit -- python -c "{code}"')


def test_on_premise_runs_of_one_host_of_two_and_of_three_have_the_same_losses(cluster: Cluster) -> None:
    write_inputs(cluster.storage / "tiny")
    one = _train(cluster, workers_of_hosts=[2], cpus=1)
    two = _train(cluster, workers_of_hosts=[1, 1], cpus=3)
    three = _train(cluster, workers_of_hosts=[1, 1, 1], cpus=3)
    assert len(one) == 30
    assert two == pytest.approx(one, rel=0, abs=1e-5)
    assert three == pytest.approx(one, rel=0, abs=1e-5)


def test_on_premise_end_leaves_no_process_and_no_file_on_any_host(cluster: Cluster) -> None:
    cluster.bash("\n".join(cluster.end))
    others = ("sshd", "sleep", "bash -c while true")  # the last is the end of the tunnel, which is still open
    for host in cluster.nodes:
        left = [line for line in host.processes("") if not line.startswith(others)]
        assert not left, host.folder.name
        assert {path.name for path in host.home.rglob("[!.]*")} == {"env"}
        assert not list((host.folder / "ray").iterdir())
        assert not (host.home / ".ray" / "auth_token").exists()


def _train(cluster: Cluster, *, workers_of_hosts: list[int], cpus: int) -> list[float]:
    """Train 30 steps and return their losses.

    Args:
        cluster: whose hosts have four CPUs each.
        workers_of_hosts: workers that each host shall have.
        cpus: CPUs of a worker. Two workers of one CPU share a host, of three they do not.
    """
    name, before = f"on-{len(workers_of_hosts)}", _training_processes(cluster)
    inputs = {"data.prepared": "prepared", "data.negatives": "negatives", "model.name": "model.json"}
    options = [f"--{setting} '$STORAGE/tiny/{file}'" for setting, file in inputs.items()]
    options += [f"--name {name} --output '$STORAGE/alike' --tracking.enabled false"]
    options += [f"--num_workers {sum(workers_of_hosts)} --compute.cpus {cpus} --data.decode_tasks 1"]
    options += ["--global_batch_size 24 --max_steps 30 --optimizer.warmup_steps 5"]
    cluster.bash(f"ray job submit --working-dir . -- python jobs/train.py {' '.join(options)}")
    new = [now - then for now, then in zip(_training_processes(cluster), before, strict=True)]
    assert sorted(filter(None, new)) == workers_of_hosts
    [trace] = cluster.storage.glob(f"alike/{name}-*/trace.jsonl")
    return [row["loss"] for row in read_trace(trace)]


def _training_processes(cluster: Cluster) -> list[int]:
    """Return how many training workers each host has had, by the logs that Ray keeps of its processes."""
    logs = [host.folder.glob("ray/session_2*/logs/worker-*.out") for host in cluster.nodes]
    return [sum(":actor_name:RayTrainWorker" in file.read_text() for file in files) for files in logs]
