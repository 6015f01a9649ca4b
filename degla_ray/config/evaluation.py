"""Settings of jobs `evaluate`, `compare`, `interpolate`, `export` and `fetch_benchmarks`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from degla_ray.config.shared import ComputeConfig, RayConfig, TrackingConfig, require
from degla_ray.config.training import ModelConfig


@dataclass(frozen=True, kw_only=True)
class PublishedConfig:
    """Published benchmarks, read from their original files; the defaults are the official protocols."""

    data: str | None = None
    """Folder written by `fetch_benchmarks`, with annotations/, images/ and zeroshot/."""
    images: dict[str, str] = field(default_factory=dict)
    """Image collection (e.g. coco_val2017) -> its folder, if it is not DATA/images/COLLECTION."""
    nlvr: str | None = None
    """NLVR folder with dev.json and images/."""
    class_folders: list[str] = field(default_factory=list)
    """Datasets with one folder per class; each becomes a zero-shot benchmark."""
    webdatasets: list[str] = field(default_factory=list)
    """Datasets of tar shards with classnames.txt, in CLIP_benchmark's format; each becomes a zero-shot
    benchmark."""
    swap_obj_items: Literal[245, 246] = 245
    """Items of SugarCrepe's swap_obj: 245 as released now, or 246 as counted in older papers."""
    valse_votes: int = 2
    """Annotators (0 to 3) who must have chosen the caption for VALSE to keep an item; 0 keeps all."""
    aro_average: Literal["macro", "micro"] = "macro"
    """Average of ARO's VG-Relation and VG-Attribution: `macro` over relations and attribute pairs, `micro`
    over items."""
    zero_shot_scores: Literal["standard", "int_logits"] = "standard"
    """`standard`: cosine similarities; `int_logits`: 100 times these, cut to integers, as the paper's table
    seems to use."""
    order_seed: int = 0
    """Seed of the shuffles of COCO-Order and Flickr30k-Order."""

    def __post_init__(self) -> None:
        require(0 <= self.valse_votes <= 3, "published.valse_votes", self.valse_votes, "0 to 3")

    @property
    def given(self) -> bool:
        """Whether any published benchmark is configured."""
        return self.data is not None or bool(self.nlvr or self.class_folders or self.webdatasets)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Job `evaluate`: scores of one model on every configured benchmark."""

    model: ModelConfig
    output: str
    """Folder to write the scores and the summary to."""
    suite: str | None = None
    """Folder of test sets; `prepare --source scenes` writes one to OUTPUT/tests."""
    prepared: str | None = None
    """Folder written by `prepare`; adds retrieval over its captions of `split`."""
    negatives: str | None = None
    """Folder written by `negatives` for `prepared`; adds each caption against its own negatives, one subset
    per kind."""
    split: str | None = "val"
    """Split of `prepared` to evaluate on; in a chain, null evaluates on other test sets only."""
    published: PublishedConfig = field(default_factory=PublishedConfig)
    label: str = ""
    """Name of the model in tables; empty takes the model's own name."""
    benchmarks: list[str] = field(default_factory=lambda: ["all"])
    """Benchmarks to run; [all] runs every benchmark whose files are present."""
    cache: str | None = None
    """Folder of cached features, shared by all evaluations; null caches in `output` while the evaluation
    runs."""
    num_actors: int = 2
    """Ray Data actors that encode images and texts."""
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    batch_size: int = 128
    """Images or texts per batch."""
    bootstrap_samples: int = 1000
    """Bootstrap resamples per confidence interval."""
    stall_minutes: float = 20.0
    """Minutes without an encoded batch after which the job fails."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        require(
            self.suite is not None or self.prepared is not None or self.published.given,
            "suite",
            None,
            "a folder of test sets, or `prepared` or `published.data`: there is nothing to evaluate on",
        )
        require(
            self.negatives is None or self.prepared is not None,
            "prepared",
            None,
            "the folder that `negatives` was made from",
        )
        require(
            self.split is not None or self.prepared is None, "split", None, "a split of `prepared`, e.g. val"
        )
        for setting in ("num_actors", "batch_size", "bootstrap_samples"):
            require(getattr(self, setting) >= 1, setting, getattr(self, setting), "at least 1")
        require(self.stall_minutes > 0, "stall_minutes", self.stall_minutes, "more than 0")


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Job `compare`: tables, plots and an HTML report over several evaluations."""

    evaluations: list[str]
    """Folders written by `evaluate`, MLflow ids of its runs, or, with `suite`, models; the first is the
    base."""
    output: str = "runs/compare"
    """Folder for report.md, report.html and the plots."""
    suite: str | None = None
    """Test sets on which entries that are models (names or exported folders) are evaluated first."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    ray: RayConfig = field(default_factory=RayConfig)


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Job `export`: a model in another program's format."""

    model: ModelConfig
    output: str
    """Folder to write to."""
    format: Literal["open_clip", "huggingface", "mlflow"] = "open_clip"
    """`open_clip` loads as local-dir:FOLDER, `huggingface` as CLIPModel, `mlflow` as a pyfunc."""


@dataclass(frozen=True, kw_only=True)
class InterpolateConfig:
    """Job `interpolate`: models on the line between two weights, each exported and evaluated (WiSE-FT)."""

    first: str
    """Model at alpha 0, usually the one that training started from: a name or an exported folder."""
    second: str
    """Model at alpha 1."""
    suite: str
    """Folder of test sets to evaluate every point on."""
    output: str = "runs/interpolate"
    """Folder for the models, their evaluations and the report."""
    alphas: list[float] = field(default_factory=lambda: [0.0, 0.25, 0.5, 0.75, 1.0])
    """Points: the weights are (1 - alpha) * first + alpha * second; the first point is the report's base."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
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
