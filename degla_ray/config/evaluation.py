"""Settings of jobs `evaluate`, `compare`, `interpolate`, `export`, `runs` and `fetch_benchmarks`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from degla_ray.config.scoring import ScoringConfig
from degla_ray.config.shared import RayConfig, TrackingConfig, require
from degla_ray.config.training import ModelConfig


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ScoringConfig):
    """Job `evaluate`: scores of one model on every configured benchmark."""

    model: ModelConfig
    output: str
    """Folder to write the scores and the summary to."""
    label: str = ""
    """Name of the model in tables; empty takes the model's own name."""
    cache: str | None = None
    """Folder of cached features, shared by all evaluations; null caches in `output` while the evaluation
    runs."""
    bootstrap_samples: int = 1000
    """Bootstrap resamples per confidence interval."""
    stall_minutes: float = 20.0
    """Minutes without an encoded batch after which the job fails."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        self.require_scoring()
        require(self.bootstrap_samples >= 1, "bootstrap_samples", self.bootstrap_samples, "at least 1")
        require(self.stall_minutes > 0, "stall_minutes", self.stall_minutes, "more than 0")


def evaluation_of(scoring: ScoringConfig, **rest: Any) -> EvaluateConfig:
    """Return the config that evaluates a model on the test sets of another job.

    Args:
        scoring: the other job's config.
        rest: the settings that `ScoringConfig` lacks.
    """
    shared = {each.name: getattr(scoring, each.name) for each in dataclasses.fields(ScoringConfig)}
    return EvaluateConfig(**shared, **rest)


@dataclass(frozen=True, kw_only=True)
class CompareConfig(ScoringConfig):
    """Job `compare`: tables, plots and an HTML report over several evaluations."""

    evaluations: list[str]
    """Folders written by `evaluate`, MLflow ids of its runs, or models (names or exported folders), which
    are evaluated first on the given test sets; the first is the base."""
    output: str = "runs/compare"
    """Folder for report.md, report.html and the plots."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        self.require_scoring(needed=False)


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Job `export`: a model in another program's format."""

    model: ModelConfig
    output: str
    """Folder to write to."""
    format: Literal["open_clip", "huggingface", "mlflow"] = "open_clip"
    """`open_clip` loads as local-dir:FOLDER, `huggingface` as CLIPModel, `mlflow` as a pyfunc."""
    evaluations: list[str] = field(default_factory=list)
    """Evaluation folders of this model, for the scores on its model card."""
    register: str | None = None
    """Name in MLflow's registry under which to register an export with `format mlflow`; null: none."""
    champion_by: str = "composition"
    """Score by which the alias `champion` goes to the best registered version."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        wanted = "null, or with --format mlflow"
        require(self.register is None or self.format == "mlflow", "register", self.register, wanted)


@dataclass(frozen=True, kw_only=True)
class RunsConfig:
    """Job `runs`: list runs that MLflow knows, with scores and folders."""

    stages: list[Literal["train", "evaluate", "tune", "chain"]] = field(
        default_factory=lambda: ["train", "evaluate"]
    )
    """Stages whose runs are listed."""
    limit: int = 20
    """Maximum number of runs, newest first."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        require(self.limit >= 1, "limit", self.limit, "at least 1")


@dataclass(frozen=True, kw_only=True)
class InterpolateConfig(ScoringConfig):
    """Job `interpolate`: models on the line between two weights, each exported and evaluated (WiSE-FT)."""

    first: str
    """Model at alpha 0, usually the one that training started from: a name or an exported folder."""
    second: str
    """Model at alpha 1."""
    output: str = "runs/interpolate"
    """Folder for the models, their evaluations and the report."""
    alphas: list[float] = field(default_factory=lambda: [0.0, 0.25, 0.5, 0.75, 1.0])
    """Points: the weights are (1 - alpha) * first + alpha * second; the first point is the report's base."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        self.require_scoring()
        require(bool(self.alphas), "alphas", self.alphas, "at least one")


@dataclass(frozen=True, kw_only=True)
class FetchConfig:
    """Job `fetch_benchmarks`: files of published benchmarks, as far as licences allow downloading them."""

    output: str
    """Local folder for annotations/, images/ and zeroshot/; pass it to `evaluate` as `published.data`."""
    benchmarks: list[str] = field(default_factory=lambda: ["all"])
    """Names of benchmarks or groups (aro, retrieval, zeroshot), or [all]."""
    images: bool = True
    """Whether to fetch images too; the annotations alone are a few megabytes."""
    catalogue: str | None = None
    """Another catalogue of files and their addresses, e.g. with mirrors; null takes the package's own."""

    def __post_init__(self) -> None:
        require(bool(self.benchmarks), "benchmarks", self.benchmarks, "at least one, or [all]")
