"""The whole chain, as `make demo` and the flickr8k recipe run it, with few images and steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from degla_ray.chain import run_chain
from degla_ray.cli import from_settings
from degla_ray.config import ChainConfig
from degla_ray.errors import DeglaError

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(1200)]


def recipe(repo: Path, name: str, output: Path) -> dict[str, Any]:
    """A committed recipe, cut down, with its output and its MLflow store in `output`."""
    settings = yaml.safe_load((repo / "jobs" / "configs" / f"{name}.yaml").read_text())
    settings["output"] = str(output)
    settings["tracking"] = {"uri": f"sqlite:///{output}/mlflow.db"}
    settings["evaluate"] = {"bootstrap_samples": 50, "num_actors": 1}
    return settings


def cut(section: dict[str, Any], steps: int, batch: int = 16) -> dict[str, Any]:
    """A training of few steps on one worker."""
    few = {"max_steps": steps, "global_batch_size": batch, "num_workers": 1}
    return section | few | {"optimizer": section["optimizer"] | {"warmup_steps": 2}}


def scores(output: Path, label: str) -> dict[str, float]:
    models = json.loads((output / "seed0" / "compare" / "comparison.json").read_text())
    [results] = [model["results"] for model in models if model["label"] == label]
    return {name: cell["score"]["value"] for name, cell in results.items() if cell["score"]}


def test_chain_demo_recipe_makes_report_and_runs_and_does_nothing_twice(repo, tmp_path):
    settings = recipe(repo, "demo", tmp_path)
    small = {"num_images": 60, "num_validation_images": 10, "test_items": 8}
    settings["prepare"] = {
        "source": "scenes",
        "scenes": settings["prepare"]["scenes"] | small,
        "num_shards": 2,
    }
    settings["negatives"]["num_shards"] = 2
    settings["fine_tune"] = {"degla": cut(settings["fine_tune"]["degla"], 3)}
    config = from_settings(ChainConfig, settings, "demo")
    folder = Path(run_chain(config))

    page = (folder / "report.html").read_text()
    for label in ("base", "degla"):
        assert label in page
        assert 0 <= scores(tmp_path, label)["composition"] <= 1
    assert scores(tmp_path, "degla") != scores(tmp_path, "base")
    client = MlflowClient(settings["tracking"]["uri"])
    experiment = client.get_experiment_by_name("degla-ray")
    found = client.search_runs([experiment.experiment_id])
    runs = {run.info.run_id for run in found}
    named = {run.data.tags["degla.stage"] + run.data.tags.get("degla.label", ""): run for run in found}
    trained, chain = named["train"], named["chain"].info.run_id
    parents = {name: run.data.tags.get("mlflow.parentRunId") for name, run in named.items()}
    assert (parents["train"], parents["evaluatedegla"], parents["evaluatebase"]) == (
        chain, trained.info.run_id, chain,
    )  # fmt: skip
    assert trained.data.metrics["eval/composition"] == scores(tmp_path, "degla")["composition"]

    made = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "seed0" / "train").rglob("*") if path.is_file()
    }
    run_chain(config)
    assert made == {path: path.stat().st_mtime_ns for path in made}
    again = {run.info.run_id for run in client.search_runs([experiment.experiment_id])}
    assert again == runs


def test_chain_unknown_benchmark_is_told_of_before_the_training(repo, tmp_path):
    settings = recipe(repo, "demo", tmp_path)
    settings["prepare"]["scenes"] |= {"num_images": 20, "num_validation_images": 5, "test_items": 4}
    settings["prepare"]["num_shards"] = settings["negatives"]["num_shards"] = 2
    settings["evaluate"] = {"benchmarks": ["scenes_swop"]}
    with pytest.raises(DeglaError, match=r"benchmarks: found 'scenes_swop'"):
        run_chain(from_settings(ChainConfig, settings, "demo"))
    assert not (tmp_path / "seed0" / "train").exists()


@pytest.mark.slow
def test_chain_flickr8k_recipe_runs_twenty_steps_from_random_weights(repo, real_data, tmp_path):
    settings = recipe(repo, "flickr8k", tmp_path)
    folder = real_data / "flickr8k"
    settings["prepare"] |= {"limit": 120, "num_shards": 2}
    settings["prepare"]["flickr8k"] = {
        "images": str(folder / "Images"),
        "captions": {"train": str(folder / "captions_train.txt"), "val": str(folder / "captions_val.txt")},
    }
    settings["negatives"]["num_shards"] = 2
    settings["pretrain"] = cut(settings["pretrain"], 20)
    settings["fine_tune"] = {"degla": cut(settings["fine_tune"]["degla"], 2)}
    run_chain(from_settings(ChainConfig, settings, "flickr8k"))

    before, after = scores(tmp_path, "base"), scores(tmp_path, "degla")
    assert before["negatives"] != after["negatives"]
    trace = next((tmp_path / "seed0" / "train").glob("base-*/trace.jsonl")).read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in trace]
    assert len(losses) == 20
    assert sum(losses[-5:]) < sum(losses[:5])
