"""Every setting of every job, one dataclass a concern.

jsonargparse turns these into YAML files, dotted command-line overrides and `--help`; the docstring
under a field is its help text and states its unit. Impossible combinations raise at construction.
Environment variables are read nowhere here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from degla_ray.errors import SettingError
from degla_ray.schema import Kind, RejectReason


def _require(ok: bool, setting: str, found: object, expected: str) -> None:
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


@dataclass(frozen=True, kw_only=True)
class ScenesConfig:
    """Rendered scenes: pictures whose truth is known."""

    num_images: int = 4000
    """Training pictures."""
    num_validation_images: int = 400
    """Validation pictures (split `val`)."""
    captions_per_image: int = 3
    """Captions of each picture."""
    min_objects: int = 2
    """Objects in a picture, at least."""
    max_objects: int = 3
    """Objects in a picture, at most 4."""
    image_size: int = 64
    """Side of a picture in pixels."""
    test_items: int = 300
    """Items of each subset of the test sets that are written beside the pictures; 0 writes none."""
    seed: int = 0
    """Same seed, same bytes."""

    def __post_init__(self) -> None:
        _require(
            1 <= self.min_objects <= self.max_objects <= 4,
            "scenes.min_objects",
            self.min_objects,
            "1 <= min_objects <= max_objects <= 4",
        )
        _require(self.image_size >= 32, "scenes.image_size", self.image_size, "at least 32 pixels")
        _require(self.num_images >= 1, "scenes.num_images", self.num_images, "at least 1")
        _require(
            self.captions_per_image >= 1, "scenes.captions_per_image", self.captions_per_image, "at least 1"
        )
        _require(
            self.num_validation_images >= 0,
            "scenes.num_validation_images",
            self.num_validation_images,
            ">= 0",
        )
        _require(self.test_items >= 0, "scenes.test_items", self.test_items, ">= 0")


@dataclass(frozen=True, kw_only=True)
class Flickr8kConfig:
    """A folder of pictures and CSV files `image,caption` with a header."""

    images: str = ""
    """Folder of the pictures."""
    captions: dict[str, str] = field(default_factory=dict)
    """Caption file of each split, e.g. {train: captions_train.txt, val: captions_val.txt}."""


@dataclass(frozen=True, kw_only=True)
class CocoConfig:
    """COCO captions, 2014 or 2017, as the official JSON or Karpathy's split file."""

    images: str = ""
    """Folder that holds the pictures, or train2014/, val2014/, train2017/ ... with them."""
    annotations: dict[str, str] = field(default_factory=dict)
    """Official captions_*.json of each split, e.g. {train: captions_train2014.json}."""
    karpathy: str | None = None
    """Karpathy's dataset_coco.json; it then gives captions and splits and `annotations` must be empty."""


@dataclass(frozen=True, kw_only=True)
class ParquetConfig:
    """Parquet files of pictures and captions, such as Hugging Face data sets are."""

    files: dict[str, list[str]] = field(default_factory=dict)
    """Files, folders or patterns of each split, e.g. {train: [data/train-*.parquet]}."""
    image_column: str = "image"
    """Column of the picture: its bytes, a struct<bytes, path>, or its path below `images`."""
    caption_column: str = "caption"
    """Column of the caption, a text or a list of texts."""
    image_id_column: str | None = None
    """Column of the picture's id, rows of one id being one picture; none: the path, or each row its own."""
    split_column: str | None = None
    """Column of the split; none means that `files` names it."""
    images: str | None = None
    """Folder of the pictures; for a column of paths only."""


@dataclass(frozen=True, kw_only=True)
class WebdatasetConfig:
    """Tar shards: files of one name before the first dot are a sample."""

    shards: dict[str, list[str]] = field(default_factory=dict)
    """Tar files, folders or patterns of each split, e.g. {train: ["DIR/train-{000..099}.tar"]}."""
    json_field: str | None = None
    """Field of a sample's .json with its caption or list of captions; none takes its .txt."""
    image_suffixes: list[str] = field(default_factory=lambda: ["jpg", "jpeg", "png", "webp"])
    """Suffixes that make a file the sample's picture; the first that a sample has counts."""

    def __post_init__(self) -> None:
        _require(bool(self.image_suffixes), "webdataset.image_suffixes", self.image_suffixes, "at least one")


