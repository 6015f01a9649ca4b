"""Settings of jobs `train` (model, objective, teacher, optimizer, data) and `neighbours`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Literal, get_args, get_type_hints

from degla_ray.config.scoring import ScoringConfig
from degla_ray.config.shared import ComputeConfig, RayConfig, TrackingConfig, require
from degla_ray.schema import Kind


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """An open_clip model and its weights."""

    name: str
    """open_clip name (with `pretrained`), path of a JSON config or model folder, `hf-hub:ORG/REPO`, or
    `scenes-base`, the demo's small model for rendered scenes."""
    pretrained: str | None = None
    """open_clip tag, checkpoint file or model folder; null: the folder's own weights, else random weights."""
    random_init: bool = False
    """Use random weights even if the folder has weights; only `train` accepts random weights without this."""
    resize_positions: bool = False
    """Interpolate position embeddings if image size or context length differs, as open_clip does."""
    allow_activation_mismatch: bool = False
    """Allow loading weights trained with QuickGELU into a GELU model, or the reverse."""
    mean: tuple[float, float, float] | None = None
    """Mean subtracted from each channel (pixels are 0 to 1); null: the value stored with the weights."""
    std: tuple[float, float, float] | None = None
    """Standard deviation that divides each channel; null: the value stored with the weights."""
    interpolation: Literal["bicubic", "bilinear"] | None = None
    """Interpolation for resizing images; null: the value stored with the weights."""
    resize_mode: Literal["shortest", "squash", "longest"] | None = None
    """Resize the shortest edge and crop, squash to the size, or resize the longest edge and pad; null: the
    value stored with the weights."""

    def __post_init__(self) -> None:
        require(self.std is None or min(self.std) > 0, "model.std", self.std, "numbers above 0")


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The training loss. The defaults are the published settings of each method."""

    name: Literal["clip", "negclip", "ceclip", "degla"] = "degla"
    """Method; `clip` uses no negatives. jobs/configs/ablations/ has variants of `degla`."""
    negatives_per_caption: int | None = None
    """K, negatives drawn at each visit of a caption; null: the published 0 (clip), 1 (negclip) or 4."""
    lambda_igc: float = 0.1
    """Weight of the image-grounded contrast (degla; published: 0.1)."""
    lambda_tgc: float = 0.1
    """Weight of the text-grounded contrast (degla; published: 0.1)."""
    lambda_distill: float = 1.28
    """Weight of the distance to the teacher (degla; published: 1.28, which is 0.005 * 256 as a mean)."""
    tgc_scale: float = 10.0
    """Inverse temperature of the text-grounded contrast (degla; published: 10)."""
    tgc_negatives: Literal["own", "released"] = "own"
    """Negatives in that contrast: the caption's `own` (published), or as in `released` code (degla)."""
    distill_reduction: Literal["mean", "sum"] = "mean"
    """Reduction of the distance to the teacher: `mean`, or `sum` as in released code (degla)."""
    focal_gamma: float = 0.0
    """Focal exponent of the image- and text-grounded contrasts; 0 is plain cross-entropy (degla)."""
    label_smoothing: float = 0.0
    """Share of the target (0 to 1) spread over the caption and its negatives in both contrasts (degla)."""
    lambda_cmr: float = 0.2
    """Weight of the cross-modal ranking hinge (ceclip; published: 0.2)."""
    lambda_imc: float = 0.3
    """Weight of the intra-modal contrast (ceclip; published: 0.3)."""
    cmr_threshold_max: float = 10.0
    """Largest adaptive margin of the hinge, in logits (ceclip)."""
    imc_target: Literal["paper", "released"] = "paper"
    """Target of the intra-modal contrast: the pair, or the first negative as in released code (ceclip)."""

    def __post_init__(self) -> None:
        known = get_args(get_type_hints(ObjectiveConfig)["name"])
        near = get_close_matches(str(self.name), known, n=1)
        hint = f"did you mean {near[0]}? One" if near else "one"
        require(self.name in known, "objective.name", self.name, f"{hint} of {', '.join(known)}")
        K = self.num_negatives
        require(K >= 0, "objective.negatives_per_caption", K, ">= 0")
        require(
            self.name != "clip" or K == 0,
            "objective.negatives_per_caption",
            K,
            "0, or another objective than clip",
        )
        require(0 <= self.label_smoothing <= 1, "objective.label_smoothing", self.label_smoothing, "0 to 1")
        require(self.focal_gamma >= 0, "objective.focal_gamma", self.focal_gamma, ">= 0")

    @property
    def num_negatives(self) -> int:
        """Return K. It is resolved here, not at construction, because its default depends on `name`."""
        if self.negatives_per_caption is not None:
            return self.negatives_per_caption
        return {"clip": 0, "negclip": 1}.get(self.name, 4)

    @property
    def wants_teacher(self) -> bool:
        """Return whether a term with non-zero weight needs teacher features."""
        return self.name == "degla" and bool(self.lambda_tgc or self.lambda_distill)


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The teacher from which DeGLA's student is distilled."""

    kind: Literal["ema", "frozen", "none"] = "ema"
    """`ema` averages the student's weights; `frozen` keeps the starting weights; `none`: no teacher."""
    decay: float = 0.9996
    """Decay per `reference_batch` samples (ema; published: 0.9996)."""
    reference_batch: int = 256
    """Samples to which `decay` refers (published: 256, the batch)."""

    def __post_init__(self) -> None:
        require(0 < self.decay <= 1, "teacher.decay", self.decay, "more than 0 and at most 1")
        require(self.reference_batch >= 1, "teacher.reference_batch", self.reference_batch, "at least 1")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up, then cosine decay to 0."""

    lr: float = 1e-6
    """Peak learning rate (published: 1e-6, for large pretrained models)."""
    beta1: float = 0.9
    """AdamW beta 1."""
    beta2: float = 0.98
    """AdamW beta 2."""
    eps: float = 1e-6
    """AdamW epsilon."""
    weight_decay: float = 0.1
    """Weight decay of matrices (published: 0.1); biases, norms and logit_scale have none."""
    warmup_steps: int = 50
    """Optimizer steps of linear warm-up (published: 50)."""
    clip_grad_norm: float | None = None
    """Largest global gradient norm; null: no clipping."""


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """Which weights are trained and at which learning rate; by default all, at the same rate."""

    freeze: Literal["none", "image", "text", "trunks"] = "none"
    """Tower to freeze; `trunks` freezes both except for their projections into the shared space."""
    freeze_image_blocks: int = 0
    """Number of first blocks of the image tower to freeze, together with its embedding."""
    freeze_text_blocks: int = 0
    """Number of first blocks of the text tower to freeze, together with its embedding."""
    cache_frozen: bool = False
    """Keep the outputs of frozen timm and Hugging Face trunks in memory (1 GiB per trunk and worker), so that
    a caption, or an image without random crop, passes through only once; equal up to rounding."""
    layer_decay: float = 1.0
    """Learning-rate multiplier from each block to the one below it; 1 gives all blocks the same rate."""
    lora_rank: int = 0
    """Rank of LoRA adapters on attention and MLPs; all else but logit_scale is then frozen. 0: no LoRA."""
    lora_alpha: float | None = None
    """LoRA alpha: adapters are scaled by alpha / rank; null: alpha = rank."""
    lora_lr_multiplier: float = 10.0
    """Learning-rate multiplier of the LoRA adapters."""

    def __post_init__(self) -> None:
        for setting in ("freeze_image_blocks", "freeze_text_blocks", "lora_rank"):
            require(getattr(self, setting) >= 0, f"adapt.{setting}", getattr(self, setting), ">= 0")
        require(0 < self.layer_decay <= 1, "adapt.layer_decay", self.layer_decay, "above 0, at most 1")
        require(self.lora_lr_multiplier > 0, "adapt.lora_lr_multiplier", self.lora_lr_multiplier, "above 0")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The training data and how it is loaded."""

    prepared: str
    """Folder that `prepare` wrote."""
    negatives: str | None = None
    """Folder that `negatives` wrote; null only if the objective uses no negatives."""
    kinds: list[Kind] | None = None
    """Kinds of negatives to train with; null: all that are there."""
    neighbours: str | None = None
    """Folder that `neighbours` wrote: adds a hard-negative image to each image (objective negclip)."""
    split: str = "train"
    """Split of the captions to train on."""
    crop_scale_min: float = 0.9
    """Smallest share of the image's area that RandomResizedCrop keeps (0 to 1)."""
    decode_tasks: int | None = None
    """Ray actors that decode for each worker, one logical CPU each; null: the cores its node has left."""
    prefetch_batches: int = 4
    """Batches decoded ahead of each worker."""
    cache: str | None = None
    """Local folder for copies of a remote data set's parts, shared by a node's processes; null: a temporary
    folder."""
    cache_gb: float = 50.0
    """Largest size of `cache` in GB. A larger data set is read image by image, unless `block_rows` is set."""
    block_rows: int = 0
    """Rows that are shuffled among each other, in whole parts; 0: all rows of the split."""

    def __post_init__(self) -> None:
        tasks = self.decode_tasks
        require(self.kinds is None or bool(self.kinds), "data.kinds", self.kinds, "at least one, or null")
        require(tasks is None or tasks >= 1, "data.decode_tasks", tasks, "at least 1, or null")
        require(self.cache_gb > 0, "data.cache_gb", self.cache_gb, "more than 0")
        require(self.block_rows >= 0, "data.block_rows", self.block_rows, "at least 0")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are saved and how many are kept."""

    every_steps: int | None = None
    """Save every N steps; null: not by steps."""
    every_minutes: float | None = 10.0
    """Save every N minutes; null: not by time."""
    keep: int = 2
    """Number of latest checkpoints to keep."""


@dataclass(frozen=True, kw_only=True)
class ValidationSettings(ScoringConfig):
    """Evaluation during training, in tasks beside the workers; it does not affect the training result."""

    every_steps: int | None = None
    """Save a checkpoint and evaluate it every N steps; null: never."""
    num_actors: int = 1
    """Ray Data actors that encode images and texts."""
    timeout_minutes: float = 60.0
    """Time limit of an evaluation in minutes, waiting for CPUs included; training continues after it."""

    def __post_init__(self) -> None:
        require(
            self.every_steps is None or self.every_steps >= 1,
            "validation.every_steps",
            self.every_steps,
            "at least 1, or null",
        )
        self.require_scoring("validation.", needed=self.every_steps is not None)
        require(self.timeout_minutes > 0, "validation.timeout_minutes", self.timeout_minutes, "more than 0")

    def due(self, step: int) -> bool:
        """Return whether the checkpoint after `step` steps is to be evaluated."""
        return self.every_steps is not None and step > 0 and step % self.every_steps == 0


@dataclass(frozen=True, kw_only=True)
class TrainComputeConfig(ComputeConfig):
    """Hardware of a Ray Train worker."""

    activation_checkpointing: bool = False
    """Recompute each block in the backward pass: less memory, about a third more time, the same gradients."""
    compile: bool = False
    """Compile the towers' blocks with torch.compile: fewer kernels, after a minute or more at each start."""
    gradient_compression: Literal["none", "bf16"] = "none"
    """Type in which workers exchange gradients; `bf16` halves the traffic and rounds every gradient."""


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """A torch profiler trace, written into the run's folder; it does not affect the training result."""

    steps: str | None = None
    """First and last step to profile on worker 0, such as 10:15 (in a YAML file in quotes); null: none."""

    def __post_init__(self) -> None:
        found = self.steps and re.fullmatch(r"(\d+):(\d+)", self.steps)
        valid = self.steps is None or (found and 1 <= int(found[1]) <= int(found[2]))
        require(bool(valid), "profile.steps", self.steps, "first and last step, from 1, such as 10:15")

    @property
    def range(self) -> tuple[int, int] | None:
        """Return the first and the last step, or None."""
        if self.steps is None:
            return None
        first, _, last = self.steps.partition(":")
        return int(first), int(last)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of job `train`."""

    name: str
    """Name of the run; the config's fingerprint is appended to it to name the run's folder."""
    data: DataConfig
    model: ModelConfig
    output: str = "runs/train"
    """Parent folder of the runs: a path or any URI that pyarrow opens."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    validation: ValidationSettings = field(default_factory=ValidationSettings)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    ray: RayConfig = field(default_factory=RayConfig)
    global_batch_size: int = 256
    """Samples per optimizer step, over all workers (published: 256)."""
    epochs: float = 5.0
    """Passes over the split (published: 5); ignored if `max_steps` is set."""
    max_steps: int | None = None
    """Optimizer steps of the run and length of the learning-rate schedule; null: `epochs` decides."""
    micro_batch_size: int | None = None
    """Rows that a worker computes at once, at most: fewer need less memory and give the same gradients; null:
    its whole share of the batch."""
    seed: int = 42
    """Seed of initialisation, data order, augmentation and the drawing of negatives."""
    num_workers: int | tuple[int, int] = 1
    """Ray Train workers, or [least, most]: the divisors of the batch that there is room for."""
    compute: TrainComputeConfig = field(default_factory=TrainComputeConfig)
    nonfinite_steps: Literal["stop", "skip"] = "stop"
    """A loss that is not finite stops the run, or such steps change nothing and are counted; 25 in a row stop
    it all the same. fp16 always skips them. A stopped run resumes with `skip`."""
    stall_minutes: float = 15.0
    """Minutes that a step may take, with the wait for a checkpoint before it, until the workers are started
    again from the latest checkpoint and the one that held them up is named."""
    resume: Literal["auto", "never"] = "auto"
    """`auto` continues a run of the same name and config; `never` is an error if such a run exists."""

    def __post_init__(self) -> None:
        rows, least, most = self.micro_batch_size, *self.worker_range
        require(least >= 1, "num_workers", self.num_workers_given, "at least 1")
        require(least <= most, "num_workers", self.num_workers_given, "the smaller number first")
        require(self.stall_minutes > 0, "stall_minutes", self.stall_minutes, "more than 0")
        require(
            bool(self.worker_counts),
            "global_batch_size",
            self.global_batch_size,
            f"a multiple of num_workers ({self.num_workers_given})",
        )
        require(rows is None or rows >= 1, "micro_batch_size", rows, "at least 1, or null")
        require(
            self.objective.num_negatives == 0 or self.data.negatives is not None,
            "data.negatives",
            None,
            f"a folder that `negatives` wrote: objective {self.objective.name!r} needs negatives",
        )
        require(
            self.data.neighbours is None or self.objective.name == "negclip",
            "data.neighbours",
            self.data.neighbours,
            f"null: objective {self.objective.name!r} takes no hard-negative images, only negclip does",
        )
        require(
            self.teacher.kind != "none" or not self.objective.wants_teacher,
            "teacher.kind",
            "none",
            "ema or frozen, or objective.lambda_tgc = objective.lambda_distill = 0",
        )

    @property
    def num_workers_given(self) -> int | list[int]:
        """Return `num_workers` as a user writes it, for messages."""
        return self.num_workers if isinstance(self.num_workers, int) else list(self.num_workers)

    @property
    def worker_range(self) -> tuple[int, int]:
        """Return the least and the most workers that `num_workers` allows."""
        return (self.num_workers, self.num_workers) if isinstance(self.num_workers, int) else self.num_workers

    @property
    def worker_counts(self) -> list[int]:
        """Return the numbers of workers within that range that divide the global batch, ascending."""
        least, most = self.worker_range
        return [n for n in range(least, most + 1) if self.global_batch_size % n == 0]


@dataclass(frozen=True, kw_only=True)
class NeighboursConfig:
    """Settings of job `neighbours`: find each image's nearest other images (NegCLIP's hard negatives)."""

    prepared: str
    """Folder that `prepare` wrote."""
    output: str
    """Folder to write: a path or any URI that pyarrow opens."""
    model: ModelConfig
    """Model whose image features measure similarity."""
    split: str = "train"
    """Split whose images are compared."""
    count: int = 3
    """Number of neighbours per image."""
    num_actors: int = 2
    """Ray Data actors that encode."""
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    batch_size: int = 128
    """Images encoded at a time."""
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        require(self.count >= 1, "count", self.count, "at least 1")
