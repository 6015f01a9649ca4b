"""Settings shared by all jobs, and the check that rejects impossible combinations."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal

from degla_ray.errors import SettingError


def require(ok: bool, setting: str, found: object, expected: str) -> None:
    """Raise SettingError unless `ok`."""
    if not ok:
        raise SettingError(setting, found, expected)


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """Where Ray runs: the only settings that differ between a laptop and a cluster."""

    address: str | None = None
    """Address of a running cluster; null: join the cluster of the submitted job, else start Ray locally."""
    num_cpus: int | None = None
    """Logical CPUs of a locally started Ray; null: those of the machine, but at least 8."""
    wait_minutes: float = 30.0
    """Minutes to wait for nodes that a job needs and its cluster lacks, also after a node was lost. A locally
    started Ray, which cannot grow, refuses at once."""

    def __post_init__(self) -> None:
        require(self.wait_minutes >= 0, "ray.wait_minutes", self.wait_minutes, "at least 0")


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Settings of MLflow tracking."""

    enabled: bool = True
    """Log to MLflow."""
    uri: str = field(
        default_factory=lambda: os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///runs/mlflow.db")
    )
    """MLflow tracking URI; the default is that of MLFLOW_TRACKING_URI if it is set."""
    experiment: str = "degla-ray"
    """MLflow experiment; created if it does not exist."""


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """Hardware of one process that runs a model: a Ray Train worker, or an actor that encodes."""

    use_gpu: bool = False
    """Use one GPU per worker or actor instead of CPUs."""
    cpus: float = 1.0
    """Logical CPUs reserved for each worker or actor, beside a GPU too."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Autocast dtype of the towers; `auto`: bf16 on GPUs that have it, otherwise fp32. A GPU multiplies fp32
    in TF32."""

    def __post_init__(self) -> None:
        require(self.cpus > 0, "compute.cpus", self.cpus, "more than 0")
