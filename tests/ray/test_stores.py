"""Jobs write everything to the named store, and the secrets that they are given nowhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from benchmarks.slow_store import slow_store
from degla_ray.model.build import load
from degla_ray.model.pyfunc import save_pyfunc
from degla_ray.storage import Storage
from degla_ray.training.trainer import read_result
from tests.evaluation_suite import write_suite
from tests.openai_server import Reply, Server, completion, openai_server
from tests.training_inputs import write_inputs

pytestmark = pytest.mark.timeout(900)
SECRET, KEY, FIELD = "hunter2secret", "sk-hunter3secret", "hunter4secret"
"""In a store's URI, in the variable of a server's key, and in a field of its requests."""
SPACE = "from ray import tune\n\ndef space():\n    return {'optimizer.lr': tune.choice([1e-3])}, {}\n"


def settings(repo: Path, output: str, store: Path) -> dict[str, object]:
    """The demo's recipe, cut down: one fine-tune of three steps."""
    recipe = yaml.safe_load((repo / "jobs" / "configs" / "demo.yaml").read_text())
    small = {"num_images": 40, "num_validation_images": 8, "test_items": 4}
    tune = recipe["fine_tune"]["degla"]
    optimizer = tune["optimizer"] | {"warmup_steps": 2}
    return {
        "output": output,
        "prepare": {"source": "scenes", "scenes": recipe["prepare"]["scenes"] | small, "num_shards": 2},
        "negatives": recipe["negatives"] | {"num_shards": 2},
        "base_model": recipe["base_model"],
        "fine_tune": {"degla": tune | {"max_steps": 3, "global_batch_size": 16, "optimizer": optimizer}},
        "evaluate": {"bootstrap_samples": 50},
        "tracking": {"uri": f"sqlite:///{store}/mlflow.db"},
    }


