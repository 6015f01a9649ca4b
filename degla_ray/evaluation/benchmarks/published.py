"""The published benchmarks that there are files of, and where their pictures lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from degla_ray.config import PublishedConfig
from degla_ray.evaluation.benchmarks.base import Benchmark
from degla_ray.evaluation.pictures import PictureSource


@dataclass(frozen=True, kw_only=True)
class Published:
    """Benchmarks with their sources.

    Attributes:
        identity: hash of each benchmark's files, and the protocols.
    """

    benchmarks: list[Benchmark] = field(default_factory=list)
    sources: dict[str, PictureSource] = field(default_factory=dict)
    identity: dict[str, Any] = field(default_factory=dict)


def load(config: PublishedConfig, names: Sequence[str]) -> Published:
    raise NotImplementedError
