"""The command that a job ends with is accepted by that job's parser, and names what exists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from degla_ray.cli import parse
from degla_ray.config import JOBS, EvaluateConfig, FetchConfig, ModelConfig, NegativesConfig, TrainConfig
from degla_ray.evaluation.summary import Summary
from degla_ray.next_command import after_evaluate, after_fetch, after_negatives, after_train
from degla_ray.storage import Storage
from degla_ray.training.trainer import TrainResult
from tests.training_inputs import train_config, write_inputs


def _parsed(words: list[str]) -> Any:
    return parse(JOBS[words[0]], "", words[1:])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Prepared images with negatives, and a finished run; its name needs quotes in a shell."""
    write_inputs(folder := tmp_path / "my data")
    run = Storage(str(folder / "runs" / "photos-0a1b"))
    model = {"name": "ViT-B-32-quickgelu", "pretrained": "openai", "random_init": False}
    run.write_json({"config": {"model": model}}, "config.json")
    run.write_json({}, "export_student", "open_clip_config.json")
    return folder


def _result(folder: Path) -> TrainResult:
    run = f"{folder}/runs/photos-0a1b"
    return TrainResult(
        run_folder=run,
        export_student=f"{run}/export_student",
        export_teacher=None,
        steps=1,
        mlflow_run_id=None,
        trace_path=f"{run}/trace.jsonl",
    )


def test_next_after_negatives_fits_a_run_to_the_few_captions(folder: Path) -> None:
    made = NegativesConfig(prepared=f"{folder}/prepared", output=f"{folder}/negatives")
    config: TrainConfig = _parsed(after_negatives(made))
    assert (config.model.name, config.model.pretrained) == ("ViT-B-32-quickgelu", "openai")
    assert (config.data.prepared, config.data.negatives) == (made.prepared, made.output)
    steps = config.epochs * 60 / config.global_batch_size  # 30 images with two captions each
    assert 1 <= config.optimizer.warmup_steps <= steps / 4


def test_next_after_train_evaluates_the_student_on_a_split_that_exists(folder: Path) -> None:
    config: EvaluateConfig = _parsed(after_train(train_config(folder), _result(folder)))
    assert config.model.name == f"{folder}/runs/photos-0a1b/export_student"
    assert (config.prepared, config.negatives) == (f"{folder}/prepared", f"{folder}/negatives")
    assert config.split == "train"  # these captions have no other
    assert config.output == f"{folder}/evaluate/photos-0a1b"


def _evaluated(folder: Path, name: str, model: str, inputs: dict[str, Any]) -> Summary:
    summary = Summary(
        label=name, model={"name": model, "folder": None}, inputs=inputs, fingerprint="0123456789"
    )
    storage = Storage(f"{folder}/evaluate/{name}")
    storage.write_json(summary.to_json(), "summary.json")
    made = {"stage": "evaluate", "fingerprint": summary.fingerprint, "made_from": {}, "complete": True}
    storage.write_json(made, "manifest.json")
    return summary


def test_next_after_evaluate_evaluates_the_base_with_the_same_settings_then_compares(folder: Path) -> None:
    student = _result(folder).export_student
    config = EvaluateConfig(
        model=ModelConfig(name=student),
        output=f"{folder}/evaluate/photos",
        prepared=f"{folder}/prepared",
        split="train",
        benchmarks=["prepared_retrieval"],
        num_actors=1,
    )
    trained = _evaluated(folder, "photos", student, {"prepared": "a"})
    _evaluated(folder, "elsewhere", "ViT-B-32-quickgelu", {"prepared": "another"})
    base: EvaluateConfig = _parsed(after_evaluate(config, trained))
    assert base.model == ModelConfig(name="ViT-B-32-quickgelu", pretrained="openai")
    same = ("prepared", "split", "benchmarks", "num_actors", "published", "tracking", "ray")
    assert [getattr(base, name) for name in same] == [getattr(config, name) for name in same]
    assert base.output.startswith(f"{folder}/evaluate/ViT-B-32-quickgelu-")

    of_base = _evaluated(folder, Path(base.output).name, base.model.name, {"prepared": "a"})
    both = [base.output, config.output]
    assert _parsed(after_evaluate(base, of_base)).evaluations == both
    assert _parsed(after_evaluate(config, trained)).evaluations == both


def test_next_after_fetch_names_a_model() -> None:
    assert _parsed(after_fetch(FetchConfig(output="data"))).model.pretrained == "openai"
