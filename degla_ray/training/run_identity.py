"""The identity of a run: everything that determines its result.

Its fingerprint names the run's folder. The number of workers, the interval of checkpoints, the MLflow
store and `nonfinite_steps` are not part of it, so they may change when a run resumes.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from degla_ray import tracking
from degla_ray.config import ModelConfig, TrainConfig
from degla_ray.devices import resolve_precision
from degla_ray.evaluation import paths
from degla_ray.identity import canonical, fingerprint
from degla_ray.model.source import ModelSource, SourceKind, find_model, find_weights, in_any_folder
from degla_ray.stage import read_complete
from degla_ray.storage import Storage

RESULT_VERSION = 2
"""Part of a run's identity. Increase it when the same settings would give another result: when a loss, the
order of batches, augmentation, the drawing of negatives, a tower's or the optimizer's arithmetic changes."""


def run_identity(config: TrainConfig) -> dict[str, Any]:
    """Return everything that determines a run's result, as JSON; its fingerprint is in the folder's name.

    Raises:
        DataError: an input folder is missing, unfinished or the output of another stage.
    """
    _, prepared = read_complete(config.data.prepared, "prepare")
    data = {
        "prepared": prepared["fingerprint"],
        "split": config.data.split,
        "crop_scale_min": config.data.crop_scale_min,
        "block_rows": config.data.block_rows,
    }
    if config.objective.num_negatives and config.data.negatives is not None:
        _, negatives = read_complete(config.data.negatives, "negatives")
        data["negatives"] = negatives["fingerprint"]
        if config.data.kinds is not None:
            data["kinds"] = sorted(config.data.kinds)
    if config.data.neighbours is not None:
        _, neighbours = read_complete(config.data.neighbours, "neighbours")
        data["neighbours"] = neighbours["fingerprint"]
    length = {"epochs": config.epochs} if config.max_steps is None else {"max_steps": config.max_steps}
    return canonical(
        {
            "version": RESULT_VERSION,
            "data": data,
            "model": model_identity(config.model),
            "objective": config.objective,
            "teacher": config.teacher,
            "optimizer": config.optimizer,
            "adapt": config.adapt,
            "global_batch_size": config.global_batch_size,
            "precision": resolve_precision(config.compute, config.ray),
            "seed": config.seed,
            **length,
        }
    )


def run_name(config: TrainConfig, identity: dict[str, Any]) -> str:
    """Return the name of a run's folder."""
    return f"{config.name}-{fingerprint(identity)}"


def run_folder(config: TrainConfig, identity: dict[str, Any]) -> str:
    """Return the URI of a run's folder, if `config` has absolute paths."""
    return f"{config.output.rstrip('/')}/{run_name(config, identity)}"


def model_identity(config: ModelConfig) -> dict[str, Any]:
    """Return the names of model and weights, or marks of their files' content, which may change."""
    model, weights = find_model(config.name), find_weights(config)
    identity: dict[str, Any] = {"name": _content(model) or config.name}
    identity["pretrained"] = weights and (_content(weights) or weights.where)
    return identity | {"random_init": config.random_init, "resize_positions": config.resize_positions}


def _content(source: ModelSource) -> dict[str, str]:
    """Return the SHA-256, or the store's mark, by name of a file or of all files of a folder.

    Empty if `source` has no files of its own, or none is there.
    """
    if source.path is not None:
        return _digests(source.path)
    if "://" not in source.where:
        return {}
    if source.kind is SourceKind.FOLDER:
        folder = Storage(source.where)
        return {name: folder.version(name) for name in folder.names()}
    parent, _, name = source.where.rpartition("/")
    folder = Storage(parent)
    return {name: folder.version(name)} if folder.is_file(name) else {}


def _digests(source: Path) -> dict[str, str]:
    """Return the SHA-256 by name of a local file, or of all files of a folder; empty if it is missing."""
    files = [source] if source.is_file() else sorted(p for p in source.glob("*") if p.is_file())
    digests = {}
    for file in files:
        with file.open("rb") as stream:
            digests[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return digests


def absolute(config: TrainConfig) -> TrainConfig:
    """Return the config with absolute local paths, because workers run in another working directory."""

    def folder(value: str | None) -> str | None:
        return None if value is None else Storage(value).uri

    data = dataclasses.replace(
        config.data,
        prepared=Storage(config.data.prepared).uri,
        negatives=folder(config.data.negatives),
        neighbours=folder(config.data.neighbours),
    )
    return dataclasses.replace(
        config,
        data=data,
        model=in_any_folder(config.model),
        validation=paths.absolute(config.validation),
        output=Storage(config.output).uri,
        tracking=tracking.resolved(config.tracking),
    )


def with_precision(config: TrainConfig) -> TrainConfig:
    """Return the config with the autocast type that `compute.precision: auto` means on this cluster."""
    precision = resolve_precision(config.compute, config.ray)
    autocast = "fp32" if precision == "tf32" else precision
    return dataclasses.replace(config, compute=dataclasses.replace(config.compute, precision=autocast))
