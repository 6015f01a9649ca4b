"""Let `latest` stand for the newest finished run where a setting names a run.

`runs/train/latest/export_student` is the newest finished run in `runs/train`, and
`runs/train/photos-latest/export_student` the newest of those named `photos`. A job replaces the word once,
before anything else reads its settings, so the run that was meant is what is recorded. Evaluations work the
same way: `runs/evaluate/latest`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from degla_ray.errors import SettingError
from degla_ray.model.source import HUB, LOCAL_FOLDER
from degla_ray.stage import MANIFEST, is_complete
from degla_ray.storage import Storage

LATEST = "latest"
_NAMING_A_RUN = re.compile(r"(?:^|\.)(?:(?:base_)?model\.(?:name|pretrained)|first|second|evaluations)$")
"""Settings whose value may be a run's folder, or a folder in one."""


def with_latest(config: Any) -> Any:
    """Return the config with `latest` replaced in every setting that names a run; say which run it is.

    Raises:
        SettingError: the folder contains no finished run.
    """
    return _replaced(config, "")


def latest(place: str, setting: str) -> str:
    """Return the path or URI with `latest` or `NAME-latest` replaced; without that word, as it is.

    Args:
        place: a path or URI.
        setting: the setting that contains it, for messages.

    Raises:
        SettingError: the folder contains no finished run.
    """
    if place.startswith(LOCAL_FOLDER):
        return LOCAL_FOLDER + latest(place.removeprefix(LOCAL_FOLDER), setting)
    segments = place.split("/")
    where = next((i for i, s in enumerate(segments) if i and (s == LATEST or s.endswith(f"-{LATEST}"))), None)
    if where is None or place.startswith(HUB) or Storage(place).exists():
        return place
    parent = "/".join(segments[:where]) or "/"
    name = segments[where].removesuffix(LATEST).removesuffix("-")
    finished = sorted(
        (at, run) for run in _folders(parent, name) if (at := _finished_at(f"{parent}/{run}")) is not None
    )
    if not finished:
        called = f" named {name!r}" if name else ""
        raise SettingError(setting, place, f"a finished run{called} in {parent}, which contains none")
    run = f"{parent.rstrip('/')}/{finished[-1][1]}"
    print(f"latest: {run}")
    return "/".join([run, *segments[where + 1 :]])


def _folders(parent: str, name: str) -> list[str]:
    """Return the names of the folders in `parent`; with a name, those of its runs: NAME-FINGERPRINT."""
    return [
        f for f in Storage(parent).folders() if not name or re.fullmatch(rf"{re.escape(name)}-[0-9a-f]+", f)
    ]


def _finished_at(folder: str) -> int | None:
    """Return when a training run or a stage finished, in ns; None if it did not."""
    from degla_ray.training.trainer import RESULT  # imports Ray, which a job without `latest` may not need

    storage = Storage(folder)
    if storage.exists(RESULT):
        file = RESULT
    elif storage.exists(MANIFEST) and is_complete(folder):
        file = MANIFEST
    else:
        return None
    return storage.modified(file)


def _replaced(value: Any, setting: str) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        found = {name: _replaced(each, f"{setting}.{name}".lstrip(".")) for name, each in fields.items()}
        changed = {name: each for name, each in found.items() if each is not fields[name]}
        return dataclasses.replace(value, **changed) if changed else value
    if isinstance(value, Mapping):
        entries = {key: _replaced(each, f"{setting}.{key}") for key, each in value.items()}
        return entries if any(entries[key] is not value[key] for key in value) else value
    if not _NAMING_A_RUN.search(setting):
        return value
    if isinstance(value, list):
        places = [latest(each, setting) for each in value]
        return places if places != value else value
    return latest(value, setting) if isinstance(value, str) else value
