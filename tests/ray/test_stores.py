"""A chain writes everything to the named store, and the secrets in the store's URI nowhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from degla_ray.model.build import load
from degla_ray.model.pyfunc import save_pyfunc
from degla_ray.storage import Storage
from degla_ray.training.trainer import read_result

pytestmark = pytest.mark.timeout(900)
SECRET = "hunter2secret"


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


@pytest.mark.slow
def test_stores_chain_on_s3_leaves_everything_there_and_no_secret_anywhere(
    repo: Path, s3_bucket: str, tmp_path: Path
) -> None:
    """As a job with a Ray of its own, whose workers inherit the address of the store."""
    named = f"{s3_bucket.replace('s3://', f's3://KEY:{SECRET}@')}/runs"
    file = tmp_path / "chain.yaml"
    file.write_text(yaml.safe_dump(settings(repo, named, tmp_path)))
    command = [sys.executable, str(repo / "jobs" / "chain.py"), "--config", str(file)]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(repo)}, capture_output=True, text=True
    )
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
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
    run = Storage(f"{bucket.uri}/{result.removesuffix('/result.json')}")
    assert read_result(run).export_student == f"{run.uri}/export_student"
    artifacts = {path.name for path in (tmp_path / "mlartifacts").rglob("*") if path.is_file()}
    assert {"report.html", "trace.jsonl", "config.json", "summary.json"} <= artifacts

    assert SECRET not in printed
    for name in written:
        assert SECRET.encode() not in bucket.read_bytes(name), name
    for path in (p for p in tmp_path.rglob("*") if p.is_file()):
        assert SECRET.encode() not in path.read_bytes(), path


def test_stores_pyfunc_is_written_to_s3_whole(s3_bucket: str, tmp_path: Path) -> None:
    save_pyfunc(load("scenes-base"), f"{s3_bucket}/pyfunc")
    written = Storage(f"{s3_bucket}/pyfunc").names_below()
    assert "MLmodel" in written
    assert "artifacts/open_clip/open_clip_model.safetensors" in written
    assert json.loads(Storage(f"{s3_bucket}/pyfunc").read_bytes("artifacts/open_clip/degla.json"))
    assert list(tmp_path.iterdir()) == []
