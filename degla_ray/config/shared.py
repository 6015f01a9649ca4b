"""Settings that every job has, and how an impossible combination is refused."""

from __future__ import annotations

from dataclasses import dataclass

from degla_ray.errors import SettingError


def require(ok: bool, setting: str, found: object, expected: str) -> None:
    if not ok:
        raise SettingError(setting, found, expected)


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """Where Ray runs. Nothing else differs between a laptop and a cluster."""

    address: str | None = None
    """Address of a running cluster; none joins the one a submitted job runs in, else starts Ray here."""
    num_cpus: int | None = None
    """Logical CPUs of a Ray started here; none means the machine's, but at least 8."""


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """MLflow."""

    enabled: bool = True
    """Log to MLflow."""
    uri: str = "sqlite:///runs/mlflow.db"
    """MLflow tracking URI."""
    experiment: str = "degla-ray"
    """MLflow experiment, made if it does not exist."""