@dataclass(frozen=True, kw_only=True)
class DeglaJsonConfig:
    """DeGLA's released data: a JSON list of {image_id, original, enhanced}, negatives with the captions."""

    images: str = ""
    """Folder that holds the pictures under the names of `pattern`."""
    annotations: dict[str, str] = field(default_factory=dict)
    """JSON file of each split, e.g. {train: FILE}."""
    pattern: str = "train2014/COCO_train2014_%012d.jpg"
    """A picture's name below `images`, with %d or the like for its image_id; COCO's other names are tried."""
    min_negatives: int = 4
    """Rows with fewer texts in `enhanced` are rejected."""

    def __post_init__(self) -> None:
        try:
            ok = self.pattern % 1 != self.pattern % 2
        except (TypeError, ValueError):
            ok = False
        _require(
            ok, "degla_json.pattern", self.pattern, "one number, e.g. train2014/COCO_train2014_%012d.jpg"
        )
        _require(self.min_negatives >= 0, "degla_json.min_negatives", self.min_negatives, ">= 0")


@dataclass(frozen=True, kw_only=True)
class NegclipTsvConfig:
    """NegCLIP's training files, negatives with the captions."""

    images: str = ""
    """Folder that the file's paths start from, or COCO's own folder."""
    annotations: dict[str, str] = field(default_factory=dict)
    """TSV file of each split, e.g. {train: train_neg_clip.tsv, val: valid_neg_clip.tsv}."""


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Job `prepare`: a source becomes images + captions (+ rejects)."""

    source: Literal["scenes", "flickr8k", "coco", "parquet", "webdataset", "degla_json", "negclip_tsv"]
    """Which source; its settings stand under the same name."""
    output: str
    """Folder to write, any URI pyarrow opens."""
    scenes: ScenesConfig = field(default_factory=ScenesConfig)
    flickr8k: Flickr8kConfig = field(default_factory=Flickr8kConfig)
    coco: CocoConfig = field(default_factory=CocoConfig)
    parquet: ParquetConfig = field(default_factory=ParquetConfig)
    webdataset: WebdatasetConfig = field(default_factory=WebdatasetConfig)
    degla_json: DeglaJsonConfig = field(default_factory=DeglaJsonConfig)
    negclip_tsv: NegclipTsvConfig = field(default_factory=NegclipTsvConfig)
    num_shards: int = 8
    """Shards that the work is cut into; a resumed run redoes at most the unfinished ones."""
    short_side: int | None = None
    """Re-encode larger pictures to this short side in pixels; none keeps the files as they are."""
    max_image_pixels: int = 89_478_485
    """A picture with more pixels than this is rejected before it is decoded."""
    max_reject_fraction: float = 0.05
    """Stop when more than this fraction of the rows is rejected."""
    limit: int | None = None
    """Use only so many pictures of the source, the first of each split in proportion; none uses all."""
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        _require(self.num_shards >= 1, "num_shards", self.num_shards, "at least 1")
        _require(
            0 <= self.max_reject_fraction <= 1, "max_reject_fraction", self.max_reject_fraction, "0 to 1"
        )
        _require(self.limit is None or self.limit >= 1, "limit", self.limit, "at least 1, or none")
        _require(
            self.short_side is None or self.short_side >= 1,
            "short_side",
            self.short_side,
            "at least 1 pixel, or none",
        )
        _require(self.max_image_pixels >= 1, "max_image_pixels", self.max_image_pixels, "at least 1")


@dataclass(frozen=True, kw_only=True)
class VLLMConfig:
    """vLLM engines, one a Ray actor."""

    model: str = "models/smollm2-135m"
    """Folder of a language model, the same on every node, or its name on the Hugging Face hub."""
    python: str | None = None
    """Interpreter that has vLLM, e.g. .venv-vllm/bin/python; none: the one that runs the job."""
    min_actors: int = 1
    """Engines, at least."""
    max_actors: int = 1
    """Engines, at most; Ray starts more of them while work waits."""
    tensor_parallel_size: int = 1
    """GPUs that share a layer."""
    pipeline_parallel_size: int = 1
    """Groups of GPUs that layers are spread over."""
    accelerator_type: str | None = None
    """Ray's name of the GPU to run on, e.g. A100; none: any."""
    cpus_per_actor: int = 1
    """CPUs of an engine where there are no GPUs."""
    quantization: str | None = None
    """vLLM's quantization, e.g. fp8 or awq; none: as the model's folder says."""
    max_model_len: int = 2048
    """Tokens of prompt and answer, at most."""
    gpu_memory_utilization: float = 0.9
    """Share of a GPU's memory that an engine takes."""
    cpu_kv_cache_gib: int = 1
    """GiB of an engine's key-value cache where there are no GPUs."""
    enforce_eager: bool = False
    """Start faster and run slower: no compilation, no CUDA graphs."""

    def __post_init__(self) -> None:
        _require(
            1 <= self.min_actors <= self.max_actors,
            "vllm.min_actors",
            self.min_actors,
            "1 <= min_actors <= max_actors",
        )


