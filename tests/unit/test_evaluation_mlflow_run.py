"""The scores in the training run, and the evaluation as its child, in a real sqlite store."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from degla_ray import tracking
from degla_ray.config import EvaluateConfig, ModelConfig, TrackingConfig
from degla_ray.evaluation import mlflow_run
from degla_ray.evaluation.summary import Score, Summary, write_summary
from degla_ray.storage import Storage


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrackingConfig:
    return TrackingConfig(uri=f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db")


def summary_of(folder: str | None, value: float) -> Summary:
    def score(name: str, value: float | None) -> Score:
        return Score(name=name, value=value, low=value and value - 0.1, high=value, n=10, missing=0)

    return Summary(
        label="new",
        model={"name": "m", "source": "trained", "folder": folder},
        inputs={"prepared": "abc", "negatives": None},
        fingerprint=f"evaluated {folder}",
        subsets=(score("scenes/swap_obj", value), score("scenes/none", None)),
        averages=(score("composition", value),),
    )


@pytest.mark.parametrize(
    ("exported", "prefix"), [("export_student", "eval"), ("export_teacher", "eval_teacher")]
)
def test_evaluation_of_an_export_is_in_its_training_run(
    tmp_path: Path, store: TrackingConfig, exported: str, prefix: str
) -> None:
    run = Storage(str(tmp_path / "run")).uri
    trained = tracking.find_or_create_run(store, "t", exported, run, {}, {tracking.STAGE_TAG: "train"})
    assert trained is not None
    tracking.log_metrics(store, trained, {"train/loss": 1.0}, step=40)
    tracking.log_metrics(store, trained, {f"{prefix}/composition": 0.3}, step=20)  # a validation
    model = ModelConfig(name=f"{run}/{exported}")
    config = EvaluateConfig(
        model=model, output=str(tmp_path / "evaluate"), prepared=str(tmp_path / "p"), tracking=store
    )
    summary = summary_of(f"{run}/{exported}", 0.7)
    write_summary(Storage(config.output), summary)
    mlflow_run.log(config, summary, {"model": "x"}, parent_run_id=None)

    client = MlflowClient(store.uri)
    found = client.get_run(trained).data
    assert found.metrics[f"{prefix}/composition"] == found.metrics[f"{prefix}/scenes/swap_obj"] == 0.7
    curve = client.get_metric_history(trained, f"{prefix}/composition")
    assert [(point.step, point.value) for point in curve] == [(20, 0.3), (40, 0.7)]
    [child] = client.search_runs(
        [client.get_run(trained).info.experiment_id], f"tags.`{tracking.PARENT_TAG}` = '{trained}'"
    )
    assert child.data.metrics == {"eval/composition": 0.7, "eval/scenes/swap_obj": 0.7}
    assert [entry.dataset.digest for entry in child.inputs.dataset_inputs] == ["abc"]
    note = "| composition | 70.0 | 60.0–70.0 |"
    assert note in child.data.tags[tracking.NOTE_TAG]
    assert (note in found.tags.get(tracking.NOTE_TAG, "")) == (exported == "export_student")


def test_evaluation_of_any_other_model_belongs_to_the_given_run(
    tmp_path: Path, store: TrackingConfig
) -> None:
    chain = tracking.find_or_create_run(store, "chain", "fp", "folder", {})
    config = EvaluateConfig(
        model=ModelConfig(name="m"), output=str(tmp_path / "e"), prepared=str(tmp_path / "p"), tracking=store
    )
    write_summary(Storage(config.output), summary_of(None, 0.7))
    mlflow_run.log(config, summary_of(None, 0.7), {}, parent_run_id=chain)
    client = MlflowClient(store.uri)
    [own] = client.search_runs(
        [client.get_run(str(chain)).info.experiment_id], f"tags.`{tracking.PARENT_TAG}` = '{chain}'"
    )
    assert own.data.metrics == {"eval/composition": 0.7, "eval/scenes/swap_obj": 0.7}
    assert client.get_run(str(chain)).data.metrics == {}
