"""How the compared models were trained, side by side: settings, seed, code, time and throughput.

Read from the files of the training run next to an exported model; a model from elsewhere has none of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from degla_ray.evaluation.comparison import Comparison
from degla_ray.identity import flatten
from degla_ray.masking import MASK
from degla_ray.number_formats import MISSING
from degla_ray.storage import Storage

CONFIG, PROGRESS, RESULT, EXPORT = "config.json", "progress.json", "result.json", "degla.json"
LEVELS_UP = 2  # an export is a folder directly in its run's folder or one level below
NOT_OF_THE_MODEL = (
    *("output", "name", "resume", "tracking.", "ray."),
    *("checkpoint.", "profile.", "validation."),
)
"""Beginnings of settings that say where a run was and what it reported, not what it trained."""
FACTS = (
    *("objective", "seed", "steps", "samples seen", "samples/s at the end", "training time at that speed"),
    *("peak memory, GB", "precision", "workers", "commit", "degla_ray", "torch", "MLflow run"),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table with a column per model."""

    name: str
    values: tuple[str, ...]

    @property
    def differs(self) -> bool:
        """Whether two models that have a value have different ones."""
        return len({value for value in self.values if value != MISSING}) > 1


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Tables on how the models were made, with a column per model."""

    facts: tuple[Row, ...]
    """Seed, code, amount, time and throughput of the training; rows without any value are left out."""
    settings: tuple[Row, ...]
    """Settings of the training, those that differ first."""

    @property
    def differing(self) -> list[Row]:
        return [row for row in self.settings if row.differs]

    @property
    def equal(self) -> list[Row]:
        return [row for row in self.settings if not row.differs]


def provenance(comparison: Comparison) -> Provenance:
    """Return the tables for the compared models."""
    runs = [_read_run(model_folder(summary.model)) for summary in comparison.summaries]
    facts = [_facts(run) for run in runs]
    settings = [
        {
            name: _shown(value)
            for name, value in flatten(run.get(CONFIG, {}).get("config", {})).items()
            if name and not name.startswith(NOT_OF_THE_MODEL)
        }
        for run in runs
    ]
    rows = _rows(settings)
    return Provenance(
        facts=_rows(facts, FACTS), settings=tuple(sorted(rows, key=lambda row: (not row.differs, row.name)))
    )


def model_folder(model: Mapping[str, Any]) -> str | None:
    """Return the folder of an evaluated model; None without one, or if its name held a password, which is
    masked."""
    folder = model.get("folder")
    return folder if folder and MASK not in folder else None


def find_beside(folder: str, name: str) -> Storage | None:
    """Return the folder that contains the file `name`: a model's folder or one of the two above it."""
    places = [folder, *(folder.rsplit("/", up)[0] for up in range(1, LEVELS_UP + 1))]
    return next((storage for storage in map(Storage, places) if storage.exists(name)), None)


def _read_run(folder: str | None) -> dict[str, dict[str, Any]]:
    """Return file -> content of those of a run's files that exist and can be read."""
    found: dict[str, dict[str, Any]] = {}
    if folder is None:
        return found
    run = find_beside(folder, RESULT)
    for storage, name in ((run, CONFIG), (run, PROGRESS), (run, RESULT), (Storage(folder), EXPORT)):
        if storage is not None and storage.exists(name):
            try:
                content = storage.read_json(name)
            except (json.JSONDecodeError, UnicodeDecodeError):
                continue
            if isinstance(content, dict):
                found[name] = content
    return found


def _facts(run: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    """Return what a person asks first, by its heading."""
    config, progress = run.get(CONFIG, {}).get("config", {}), run.get(PROGRESS, {})
    steps, batch = run.get(RESULT, {}).get("steps"), config.get("global_batch_size")
    speed, memory = progress.get("samples_per_s"), progress.get("peak_memory_gb")
    samples = steps * batch if steps and batch else None
    versions = run.get(EXPORT, {}).get("versions", {})
    values = (
        (config.get("objective") or {}).get("name"),
        config.get("seed"),
        f"{steps:,}" if steps else None,
        f"{samples:,}" if samples else None,
        f"{speed:,.1f}" if speed else None,
        _duration(samples / speed) if samples and speed else None,
        f"{memory:,.1f}" if memory else None,
        (run.get(CONFIG, {}).get("identity") or {}).get("precision"),
        config.get("num_workers"),
        run.get(CONFIG, {}).get("commit"),
        versions.get("degla_ray"),
        versions.get("torch"),
        run.get(RESULT, {}).get("mlflow_run_id"),
    )
    return {name: _shown(value) for name, value in zip(FACTS, values, strict=True) if value is not None}


def _rows(columns: Sequence[Mapping[str, str]], first: Sequence[str] = ()) -> tuple[Row, ...]:
    known = {name for column in columns for name in column}
    names = dict.fromkeys([*(name for name in first if name in known), *sorted(known)])
    return tuple(
        Row(name=name, values=tuple(column.get(name, MISSING) for column in columns)) for name in names
    )


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes:,.1f} min" if minutes < 120 else f"{minutes / 60:,.1f} h"