@dataclass(frozen=True, kw_only=True)
class OpenAIConfig:
    """Any server that speaks OpenAI's chat API."""

    base_url: str = "http://127.0.0.1:8000/v1"
    """Address of the API."""
    model: str = ""
    """Model name that the server knows."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the key; a server without keys needs none."""
    concurrency: int = 64
    """Requests under way at a time."""
    max_retries: int = 5
    """Times that a request is repeated after a refused connection, status 408, 409, 429 or 5xx."""


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """What language models are asked and how often (engines `vllm` and `openai`)."""

    shots: int = 12
    """Examples before the caption."""
    temperature: float = 0.7
    """Of sampling."""
    top_p: float = 0.95
    """Probability mass that is sampled from."""
    max_tokens: int = 64
    """Tokens of an answer, at most."""
    attempts: int = 3
    """Times that a (caption, kind) is asked, with another seed each, until an answer passes the checks."""
    timeout_s: float = 300.0
    """Seconds after which a request is given up."""
    stall_s: float = 1800.0
    """Seconds without any answer after which the job gives up; starting an engine counts."""
    fill_with_rules: bool = False
    """Where no attempt passed, take the rule engine's negative (its rows say so)."""
    retry_failed: bool = False
    """Ask again what ended in an error, or for one of `retry_reasons`, also in a finished folder."""
    retry_reasons: list[RejectReason] = field(default_factory=list)
    """Reasons of rejection to ask again for, with `retry_failed`."""
    estimate: int | None = None
    """Only ask for so many captions, write nothing, and tell what all would take."""
    max_gpu_hours: float | None = None
    """Stop cleanly when the engines have run for so long together; none: no limit. A rerun goes on."""
    price_per_gpu_hour: float = 0.0
    """For the estimate and the report, in your currency."""

    def __post_init__(self) -> None:
        _require(1 <= self.attempts <= 100, "generation.attempts", self.attempts, "1 to 100")
        _require(self.shots >= 0, "generation.shots", self.shots, "at least 0")
        _require(self.timeout_s > 0, "generation.timeout_s", self.timeout_s, "more than 0 seconds")
        _require(
            self.estimate is None or self.estimate >= 1,
            "generation.estimate",
            self.estimate,
            "at least 1, or none",
        )
        _require(
            not self.retry_reasons or self.retry_failed,
            "generation.retry_reasons",
            [str(reason) for reason in self.retry_reasons],
            "none without generation.retry_failed",
        )