def started(repo: Path, folder: Path, job: str, *words: str) -> subprocess.Popen[str]:
    """Start a job as a process with a Ray of its own, whose workers inherit the address of the store."""
    command = [sys.executable, str(repo / "jobs" / f"{job}.py"), *words]
    environment = os.environ | {"PYTHONPATH": str(repo), "OPENAI_API_KEY": KEY, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run(repo: Path, folder: Path, job: str, *words: str) -> str:
    """Run a job to its end, and return what it printed."""
    process = started(repo, folder, job, *words)
    printed = process.communicate()[0]
    print(printed, flush=True)
    assert process.returncode == 0
    return printed


def repeating(request: dict[str, Any], server: Server) -> Reply:
    """A server that repeats what it was sent, in an answer or an error."""
    caption = request["messages"][-1]["content"]
    sent = f"key {request['key']}, api_key: {request['api_key']}, s3://KEY:{SECRET}@bucket/x"
    if len(server.requests) % 2:
        return Reply(body={"error": {"message": sent}}, status=400)
    return completion(f"{caption} with {request['key']}")


@pytest.mark.slow  # test_masked_… hold the rules
def test_stores_jobs_that_a_chain_lacks_leave_no_secret_in_any_file_or_line(
    repo: Path, s3_bucket: str, tmp_path: Path
) -> None:
    """A language model behind a server, a sweep, an export, and an evaluation and comparison on their own."""
    secret = f"{s3_bucket.replace('s3://', f's3://KEY:{SECRET}@')}/runs"
    bucket, folder = Storage(f"{s3_bucket}/runs"), write_inputs(tmp_path / "inputs", images=8)
    for stage in ("prepared", "negatives"):
        bucket.upload(folder / stage, stage)
    write_suite(folder / "suite")
    tracking = ["--tracking.uri", f"sqlite:///{tmp_path}/mlflow.db"]
    with openai_server(repeating) as server:
        asked = ["--engine", "openai", "--openai.base_url", server.url, "--openai.model", "small"]
        asked += ["--openai.extra_body", f"{{api_key: {FIELD}}}", "--openai.max_retries", "0"]
        asked += ["--generation.attempts", "2", "--generation.fill_with_rules", "true", "--num_shards", "2"]
        asked += ["--prepared", f"{secret}/prepared", "--output", f"{secret}/openai", *tracking]
        printed = run(repo, tmp_path, "negatives", *asked)
        assert {(request["key"], request["api_key"]) for request in server.requests} == {(KEY, FIELD)}

    model = {"name": f"{folder}/model.json", "random_init": "true"}
    swept = {f"model.{name}": value for name, value in model.items()} | {
        "data.prepared": f"{secret}/prepared",
        "data.negatives": f"{secret}/negatives",
        "data.decode_tasks": "1",
        "optimizer.warmup_steps": "1",
        "max_steps": "2",
        "global_batch_size": "8",
        "name": "small",
        "tracking.uri": tracking[1],
    }
    (tmp_path / "space.py").write_text(SPACE)
    words = [f"--train.{name}={value}" for name, value in swept.items()]
    words += ["--suite", f"{folder}/suite", "--space", f"{tmp_path}/space.py", "--num_trials", "1"]
    printed += run(repo, tmp_path, "tune", *words, "--train.output", f"{s3_bucket}/runs/tune")
    refused = started(repo, tmp_path, "tune", *words, "--train.output", f"{secret}/tune").communicate()[0]
    assert "train.output: found 's3://***@" in refused

    scored = [f"--model.{name}={value}" for name, value in model.items()] + ["--suite", f"{folder}/suite"]
    scored += ["--output", f"{secret}/scores", "--bootstrap_samples", "50", *tracking]
    printed += refused + run(repo, tmp_path, "evaluate", *scored)
    compared = ["--evaluations", f"{secret}/scores", "--output", f"{secret}/compare", *tracking]
    printed += run(repo, tmp_path, "compare", *compared)
    exported = ["--model.name", "scenes-base", "--output", f"{secret}/exported"]
    printed += run(repo, tmp_path, "export", *exported)

    written = {name: bucket.read_bytes(name) for name in bucket.names_below()}
    written |= {str(p): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert {"openai/report.json", "compare/report.html", "scores/summary.json"} <= written.keys()
    for name in [name for name in written if name.endswith(".parquet")]:  # compressed, so read as rows
        is_local = name.startswith("/")
        table = pq.read_table(name) if is_local else bucket.open_parquet(name).read()
        written[name] = str(table.to_pylist()).encode()
    for planted in (SECRET, KEY, FIELD):
        assert planted not in printed
        for form in (planted.encode(), planted.encode().hex().encode()):  # Ray Tune pickles into hex
            assert not [name for name, content in written.items() if form in content]


@pytest.mark.slow
def test_stores_chain_on_s3_leaves_everything_there_and_no_secret_anywhere(
    repo: Path, s3_bucket: str, tmp_path: Path
) -> None:
    named = f"{s3_bucket.replace('s3://', f's3://KEY:{SECRET}@')}/runs"
    file = tmp_path / "chain.yaml"
    file.write_text(yaml.safe_dump(settings(repo, named, tmp_path)))
    printed = run(repo, tmp_path, "chain", "--config", str(file))
    file.unlink()

    bucket = Storage(f"{s3_bucket}/runs/seed0")
    written = bucket.names_below()
    for name in ("compare/report.html", "compare/comparison.json", "prepared/manifest.json"):
        assert name in written
    assert any(name.startswith("compare/plots/") for name in written)
    assert not [name for name in written if "lease-" in name]
    assert not list(tmp_path.glob("s3*"))
    assert "/compare/report.html" in printed

    [result] = [name for name in written if name.endswith("result.json")]
    trained = Storage(f"{bucket.uri}/{result.removesuffix('/result.json')}")
    assert read_result(trained).export_student == f"{trained.uri}/export_student"
    artifacts = {path.name for path in (tmp_path / "mlartifacts").rglob("*") if path.is_file()}
    assert {"report.html", "trace.jsonl", "config.json", "summary.json"} <= artifacts

    assert SECRET not in printed
    for name in written:
        assert SECRET.encode() not in bucket.read_bytes(name), name
    for path in (p for p in tmp_path.rglob("*") if p.is_file()):
        assert SECRET.encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_stores_sweep_outlives_an_outage_of_30_s(repo: Path, tmp_path: Path) -> None:
    """Ray Tune's own files are in the store too; its client gives up after six seconds."""
    folder = write_inputs(tmp_path)
    write_suite(folder / "suite")
    (tmp_path / "space.py").write_text(SPACE)
    train = {
        "name": "tiny",
        "output": "s3://bucket/runs",
        "data.prepared": folder / "prepared",
        "data.negatives": folder / "negatives",
        "data.decode_tasks": 1,
        "model.name": folder / "model.json",
        "model.random_init": "true",
        "optimizer.warmup_steps": 1,
        "global_batch_size": 8,
        "max_steps": 3,
        "tracking.uri": f"sqlite:///{tmp_path}/mlflow.db",
    }
    words = [f"--train.{name}={value}" for name, value in train.items()]
    words += ["--suite", str(folder / "suite"), "--space", str(tmp_path / "space.py"), "--num_trials", "1"]
    with slow_store() as store:
        job = started(repo, tmp_path, "tune", *words)
        bucket = Storage("s3://bucket/runs")
        while job.poll() is None and not any("/tune/" in name for name in bucket.names_below()):
            time.sleep(0.1)
        store.fail(10**6, "reset")
        time.sleep(30)
        store.fail(0)
        printed = job.communicate()[0]
        assert job.returncode == 0, printed
        assert "answers again, after" in printed
        written = bucket.names_below()
    [trials] = [name for name in written if name.endswith("trials.json")]
    assert trials
    assert [name for name in written if re.search(r"/tune/experiment_state.*\.json", name)]


def test_stores_pyfunc_is_written_to_s3_whole(s3_bucket: str, tmp_path: Path) -> None:
    save_pyfunc(load("scenes-base"), f"{s3_bucket}/pyfunc")
    written = Storage(f"{s3_bucket}/pyfunc").names_below()
    assert "MLmodel" in written
    assert "artifacts/open_clip/open_clip_model.safetensors" in written
    assert json.loads(Storage(f"{s3_bucket}/pyfunc").read_bytes("artifacts/open_clip/degla.json"))
    assert list(tmp_path.iterdir()) == []
