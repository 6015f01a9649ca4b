"""What a cluster is made from: the lock of its environment, its image, files for AWS and Kubernetes."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPO = Path(__file__).parents[2]
EXTRAS = ("aws", "openai", "zeroshot")

# Fields of KubeRay 1.6's v1 API that deploy/kuberay.yaml may use (Ray's documentation, "KubeRay CRD API
# reference"). The schema itself is a megabyte for each kind, most of it Kubernetes' own pods.
JOB = {
    "entrypoint",
    "shutdownAfterJobFinishes",
    "ttlSecondsAfterFinished",
    "activeDeadlineSeconds",
    "backoffLimit",
    "rayClusterSpec",
}
CLUSTER = {
    "rayVersion",
    "enableInTreeAutoscaling",
    "autoscalerOptions",
    "authOptions",
    "headGroupSpec",
    "workerGroupSpecs",
}
HEAD = {"rayStartParams", "template"}
WORKERS = HEAD | {"groupName", "replicas", "minReplicas", "maxReplicas"}


def _lock(name: str) -> dict[str, str]:
    lines = (REPO / name).read_text().splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(package): version for package, version in pairs}


def _requirements() -> list[Requirement]:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    extras = [each for name in EXTRAS for each in project["optional-dependencies"][name]]
    return [Requirement(each) for each in (*project["dependencies"], *extras)]


@pytest.mark.parametrize("requirement", _requirements(), ids=lambda each: each.name)
def test_deploy_lock_satisfies_the_projects_requirements(requirement: Requirement) -> None:
    assert requirement.specifier.contains(_lock("constraints-gpu.txt")[canonicalize_name(requirement.name)])


def test_deploy_ray_and_python_are_the_same_on_laptop_image_and_kubernetes() -> None:
    ray = _lock("constraints.txt")["ray"]
    assert _lock("constraints-gpu.txt")["ray"] == ray
    assert str(_kuberay()[1]["spec"]["rayClusterSpec"]["rayVersion"]) == ray
    pythons = [
        re.findall(pattern, (REPO / name).read_text())
        for name, pattern in (
            ("constraints.txt", r"Python (3\.\d+)"),
            ("constraints-gpu.txt", r"Python (3\.\d+)"),
            ("Dockerfile", r"FROM python:(3\.\d+)-"),
            ("docs/clusters/aws.md", r"--python (3\.\d+)"),
            ("docs/clusters/on-premise.md", r"--python (3\.\d+)"),
        )
    ]
    assert pythons == [["3.11"]] * len(pythons)


def test_deploy_image_gets_what_it_copies_and_nothing_large() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", (REPO / "Dockerfile").read_text(), re.MULTILINE)
    names = {name for line in copied for name in line.split()}
    allowed = re.findall(r"^!(.+)$", (REPO / ".dockerignore").read_text(), re.MULTILINE)
    assert names == set(allowed)
    assert all((REPO / name).exists() for name in names)


def test_deploy_aws_account_is_a_valid_template() -> None:
    lint = [str(Path(sys.executable).with_name("cfn-lint")), "deploy/aws-account.yaml"]
    done = subprocess.run(lint, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_deploy_aws_account_has_the_roles_that_cluster_yaml_names() -> None:
    template = (REPO / "deploy" / "aws-account.yaml").read_text()
    made = set(re.findall(r"InstanceProfileName: ([\w-]+)", template))
    types = yaml.safe_load((REPO / "cluster.yaml").read_text())["available_node_types"]
    assert {node["node_config"]["IamInstanceProfile"]["Name"] for node in types.values()} == made


def _kuberay() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((REPO / "deploy" / "kuberay.yaml").read_text()))


def test_deploy_kuberay_uses_fields_of_its_api_and_one_image() -> None:
    values, job = _kuberay()
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    head, workers = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert set(job["spec"]) <= JOB
    assert set(cluster) <= CLUSTER
    assert set(head) <= HEAD
    assert all(set(group) <= WORKERS for group in workers)
    assert all(isinstance(value, str) for value in head["rayStartParams"].values())
    containers = [group["template"]["spec"]["containers"][0] for group in (head, *workers)]
    assert len({each["image"] for each in containers}) == 1
    for each in containers:
        assert each["envFrom"] == [{"configMapRef": {"name": values["metadata"]["name"]}}]
    for variable in re.findall(r"\$(\w+)", job["spec"]["entrypoint"]):
        assert variable in values["data"]


@pytest.mark.parametrize("script", ["deploy/slurm.sh"])
def test_deploy_shell_script_is_sound(script: str) -> None:
    subprocess.run(["bash", "-n", script], cwd=REPO, check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "--exclude=SC1091", script], cwd=REPO, check=True)


class _Metadata(BaseHTTPRequestHandler):
    """A metadata server as AWS and Google document theirs, which gives notice if `taken`."""

    taken = False

    def do_PUT(self) -> None:
        self._answer("a token" if self.path == "/latest/api/token" else None)

    def do_GET(self) -> None:
        if self.path == "/latest/meta-data/spot/instance-action":
            known = self.headers["X-aws-ec2-metadata-token"] == "a token"
            self._answer('{"action": "terminate"}' if known and self.taken else None)
        elif self.path == "/computeMetadata/v1/instance/preempted" and self.headers["Metadata-Flavor"]:
            self._answer("TRUE" if self.taken else "FALSE")
        else:
            self._answer(None)

    def _answer(self, body: str | None) -> None:
        self.send_response(404 if body is None else 200)
        self.end_headers()
        self.wfile.write((body or "not found").encode())

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def test_deploy_spot_notice_is_read_from_either_cloud() -> None:
    script = runpy.run_path(str(REPO / "deploy" / "spot_notice.py"))
    clouds = {"on_aws": "latest", "on_google": "computeMetadata/v1"}
    with ThreadingHTTPServer(("127.0.0.1", 0), _Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        for taken in (False, True):
            _Metadata.taken = taken
            assert [script[name](f"{url}/{path}") for name, path in clouds.items()] == [taken] * 2
        server.shutdown()
    assert not any(script[name](f"{url}/{path}") for name, path in clouds.items()), "a server that is gone"