@dataclass(frozen=True, kw_only=True)
class NegativesConfig:
    """Job `negatives`: captions become negative captions (+ rejects)."""

    prepared: str
    """Folder that `prepare` wrote."""
    output: str
    """Folder to write, any URI pyarrow opens."""
    engine: Literal["rules", "given", "vllm", "openai", "scripted"] = "rules"
    """What writes the negatives; `rules` needs no model, `given` takes the source's own, `scripted` tests."""
    kinds: list[Kind] = field(default_factory=lambda: list(Kind))
    """Kinds of negative to make."""
    per_kind: int = 2
    """Distinct negatives of one kind for one caption, at most."""
    seed: int = 0
    """Seed of the engine's choices; with the caption it decides them."""
    num_shards: int = 8
    """Shards that the work is cut into."""
    vllm: VLLMConfig = field(default_factory=VLLMConfig)
    openai: OpenAIConfig = field(default_factory=OpenAIConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    ray: RayConfig = field(default_factory=RayConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which open_clip model, and from which weights."""

    name: str = "scenes-base"
    """open_clip name, path of an open_clip JSON config, path of an exported folder, or `scenes-base`."""
    pretrained: str | None = None
    """open_clip tag or checkpoint file (.pt, .safetensors); none: random, or the folder's own weights."""
    random_init: bool = False
    """Start a folder's or `scenes-base`'s architecture from random weights."""
    allow_activation_mismatch: bool = False
    """Load weights made with QuickGELU into a GELU model, or the reverse, anyway."""


ABLATIONS: dict[str, dict[str, Any]] = {
    "degla_no_igc": {"lambda_igc": 0.0},
    "degla_no_tgc": {"lambda_tgc": 0.0},
    "degla_no_distill": {"lambda_distill": 0.0},
    "degla_frozen_teacher": {},  # TeacherConfig.kind, set by TrainConfig
    "degla_released": {"tgc_negatives": "released", "distill_reduction": "sum", "lambda_distill": 0.005},
}
"""Objectives that are `degla` but for these settings, which they override."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What is minimised. The defaults are the published settings of each method."""

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
    """`clip` has no negatives; `degla_...` are ablations, which override the settings that they name."""
    negatives_per_caption: int | None = None
    """K: negatives drawn for a caption at each visit; none: 0 with clip, 1 with negclip, else 4."""
    lambda_igc: float = 0.1
    """Weight of image-grounded contrast (degla)."""
    lambda_tgc: float = 0.1
    """Weight of text-grounded contrast (degla)."""
    lambda_distill: float = 1.28
    """Weight of the distance to the teacher (degla, mean form; 1.28 = the released 0.005 * 256)."""
    tgc_temperature: float = 10.0
    """Inverse temperature of text-grounded contrast."""
    tgc_negatives: Literal["own", "released"] = "own"
    """Whose negatives text-grounded contrast sees: the caption's own (paper) or as the released code."""
    distill_reduction: Literal["mean", "sum"] = "mean"
    """`mean` keeps its meaning at any batch size; `sum` is the released code's."""
    focal_gamma: float = 0.0
    """Focal exponent of image- and text-grounded contrast; 0 is plain cross-entropy (degla)."""
    label_smoothing: float = 0.0
    """Share of the target spread over caption and own negatives in both contrasts, 0 to 1 (degla)."""
    lambda_cmr: float = 0.2
    """Weight of the cross-modal ranking hinge (ceclip)."""
    lambda_imc: float = 0.3
    """Weight of the intra-modal contrast (ceclip)."""
    cmr_threshold_max: float = 10.0
    """Largest adaptive margin of the hinge, in logits (ceclip)."""
    imc_target: Literal["paper", "released"] = "paper"
    """What intra-modal contrast aims at: the pair, or the first negative as the released code (ceclip)."""

    def __post_init__(self) -> None:
        for setting, value in ABLATIONS.get(self.name, {}).items():
            object.__setattr__(self, setting, value)
        K = self.num_negatives
        _require(K >= 0, "objective.negatives_per_caption", K, ">= 0")
        _require(
            self.name != "clip" or K == 0,
            "objective.negatives_per_caption",
            K,
            "0, or another objective than clip",
        )
        _require(0 <= self.label_smoothing <= 1, "objective.label_smoothing", self.label_smoothing, "0 to 1")
        _require(self.focal_gamma >= 0, "objective.focal_gamma", self.focal_gamma, ">= 0")

    @property
    def family(self) -> Literal["clip", "negclip", "ceclip", "degla"]:
        """The method; ablations belong to `degla`."""
        return "degla" if self.name in ABLATIONS else self.name  # type: ignore[return-value]

    @property
    def num_negatives(self) -> int:
        """K. Not set at construction: a default that depends on `name` must stay open until that is known."""
        if self.negatives_per_caption is not None:
            return self.negatives_per_caption
        return {"clip": 0, "negclip": 1}.get(self.name, 4)

    @property
    def wants_teacher(self) -> bool:
        """Whether a term with a weight needs the teacher's features."""
        return self.family == "degla" and bool(self.lambda_tgc or self.lambda_distill)


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The teacher that DeGLA holds its student to."""

    kind: Literal["ema", "frozen", "none"] = "ema"
    """`ema` follows the student; `frozen` stays at its starting weights; `none` where no term needs one."""
    decay: float = 0.9996
    """Decay per `reference_batch` samples (ema)."""
    reference_batch: int = 256
    """Samples to which `decay` refers."""

    def __post_init__(self) -> None:
        _require(0 < self.decay <= 1, "teacher.decay", self.decay, "more than 0 and at most 1")
        _require(self.reference_batch >= 1, "teacher.reference_batch", self.reference_batch, "at least 1")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine to 0."""

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
    """Largest global gradient norm; none does not clip."""


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """Which weights are trained, and how fast; the default is all alike."""

    freeze: Literal["none", "image", "text"] = "none"
    """Tower whose weights stay."""
    freeze_image_blocks: int = 0
    """First blocks of the image tower that stay, with the embedding before them."""
    freeze_text_blocks: int = 0
    """First blocks of the text tower that stay, with the embedding before them."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each block to the one below it; 1 is the same rate everywhere."""
    lora_rank: int = 0
    """Rank of LoRA adapters on attention and MLPs; all else but logit_scale then stays. 0 trains in full."""
    lora_alpha: float | None = None
    """An adapter's product counts alpha / rank times; none means alpha = rank."""
    lora_rate: float = 10.0
    """Factor of the learning rate for adapters."""

    def __post_init__(self) -> None:
        for setting in ("freeze_image_blocks", "freeze_text_blocks", "lora_rank"):
            _require(getattr(self, setting) >= 0, f"adapt.{setting}", getattr(self, setting), ">= 0")
        _require(0 < self.layer_decay <= 1, "adapt.layer_decay", self.layer_decay, "above 0, at most 1")
        _require(self.lora_rate > 0, "adapt.lora_rate", self.lora_rate, "above 0")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is trained on."""

    prepared: str
    """Folder that `prepare` wrote."""
    negatives: str | None = None
    """Folder that `negatives` wrote; may be none only for objectives without negatives."""
    neighbours: str | None = None
    """Folder that `neighbours` wrote: adds a hard-negative picture to each (objective negclip)."""
    split: str = "train"
    """Split of the captions to train on."""
    crop_scale_min: float = 0.9
    """RandomResizedCrop's smallest share of the picture's area (0 to 1)."""
    decode_tasks: int = 2
    """Ray Data tasks that decode for one worker at a time."""
    prefetch_batches: int = 4
    """Batches decoded ahead of each worker."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When a run's whole state is saved."""

    every_steps: int | None = None
    """Save every so many optimizer steps."""
    every_minutes: float | None = 10.0
    """Save every so many minutes."""
    keep: int = 2
    """Checkpoints kept."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Job `train`."""

    name: str
    """Name of the run; its folder also carries the config's fingerprint."""
    data: DataConfig
    output: str = "runs/train"
    """Folder of the runs, any URI pyarrow opens."""
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    ray: RayConfig = field(default_factory=RayConfig)
    global_batch_size: int = 256
    """Samples of one optimizer step over all workers."""
    epochs: float = 5.0
    """Passes over the split; ignored where `max_steps` is set."""
    max_steps: int | None = None
    """Optimizer steps of the whole run, schedule included."""
    accumulation_steps: int = 1
    """Pieces that a worker's rows of a step go through the model in: less memory, the same gradients."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast type; losses are always fp32."""
    seed: int = 42
    """Seed of initialisation, order, augmentation and drawing of negatives."""
    num_workers: int = 1
    """Ray Train workers (world_size)."""
    cpus_per_worker: float = 1.0
    """Logical CPUs reserved for a worker."""
    use_gpu: bool = False
    """One GPU for each worker (nccl) instead of CPU (gloo)."""
    resume: Literal["auto", "never"] = "auto"
    """`auto` continues a run of the same name and config; `never` refuses if there is one."""

    def __post_init__(self) -> None:
        _require(self.num_workers >= 1, "num_workers", self.num_workers, "at least 1")
        _require(
            self.global_batch_size % self.num_workers == 0,
            "global_batch_size",
            self.global_batch_size,
            f"a multiple of num_workers ({self.num_workers})",
        )
        pieces = self.num_workers * self.accumulation_steps
        _require(self.accumulation_steps >= 1, "accumulation_steps", self.accumulation_steps, "at least 1")
        _require(
            self.global_batch_size % pieces == 0,
            "accumulation_steps",
            self.accumulation_steps,
            f"a divisor of global_batch_size / num_workers ({self.global_batch_size // self.num_workers})",
        )
        _require(
            self.objective.num_negatives == 0 or self.data.negatives is not None,
            "data.negatives",
            None,
            f"a folder that `negatives` wrote: objective {self.objective.name!r} needs negatives",
        )
        _require(
            self.data.neighbours is None or self.objective.family == "negclip",
            "data.neighbours",
            self.data.neighbours,
            f"none: objective {self.objective.name!r} has no hard-negative pictures (negclip has)",
        )
        if self.objective.name == "degla_frozen_teacher":
            object.__setattr__(self, "teacher", replace(self.teacher, kind="frozen"))
        _require(
            self.teacher.kind != "none" or not self.objective.wants_teacher,
            "teacher.kind",
            "none",
            "ema or frozen, or objective.lambda_tgc = objective.lambda_distill = 0",
        )


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Job `evaluate`: a model's scores on every benchmark of a suite."""

    model: ModelConfig
    output: str
    """Folder to write scores and summary to."""
    suite: str | None = None
    """Folder of test sets; `prepare --source scenes` writes one at OUTPUT/tests."""
    prepared: str | None = None
    """Folder that `prepare` wrote: adds retrieval over its captions of `split`."""
    negatives: str | None = None
    """Folder that `negatives` wrote for `prepared`: adds caption against own negative, one subset a kind."""
    split: str = "val"
    """Split of `prepared` to evaluate on."""
    label: str = ""
    """Name of this model in tables; empty means the model's own."""
    benchmarks: list[str] = field(default_factory=lambda: ["all"])
    """Names of benchmarks to run, or [all]."""
    num_actors: int = 2
    """Ray Data actors that encode."""
    cpus_per_actor: float = 1.0
    """Logical CPUs of an actor."""
    use_gpu: bool = False
    """One GPU for each actor."""
    batch_size: int = 128
    """Images or texts encoded at a time."""
    bootstrap_samples: int = 1000
    """Resamples behind a confidence interval."""
    stall_minutes: float = 20.0
    """No encoded batch for this many minutes is an error."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        _require(
            self.suite is not None or self.prepared is not None,
            "suite",
            None,
            "a folder of test sets, or `prepared`: there is nothing to evaluate on",
        )
        _require(
            self.negatives is None or self.prepared is not None,
            "prepared",
            None,
            "the folder that `negatives` was made from",
        )
        for setting in ("num_actors", "batch_size", "bootstrap_samples"):
            _require(getattr(self, setting) >= 1, setting, getattr(self, setting), "at least 1")
        _require(self.cpus_per_actor > 0, "cpus_per_actor", self.cpus_per_actor, "more than 0")
        _require(self.stall_minutes > 0, "stall_minutes", self.stall_minutes, "more than 0")


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Job `compare`: one table, plots and HTML over several evaluations."""

    evaluations: list[str]
    """Folders that `evaluate` wrote, MLflow ids of its runs, or, with `suite`, models; first the base."""
    output: str = "runs/compare"
    """Folder for report.md, report.html and the plots."""
    suite: str | None = None
    """Test sets on which entries that are models (names, exported folders) are evaluated first."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    ray: RayConfig = field(default_factory=RayConfig)


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Job `export`: a model in another program's form."""

    model: ModelConfig
    output: str
    """Folder to write."""
    format: Literal["open_clip", "huggingface", "mlflow"] = "open_clip"
    """`open_clip` opens as local-dir:FOLDER, `huggingface` as CLIPModel, `mlflow` as a pyfunc."""


@dataclass(frozen=True, kw_only=True)
class ExportDeglaJsonConfig:
    """Job `export_degla_json`: captions and their negatives as DeGLA's released JSON."""

    negatives: str
    """Folder that `negatives` wrote."""
    prepared: str
    """Folder that `prepare` wrote and `negatives` was made from; its pictures are COCO's."""
    output: str
    """JSON file to write, any URI pyarrow opens."""
    split: str = "train"
    """Split whose captions are written."""
    min_negatives: int = 4
    """Captions with fewer negatives are left out; the released training code draws 4."""

    def __post_init__(self) -> None:
        _require(self.min_negatives >= 1, "min_negatives", self.min_negatives, "at least 1")


@dataclass(frozen=True, kw_only=True)
class NeighboursConfig:
    """Job `neighbours`: each picture's nearest other ones, as NegCLIP's hard-negative images."""

    prepared: str
    """Folder that `prepare` wrote."""
    output: str
    """Folder to write, any URI pyarrow opens."""
    model: ModelConfig
    """What decides which pictures are near."""
    split: str = "train"
    """Split whose pictures are compared."""
    count: int = 3
    """Neighbours of each picture."""
    num_actors: int = 2
    """Ray Data actors that encode."""
    cpus_per_actor: float = 1.0
    """Logical CPUs of an actor."""
    use_gpu: bool = False
    """One GPU for each actor."""
    batch_size: int = 128
    """Pictures encoded at a time."""
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        _require(self.count >= 1, "count", self.count, "at least 1")


@dataclass(frozen=True, kw_only=True)
class InterpolateConfig:
    """Job `interpolate`: models on the line between two, each exported and evaluated (WiSE-FT)."""

    first: str
    """Model at alpha 0, usually the one that was started from: a name or an exported folder."""
    second: str
    """Model at alpha 1."""
    suite: str
    """Folder of test sets that every point is measured on."""
    output: str = "runs/interpolate"
    """Folder for the models, their evaluations and the report."""
    alphas: list[float] = field(default_factory=lambda: [0.0, 0.25, 0.5, 0.75, 1.0])
    """Points: weights are (1 - alpha) * first + alpha * second; the first point is the report's base."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        _require(bool(self.alphas), "alphas", self.alphas, "at least one")


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
        _require(self.num_trials >= 1, "num_trials", self.num_trials, "at least 1")
        _require(
            self.max_concurrent_trials >= 1, "max_concurrent_trials", self.max_concurrent_trials, "at least 1"
        )
        _require(0 <= self.max_zero_shot_loss <= 1, "max_zero_shot_loss", self.max_zero_shot_loss, "0 to 1")


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


@dataclass(frozen=True, kw_only=True)
class PretrainScenesConfig:
    """Job `pretrain_scenes`: the small base model that the demo starts from."""

    output: str = "runs/pretrain_scenes"
    """Folder of the pictures and the run."""
    export: str = "degla_ray/model/pretrained/scenes_base"
    """Folder to write the model to; the default replaces the committed one."""
    scenes: ScenesConfig = field(default_factory=lambda: ScenesConfig(seed=1000))
    """Pictures to train on; another seed than any demo's, so that its tests stay unseen."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    global_batch_size: int = 128
    """Samples of one optimizer step over all workers."""
    max_steps: int = 1000
    """Optimizer steps."""
    crop_scale_min: float = 0.9
    """RandomResizedCrop's smallest share of the picture's area (0 to 1)."""
    num_workers: int = 2
    """Ray Train workers."""
    seed: int = 0
    """Seed of initialisation, order and augmentation."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    ray: RayConfig = field(default_factory=RayConfig)
