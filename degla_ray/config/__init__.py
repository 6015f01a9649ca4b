"""Settings of all jobs, one dataclass per concern.

jsonargparse derives YAML files, dotted command-line overrides and `--help` from them. The docstring
under a field is its help text and states its unit. Impossible combinations raise at construction.
No environment variable is read here.
"""

from degla_ray.config.chains import ChainConfig, PretrainScenesConfig
from degla_ray.config.dry_run import DryRunConfig
from degla_ray.config.evaluation import (
    CompareConfig,
    EvaluateConfig,
    ExportConfig,
    FetchConfig,
    InterpolateConfig,
    RunsConfig,
    evaluation_of,
)
from degla_ray.config.negatives import GenerationConfig, NegativesConfig, OpenAIConfig, VLLMConfig
from degla_ray.config.scoring import PublishedConfig, ScoringConfig
from degla_ray.config.shared import ComputeConfig, RayConfig, TrackingConfig
from degla_ray.config.sources import (
    CocoConfig,
    CsvConfig,
    DeglaJsonConfig,
    ExportDeglaJsonConfig,
    ExportNegclipTsvConfig,
    Flickr8kConfig,
    NegclipTsvConfig,
    ParquetConfig,
    PrepareConfig,
    ScenesConfig,
    WebdatasetConfig,
)
from degla_ray.config.training import (
    AdaptConfig,
    CheckpointConfig,
    DataConfig,
    ModelConfig,
    NeighboursConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ProfileConfig,
    TeacherConfig,
    TrainComputeConfig,
    TrainConfig,
    ValidationSettings,
)
from degla_ray.config.tuning import Keep, TuneConfig

JOBS: dict[str, type] = {
    "prepare": PrepareConfig,
    "negatives": NegativesConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "compare": CompareConfig,
    "interpolate": InterpolateConfig,
    "export": ExportConfig,
    "runs": RunsConfig,
    "tune": TuneConfig,
    "chain": ChainConfig,
    "neighbours": NeighboursConfig,
    "fetch_benchmarks": FetchConfig,
    "export_degla_json": ExportDeglaJsonConfig,
    "export_negclip_tsv": ExportNegclipTsvConfig,
    "pretrain_scenes": PretrainScenesConfig,
}
"""Settings class of each job, in the order in which a project uses the jobs."""

__all__ = [
    "JOBS",
    "AdaptConfig",
    "ChainConfig",
    "CheckpointConfig",
    "CocoConfig",
    "CompareConfig",
    "ComputeConfig",
    "CsvConfig",
    "DataConfig",
    "DeglaJsonConfig",
    "DryRunConfig",
    "EvaluateConfig",
    "ExportConfig",
    "ExportDeglaJsonConfig",
    "ExportNegclipTsvConfig",
    "FetchConfig",
    "Flickr8kConfig",
    "GenerationConfig",
    "InterpolateConfig",
    "Keep",
    "ModelConfig",
    "NegativesConfig",
    "NegclipTsvConfig",
    "NeighboursConfig",
    "ObjectiveConfig",
    "OpenAIConfig",
    "OptimizerConfig",
    "ParquetConfig",
    "PrepareConfig",
    "PretrainScenesConfig",
    "ProfileConfig",
    "PublishedConfig",
    "RayConfig",
    "RunsConfig",
    "ScenesConfig",
    "ScoringConfig",
    "TeacherConfig",
    "TrackingConfig",
    "TrainComputeConfig",
    "TrainConfig",
    "TuneConfig",
    "VLLMConfig",
    "ValidationSettings",
    "WebdatasetConfig",
    "evaluation_of",
]
