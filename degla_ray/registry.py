"""Register exported models in MLflow's registry, and move the alias `champion` to the best of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from degla_ray import tracking
from degla_ray.config import TrackingConfig
from degla_ray.errors import DataError

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION = "champion"
ARTIFACTS = "model"  # artifact folder of the run that holds a registered model


def register(config: TrackingConfig, run_id: str, folder: str, name: str, score: str) -> str:
    """Register an MLflow model as a new version of `name`; make it the champion if it scored best.

    Args:
        config: the store.
        run_id: run that trained the model; it gets the model as an artifact.
        folder: the MLflow model, a local folder.
        name: registered model, created if it does not exist.
        score: metric of the training runs that decides, such as `eval/composition`. The champion is the
            version with the highest value; of equal ones the earlier. A version without it is never one.

    Returns:
        The version, and who is the champion and why, in a line.
    """
    client = tracking.open_client(config)
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    client.log_artifacts(run_id, folder, ARTIFACTS)
    source = f"{client.get_run(run_id).info.artifact_uri}/{ARTIFACTS}"
    version = client.create_model_version(name, source, run_id)
    scores = _scores(client, name, score)
    if not scores:
        return f"{name} version {version.version}; no {CHAMPION}: no version has {score}"
    best = min(scores, key=lambda number: (-scores[number], int(number)))
    client.set_registered_model_alias(name, CHAMPION, best)
    return f"{name} version {version.version}; {CHAMPION}: version {best} ({score} {scores[best]:.3f})"


def trained_in(config: TrackingConfig, export: str) -> str:
    """Return the run that trained an exported model.

    Raises:
        DataError: this store has none.
    """
    run_id = tracking.run_that_trained(config, export)
    if run_id is None:
        raise DataError(
            export, f"no training run in {config.uri}", "the export of a run that was logged to tracking.uri"
        )
    return run_id


def _scores(client: MlflowClient, name: str, score: str) -> dict[str, float]:
    """Return version -> value of the score in the run that trained it, for the versions that have it."""
    found = {}
    for version in client.search_model_versions(f"name = '{name}'"):
        value = client.get_run(version.run_id).data.metrics.get(score)
        if value is not None:
            found[str(version.version)] = float(value)
    return found
