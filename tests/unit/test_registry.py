"""Registered models and their champion, against a real sqlite store."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from degla_ray import registry, tracking
from degla_ray.config import TrackingConfig
from degla_ray.errors import DataError
from degla_ray.identity import fingerprint


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrackingConfig:
    return TrackingConfig(uri=f"sqlite:///{tmp_path_factory.mktemp('registry')}/mlflow.db")


def trained(store: TrackingConfig, folder: Path, score: float | None) -> str:
    """Log a training run of `folder`; return its id."""
    tags = {tracking.STAGE_TAG: "train"}
    run_id = tracking.find_or_create_run(store, folder.name, fingerprint(str(folder)), str(folder), {}, tags)
    assert run_id is not None
    if score is not None:
        tracking.log_metrics(store, run_id, {"eval/composition": score}, step=7)
    return run_id


def test_registry_champion_is_the_version_with_the_best_score(store: TrackingConfig, tmp_path: Path) -> None:
    model = tmp_path / "mlflow"
    model.mkdir()
    (model / "MLmodel").write_text("flavors: {}")
    client, said, champions = MlflowClient(store.uri), [], []
    for number, score in enumerate((None, 0.5, 0.7, 0.7, 0.6)):
        run_id = trained(store, tmp_path / f"run{number}", score)
        said.append(registry.register(store, run_id, str(model), "scenes", "eval/composition"))
        aliases = client.get_registered_model("scenes").aliases
        champions.append(aliases.get("champion") and int(aliases["champion"]))
        version = client.get_model_version("scenes", str(number + 1))
        assert version.run_id == run_id
        copy = Path(client.download_artifacts(run_id, registry.ARTIFACTS, str(tmp_path / f"copy{number}")))
        assert (copy / "MLmodel").read_text() == "flavors: {}"
    assert champions == [None, 2, 3, 3, 3]  # of equal ones the earlier
    assert "no champion: no version has eval/composition" in said[0]
    assert "champion: version 3 (eval/composition 0.700)" in said[4]


def test_registry_finds_the_run_that_trained_an_export(store: TrackingConfig, tmp_path: Path) -> None:
    run_id = trained(store, tmp_path / "it's one", None)
    assert registry.trained_in(store, f"{tmp_path}/it's one/export_student/") == run_id
    with pytest.raises(DataError, match=r"no training run in sqlite.*expected the export of a run"):
        registry.trained_in(store, f"{tmp_path}/elsewhere/export_student")
