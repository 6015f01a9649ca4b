"""Paths of test sets, for stages whose evaluations run in other processes."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

from degla_ray.config import PublishedConfig, ScoringConfig
from degla_ray.storage import Storage

ScoringT = TypeVar("ScoringT", bound=ScoringConfig)


def absolute(config: ScoringT) -> ScoringT:
    """Return the config with absolute local paths: workers and trials run in folders of their own."""
    return dataclasses.replace(
        config,
        suite=_absolute(config.suite),
        prepared=_absolute(config.prepared),
        negatives=_absolute(config.negatives),
        published=_published(config.published),
    )


def _published(config: PublishedConfig) -> PublishedConfig:
    return dataclasses.replace(
        config,
        data=_absolute(config.data),
        nlvr=_absolute(config.nlvr),
        images={name: Storage(folder).uri for name, folder in config.images.items()},
        class_folders=[Storage(folder).uri for folder in config.class_folders],
        webdatasets=[Storage(folder).uri for folder in config.webdatasets],
    )


def _absolute(path: str | None) -> str | None:
    return None if path is None else Storage(path).uri
