"""Settings of the jobs that run other jobs: `chain` and `pretrain_scenes`."""

from __future__ import annotations

from dataclasses import dataclass, field

from degla_ray.config.evaluation import EvaluateConfig
from degla_ray.config.negatives import NegativesConfig
from degla_ray.config.sections import complete, without
from degla_ray.config.shared import RayConfig, TrackingConfig, require
from degla_ray.config.sources import PrepareConfig, ScenesConfig
from degla_ray.config.training import ModelConfig, OptimizerConfig, TrainConfig

BASE = "base"
"""Label of the model that a chain's fine-tuning runs start from."""


@without(PrepareConfig, "output", "ray", "scenes.seed")
class PrepareSection:
    """Settings of job `prepare`."""


@without(NegativesConfig, "prepared", "output", "seed", "tracking", "ray")
class NegativesSection:
    """Settings of job `negatives`."""


@without(
    TrainConfig,
    *("name", "output", "model", "seed", "tracking", "ray", "data.prepared", "data.negatives"),
)
class TrainSection:
    """Settings of job `train`."""


@without(EvaluateConfig, "model", "label", "output", "suite", "prepared", "negatives", "tracking", "ray")
class EvaluateSection:
    """Settings of job `evaluate`."""


@dataclass(frozen=True, kw_only=True)
class ChainConfig:
    """Settings of job `chain`: a section for each stage, without what the chain decides (folders, seed)."""

    output: str
    """Folder for everything that the chain writes; each seed gets its own subfolder."""
    seed: int = 0
    """Seed of scenes, negatives and training."""
    prepare: PrepareSection
    negatives: NegativesSection = field(default_factory=NegativesSection)
    base_model: ModelConfig
    pretrain: TrainSection | None = None
    """Training of the base model from `base_model`; null starts the fine-tuning runs from `base_model`."""
    fine_tune: dict[str, TrainSection] = field(default_factory=dict)
    """Label -> settings of that fine-tuning run; null in place of the settings leaves a run out."""
    evaluate: EvaluateSection = field(default_factory=EvaluateSection)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        require(bool(self.fine_tune), "fine_tune", self.fine_tune, "at least one label with its settings")
        require(BASE not in self.fine_tune, "fine_tune", BASE, "a label other than the base model's")
        self.stages()  # so that a setting that cannot work is an error here

    @property
    def root(self) -> str:
        """Return the folder of this seed."""
        return f"{self.output}/seed{self.seed}"

    def stages(self) -> Stages:
        """Return every stage's config: its section and what the chain decides.

        Raises:
            SettingError: an impossible combination in a section.
        """
        prepared, negatives = f"{self.root}/prepared", f"{self.root}/negatives"
        made = {"seed": self.seed, "tracking": self.tracking}
        on_scenes = self.prepare.source == "scenes"  # type: ignore[attr-defined]
        data = {"prepared": prepared, "negatives": negatives}
        own_tests = {"suite": f"{prepared}/tests"} if on_scenes else data
        tests = {} if self.evaluate.split is None else own_tests  # type: ignore[attr-defined]
        pretrain = None
        if self.pretrain is not None:
            pretrain = self._training("pretrain", BASE, self.pretrain, {"prepared": prepared})
        return Stages(
            prepare=complete(
                PrepareConfig, self.prepare, "prepare", output=prepared, scenes={"seed": self.seed}
            ),
            negatives=complete(
                NegativesConfig, self.negatives, "negatives", prepared=prepared, output=negatives, **made
            ),
            pretrain=pretrain,
            fine_tune={
                label: self._training(f"fine_tune.{label}", label, section, data)
                for label, section in self.fine_tune.items()
            },
            evaluate=complete(
                EvaluateConfig,
                self.evaluate,
                "evaluate",
                model=self.base_model,
                output=f"{self.root}/evaluate",
                label=BASE,
                tracking=self.tracking,
                **tests,
            ),
        )

    def _training(self, path: str, label: str, section: TrainSection, data: dict[str, str]) -> TrainConfig:
        decided = {"model": self.base_model, "seed": self.seed, "tracking": self.tracking}
        return complete(
            TrainConfig, section, path, name=label, output=f"{self.root}/train", data=data, **decided
        )


@dataclass(frozen=True, kw_only=True)
class Stages:
    """Configs of a chain's stages.

    Attributes:
        pretrain: training of the base model; None if it is given.
        fine_tune: by label; with `pretrain`, they start from what that leaves instead of their own model.
        evaluate: of the base model; `model`, `output` and `label` differ for the others.
    """

    prepare: PrepareConfig
    negatives: NegativesConfig
    pretrain: TrainConfig | None
    fine_tune: dict[str, TrainConfig]
    evaluate: EvaluateConfig


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
