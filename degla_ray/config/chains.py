"""Settings of the jobs that run other jobs: `tune`, `chain`, `pretrain_scenes`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from degla_ray.config.shared import RayConfig, TrackingConfig, require
from degla_ray.config.sources import ScenesConfig
from degla_ray.config.training import OptimizerConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """Job `tune`: a Ray Tune sweep whose trials are Ray Train runs."""

    train: TrainConfig
    """Settings shared by all trials; the sweep itself uses `name`, `output`, `tracking` and `ray` too."""
    suite: str
    """Folder of test sets to evaluate every trial on."""
    space: str = "tune_spaces/loss_weights.py"
    """Python file that defines `space() -> dict`: dotted train settings -> Ray Tune domains."""
    num_trials: int = 4
    """Number of trials; if the space contains a grid, trials per grid point."""
    max_concurrent_trials: int = 1
    """Trials that run at the same time."""
    seed: int = 0
    """Seed of the draws from the space; equal seeds draw equal trials."""
    max_zero_shot_loss: float = 0.02
    """Zero-shot accuracy (0 to 1) that the best trial may lose relative to its starting model."""
    evaluation_actors: int = 1
    """Ray Data actors per trial that encode the test sets."""

    def __post_init__(self) -> None:
        require(self.num_trials >= 1, "num_trials", self.num_trials, "at least 1")
        require(
            self.max_concurrent_trials >= 1, "max_concurrent_trials", self.max_concurrent_trials, "at least 1"
        )
        require(0 <= self.max_zero_shot_loss <= 1, "max_zero_shot_loss", self.max_zero_shot_loss, "0 to 1")


@dataclass(frozen=True, kw_only=True)
class ChainConfig:
    """Job `chain`: all stages in order; each section holds a stage's settings, and the chain connects the
    folders."""

    output: str
    """Folder for everything that the chain writes; each seed gets its own subfolder."""
    prepare: dict[str, Any]
    """Settings of job `prepare`, without `output`."""
    base_model: dict[str, Any]
    """Section `model` of job `train` that names the model to start from."""
    fine_tune: dict[str, dict[str, Any]]
    """Label -> settings of job `train` for that fine-tuning run, without data folders, `model` and
    `output`."""
    negatives: dict[str, Any] = field(default_factory=dict)
    """Settings of job `negatives`, without folders."""
    pretrain: dict[str, Any] | None = None
    """Settings of job `train` to pretrain the base model with; null starts from `base_model`."""
    evaluate: dict[str, Any] = field(default_factory=dict)
    """Settings of job `evaluate`, without model and folders."""
    seed: int = 0
    """Seed of scenes, negatives and training."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        require("base" not in self.fine_tune, "fine_tune", "base", "a label other than the base model's")


@dataclass(frozen=True, kw_only=True)
class PretrainScenesConfig:
    """Job `pretrain_scenes`: train the small base model that the demo starts from."""

    output: str = "runs/pretrain_scenes"
    """Folder of the images and the run."""
    export: str = "degla_ray/model/pretrained/scenes_base"
    """Folder to write the model to; the default replaces the committed one."""
    scenes: ScenesConfig = field(default_factory=lambda: ScenesConfig(seed=1000))
    """Images to train on; the seed differs from every demo's, so that their test sets stay unseen."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    global_batch_size: int = 128
    """Samples per optimizer step, over all workers."""
    max_steps: int = 1000
    """Optimizer steps."""
    crop_scale_min: float = 0.9
    """Smallest crop of RandomResizedCrop as a fraction of the image's area (0 to 1)."""
    num_workers: int = 2
    """Ray Train workers."""
    seed: int = 0
    """Seed of initialisation, order and augmentation."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    ray: RayConfig = field(default_factory=RayConfig)
