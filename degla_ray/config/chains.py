"""Settings of the jobs that run others: `tune`, `chain`, `pretrain_scenes`."""

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
    """Settings that all trials share; `name`, `output`, `tracking` and `ray` are the sweep's too."""
    suite: str
    """Folder of test sets that every trial is measured on."""
    space: str = "tune_spaces/loss_weights.py"
    """File with `space() -> dict`: dotted train settings -> Ray Tune domains."""
    num_trials: int = 4
    """Trials; where the space holds a grid, of each of its points."""
    max_concurrent_trials: int = 1
    """Trials at the same time."""
    seed: int = 0
    """Seed of the draws from the space; the same seed draws the same trials."""
    max_zero_shot_loss: float = 0.02
    """Zero-shot accuracy (0 to 1) that the best trial may lose against the model it starts from."""
    evaluation_actors: int = 1
    """Ray Data actors that encode the test sets, for each trial."""

    def __post_init__(self) -> None:
        require(self.num_trials >= 1, "num_trials", self.num_trials, "at least 1")
        require(
            self.max_concurrent_trials >= 1, "max_concurrent_trials", self.max_concurrent_trials, "at least 1"
        )
        require(0 <= self.max_zero_shot_loss <= 1, "max_zero_shot_loss", self.max_zero_shot_loss, "0 to 1")


@dataclass(frozen=True, kw_only=True)
class ChainConfig:
    """Job `chain`: every stage in order; a section holds a stage's settings, the chain wires the folders."""

    output: str
    """Folder of everything the chain writes; each seed gets its own subfolder."""
    prepare: dict[str, Any]
    """Settings of job `prepare`, without `output`."""
    fine_tune: dict[str, dict[str, Any]]
    """Settings of job `train` for each fine-tune, by label, without data folders, `model` and `output`."""
    negatives: dict[str, Any] = field(default_factory=dict)
    """Settings of job `negatives`, without folders."""
    base_model: dict[str, Any] = field(default_factory=dict)
    """Settings `model` of job `train` that name the model to start from; empty means `scenes-base`."""
    pretrain: dict[str, Any] | None = None
    """Settings of job `train` that makes the base first; none starts from `base_model`."""
    evaluate: dict[str, Any] = field(default_factory=dict)
    """Settings of job `evaluate`, without model and folders."""
    seed: int = 0
    """Seed of scenes, negatives and training."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        require("base" not in self.fine_tune, "fine_tune", "base", "another label: the base has that one")


@dataclass(frozen=True, kw_only=True)
class PretrainScenesConfig:
    """Job `pretrain_scenes`: the small base model that the demo starts from."""

    output: str = "runs/pretrain_scenes"
    """Folder of the images and the run."""
    export: str = "degla_ray/model/pretrained/scenes_base"
    """Folder to write the model to; the default replaces the committed one."""
    scenes: ScenesConfig = field(default_factory=lambda: ScenesConfig(seed=1000))
    """Images to train on; another seed than any demo's, so that its tests stay unseen."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    global_batch_size: int = 128
    """Samples of one optimizer step over all workers."""
    max_steps: int = 1000
    """Optimizer steps."""
    crop_scale_min: float = 0.9
    """RandomResizedCrop's smallest share of the image's area (0 to 1)."""
    num_workers: int = 2
    """Ray Train workers."""
    seed: int = 0
    """Seed of initialisation, order and augmentation."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    ray: RayConfig = field(default_factory=RayConfig)
