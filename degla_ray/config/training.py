"""Settings of `train` (model, objective, teacher, optimizer, data) and of `neighbours`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_type_hints

from degla_ray.config.shared import RayConfig, TrackingConfig, require


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """An open_clip model and its weights."""

    name: str = "scenes-base"
    """open_clip name, path of a JSON config or model folder, `hf-hub:ORG/REPO`, or `scenes-base`."""
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


ABLATIONS: dict[str, dict[str, Any]] = {
    "degla_no_igc": {"lambda_igc": 0.0},
    "degla_no_tgc": {"lambda_tgc": 0.0},
    "degla_no_distill": {"lambda_distill": 0.0},
    "degla_frozen_teacher": {},  # TeacherConfig.kind, set by TrainConfig
    "degla_released": {"tgc_negatives": "released", "distill_reduction": "sum", "lambda_distill": 0.005},
}
"""Ablations of `degla`, each with the settings it fixes."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The training loss. The defaults are the published settings of each method."""

    name: Literal[
        "clip",
        "negclip",
        "ceclip",
        "degla",
        "degla_no_igc",
        "degla_no_tgc",
        "degla_no_distill",
        "degla_frozen_teacher",
        "degla_released",
    ] = "degla"
    """`clip` uses no negatives; `degla_...` are ablations, which fix the settings that they name."""
    negatives_per_caption: int | None = None
    """K, negatives drawn each time a caption is visited; null: 0 for clip, 1 for negclip, else 4."""
    lambda_igc: float = 0.1
    """Weight of the image-grounded contrast (degla)."""
    lambda_tgc: float = 0.1
    """Weight of the text-grounded contrast (degla)."""
    lambda_distill: float = 1.28
    """Weight of self-distillation, the distance to the teacher (degla, mean; 1.28 = released 0.005 * 256)."""
    tgc_temperature: float = 10.0
    """Inverse temperature of the text-grounded contrast."""
    tgc_negatives: Literal["own", "released"] = "own"
    """Negatives in the text-grounded contrast: the caption's own (paper), or those of the released code."""
    distill_reduction: Literal["mean", "sum"] = "mean"
    """Reduction of the distillation loss: `mean` (independent of batch size) or `sum` (released code)."""
    focal_gamma: float = 0.0
    """Focal exponent of the image- and text-grounded contrasts; 0 is plain cross-entropy (degla)."""
    label_smoothing: float = 0.0
    """Share of the target (0 to 1) spread over the caption and its negatives in both contrasts (degla)."""
    lambda_cmr: float = 0.2
    """Weight of the cross-modal ranking hinge (ceclip)."""
    lambda_imc: float = 0.3
    """Weight of the intra-modal contrast (ceclip)."""
    cmr_threshold_max: float = 10.0
    """Largest adaptive margin of the hinge, in logits (ceclip)."""
    imc_target: Literal["paper", "released"] = "paper"
    """Target of the intra-modal contrast: the pair, or the first negative as in released code (ceclip)."""

    def __post_init__(self) -> None:
        known = get_args(get_type_hints(ObjectiveConfig)["name"])
        near = get_close_matches(str(self.name), known, n=1)
        hint = f"did you mean {near[0]}? One" if near else "one"
        require(self.name in known, "objective.name", self.name, f"{hint} of {', '.join(known)}")
        for setting, value in ABLATIONS.get(self.name, {}).items():
            found = getattr(self, setting)
            require(
                found in (value, type(self).__dataclass_fields__[setting].default),
                f"objective.{setting}",
                found,
                f"{value!r}, which objective {self.name!r} fixes, or objective 'degla'",
            )
            object.__setattr__(self, setting, value)
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
    def family(self) -> Literal["clip", "negclip", "ceclip", "degla"]:
        """Return the method; ablations belong to `degla`."""
        return "degla" if self.name in ABLATIONS else self.name  # type: ignore[return-value]

    @property
    def num_negatives(self) -> int:
        """Return K. It is resolved here, not at construction, because its default depends on `name`."""
        if self.negatives_per_caption is not None:
            return self.negatives_per_caption
        return {"clip": 0, "negclip": 1}.get(self.name, 4)

    @property
    def wants_teacher(self) -> bool:
        """Return whether a term with non-zero weight needs teacher features."""
        return self.family == "degla" and bool(self.lambda_tgc or self.lambda_distill)


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The teacher from which DeGLA's student is distilled."""

    kind: Literal["ema", "frozen", "none"] = "ema"
    """`ema` averages the student's weights; `frozen` keeps the starting weights; `none`: no teacher."""
    decay: float = 0.9996
    """Decay per `reference_batch` samples (ema)."""
    reference_batch: int = 256
    """Samples to which `decay` refers."""

    def __post_init__(self) -> None:
        require(0 < self.decay <= 1, "teacher.decay", self.decay, "more than 0 and at most 1")
        require(self.reference_batch >= 1, "teacher.reference_batch", self.reference_batch, "at least 1")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up, then cosine decay to 0."""

    lr: float = 1e-6
    """Peak learning rate."""
    beta1: float = 0.9
    """AdamW beta 1."""
    beta2: float = 0.98
    """AdamW beta 2."""
    eps: float = 1e-6
    """AdamW epsilon."""
    weight_decay: float = 0.1
    """Weight decay of matrices; biases, norms and logit_scale get none."""
    warmup_steps: int = 50
    """Steps of linear warm-up."""
    clip_grad_norm: float | None = None
    """Largest global gradient norm; null: no clipping."""


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """Which weights are trained and at which learning rate; by default all, at the same rate."""

    freeze: Literal["none", "image", "text"] = "none"
    """Tower to freeze."""
    freeze_image_blocks: int = 0
    """Number of first blocks of the image tower to freeze, together with its embedding."""
    freeze_text_blocks: int = 0
    """Number of first blocks of the text tower to freeze, together with its embedding."""
    layer_decay: float = 1.0
    """Learning-rate multiplier from each block to the one below it; 1 gives all blocks the same rate."""
    lora_rank: int = 0
    """Rank of LoRA adapters on attention and MLPs; all else but logit_scale is then frozen. 0: no LoRA."""
    lora_alpha: float | None = None
    """LoRA alpha: adapters are scaled by alpha / rank; null: alpha = rank."""
    lora_rate: float = 10.0
    """Learning-rate multiplier of the LoRA adapters."""

    def __post_init__(self) -> None:
        for setting in ("freeze_image_blocks", "freeze_text_blocks", "lora_rank"):
            require(getattr(self, setting) >= 0, f"adapt.{setting}", getattr(self, setting), ">= 0")
        require(0 < self.layer_decay <= 1, "adapt.layer_decay", self.layer_decay, "above 0, at most 1")
        require(self.lora_rate > 0, "adapt.lora_rate", self.lora_rate, "above 0")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The training data and how it is loaded."""

    prepared: str
    """Folder that `prepare` wrote."""
    negatives: str | None = None
    """Folder that `negatives` wrote; may be null only for objectives without negatives."""
    neighbours: str | None = None
    """Folder that `neighbours` wrote: adds a hard-negative image to each image (objective negclip)."""
    split: str = "train"
    """Split of the captions to train on."""
    crop_scale_min: float = 0.9
    """Smallest share of the image's area that RandomResizedCrop keeps (0 to 1)."""
    decode_tasks: int = 2
    """Ray actors that decode for each worker."""
    prefetch_batches: int = 4
    """Batches decoded ahead of each worker."""


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
class ValidationSettings:
    """Evaluation during training, in tasks beside the workers; it does not affect the training result."""

    every_steps: int | None = None
    """Save a checkpoint and evaluate it every N steps; null: never."""
    suite: str | None = None
    """Folder of test sets; `prepare --source scenes` writes one at OUTPUT/tests."""
    prepared: str | None = None
    """Folder that `prepare` wrote: adds retrieval over the images and captions of `split`."""
    negatives: str | None = None
    """Folder that `negatives` wrote for `prepared`: adds each caption against its own negatives."""
    split: str = "val"
    """Split of `prepared` to evaluate on."""
    benchmarks: list[str] = field(default_factory=lambda: ["all"])
    """Benchmarks to run; `[all]` runs every benchmark whose files are present."""
    num_actors: int = 1
    """Ray Data actors that encode, with one logical CPU each."""
    timeout_minutes: float = 60.0
    """Time limit of an evaluation in minutes, waiting for CPUs included; training continues after it."""

    def __post_init__(self) -> None:
        require(
            self.every_steps is None or self.every_steps >= 1,
            "validation.every_steps",
            self.every_steps,
            "at least 1, or null",
        )
        require(
            self.every_steps is None or self.suite is not None or self.prepared is not None,
            "validation.suite",
            None,
            "a folder of test sets, or `validation.prepared`: there is nothing to evaluate on",
        )
        require(
            self.negatives is None or self.prepared is not None,
            "validation.prepared",
            None,
            "the folder that `validation.negatives` was made from",
        )
        require(bool(self.benchmarks), "validation.benchmarks", self.benchmarks, "at least one, or [all]")
        require(self.num_actors >= 1, "validation.num_actors", self.num_actors, "at least 1")
        require(self.timeout_minutes > 0, "validation.timeout_minutes", self.timeout_minutes, "more than 0")

    def due(self, step: int) -> bool:
        """Return whether the checkpoint after `step` steps is to be evaluated."""
        return self.every_steps is not None and step > 0 and step % self.every_steps == 0


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of job `train`."""

    name: str
    """Name of the run; the config's fingerprint is appended to it to name the run's folder."""
    data: DataConfig
    output: str = "runs/train"
    """Parent folder of the runs: a path or any URI that pyarrow opens."""
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    validation: ValidationSettings = field(default_factory=ValidationSettings)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    ray: RayConfig = field(default_factory=RayConfig)
    global_batch_size: int = 256
    """Samples per step, summed over all workers."""
    epochs: float = 5.0
    """Passes over the split; ignored if `max_steps` is set."""
    max_steps: int | None = None
    """Steps of the whole run; also the length of the learning-rate schedule; null: `epochs` decides."""
    accumulation_steps: int = 1
    """Micro-batches into which a worker's share of a step is split: less memory, the same gradients."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast dtype; losses are always computed in fp32."""
    seed: int = 42
    """Seed of initialisation, data order, augmentation and the drawing of negatives."""
    num_workers: int = 1
    """Number of Ray Train workers (world size)."""
    cpus_per_worker: float = 1.0
    """Logical CPUs reserved for each worker."""
    use_gpu: bool = False
    """Train on one GPU per worker (NCCL) instead of CPUs (Gloo)."""
    resume: Literal["auto", "never"] = "auto"
    """`auto` continues a run of the same name and config; `never` is an error if such a run exists."""

    def __post_init__(self) -> None:
        require(self.num_workers >= 1, "num_workers", self.num_workers, "at least 1")
        require(
            self.global_batch_size % self.num_workers == 0,
            "global_batch_size",
            self.global_batch_size,
            f"a multiple of num_workers ({self.num_workers})",
        )
        micro_batches = self.num_workers * self.accumulation_steps
        require(self.accumulation_steps >= 1, "accumulation_steps", self.accumulation_steps, "at least 1")
        require(
            self.global_batch_size % micro_batches == 0,
            "accumulation_steps",
            self.accumulation_steps,
            f"a divisor of global_batch_size / num_workers ({self.global_batch_size // self.num_workers})",
        )
        require(
            self.objective.num_negatives == 0 or self.data.negatives is not None,
            "data.negatives",
            None,
            f"a folder that `negatives` wrote: objective {self.objective.name!r} needs negatives",
        )
        require(
            self.data.neighbours is None or self.objective.family == "negclip",
            "data.neighbours",
            self.data.neighbours,
            f"null: objective {self.objective.name!r} has no hard-negative images (negclip has)",
        )
        if self.objective.name == "degla_frozen_teacher":
            require(
                self.teacher.kind != "none",
                "teacher.kind",
                self.teacher.kind,
                "'frozen', which objective 'degla_frozen_teacher' fixes, or objective 'degla'",
            )
            object.__setattr__(self, "teacher", replace(self.teacher, kind="frozen"))
        require(
            self.teacher.kind != "none" or not self.objective.wants_teacher,
            "teacher.kind",
            "none",
            "ema or frozen, or objective.lambda_tgc = objective.lambda_distill = 0",
        )


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
    cpus_per_actor: float = 1.0
    """Logical CPUs reserved for each actor."""
    use_gpu: bool = False
    """Run each actor on one GPU."""
    batch_size: int = 128
    """Images encoded at a time."""
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        require(self.count >= 1, "count", self.count, "at least 1")
