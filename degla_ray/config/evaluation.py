"""Settings of `evaluate`, `compare`, `interpolate`, `export` and `fetch_benchmarks`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from degla_ray.config.shared import RayConfig, TrackingConfig, require
from degla_ray.config.training import ModelConfig


@dataclass(frozen=True, kw_only=True)
class PublishedConfig:
    """Published benchmarks from their own files; the defaults are the official protocols."""

    data: str | None = None
    """Folder that `fetch_benchmarks` wrote, with annotations/, images/ and zeroshot/."""
    images: dict[str, str] = field(default_factory=dict)
    """Collection of images, e.g. coco_val2017 -> its folder, where that is not DATA/images/COLLECTION."""
    nlvr: str | None = None
    """Folder of NLVR with dev.json and images/."""
    class_folders: list[str] = field(default_factory=list)
    """Datasets of one folder a class, each a zero-shot benchmark."""
    webdatasets: list[str] = field(default_factory=list)
    """Zero-shot benchmarks as tar shards with classnames.txt, as CLIP_benchmark has them."""
    swap_obj_items: Literal[245, 246] = 245
    """SugarCrepe's swap_obj: as released now, or with the item that older papers count too."""
    valse_votes: int = 2
    """Annotators (0 to 3) that must have chosen the caption for VALSE to keep an item; 0 keeps all."""
    aro_average: Literal["macro", "micro"] = "macro"
    """ARO's VG-Relation and VG-Attribution: mean over relations and pairs, or over items."""
    zero_shot_scores: Literal["standard", "int_logits"] = "standard"
    """Similarities as they are, or 100 times them cut to integers, as the paper's table seems to."""
    order_seed: int = 0
    """Seed of the shuffles of COCO-Order and Flickr30k-Order."""

    def __post_init__(self) -> None:
        require(0 <= self.valse_votes <= 3, "published.valse_votes", self.valse_votes, "0 to 3")

    @property
    def given(self) -> bool:
        """Whether there is anything to evaluate on."""
        return self.data is not None or bool(self.nlvr or self.class_folders or self.webdatasets)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Job `evaluate`: a model's scores on every benchmark that it is given."""

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
    published: PublishedConfig = field(default_factory=PublishedConfig)
    label: str = ""
    """Name of this model in tables; empty means the model's own."""
    benchmarks: list[str] = field(default_factory=lambda: ["all"])
    """Names of benchmarks to run, or [all] that there are files of."""
    cache: str | None = None
    """Folder of features by content, for all evaluations to share; none: this one's own, while it runs."""
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
        for setting in ("num_actors", "batch_size", "bootstrap_samples"):
            require(getattr(self, setting) >= 1, setting, getattr(self, setting), "at least 1")
        require(self.cpus_per_actor > 0, "cpus_per_actor", self.cpus_per_actor, "more than 0")
        require(self.stall_minutes > 0, "stall_minutes", self.stall_minutes, "more than 0")


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
        require(bool(self.alphas), "alphas", self.alphas, "at least one")


@dataclass(frozen=True, kw_only=True)
class FetchConfig:
    """Job `fetch_benchmarks`: the files of published benchmarks, as far as they may be downloaded."""

    output: str
    """Local folder for annotations/, images/ and zeroshot/, to give to `evaluate` as `published.data`."""
    benchmarks: list[str] = field(default_factory=lambda: ["all"])
    """Names of benchmarks or of groups (aro, retrieval, zeroshot), or [all]."""
    images: bool = True
    """Also the images; without them only annotations, a few megabytes."""
    catalogue: str | None = None
    """Another list of files and their places, e.g. with mirrors; null takes the package's own."""

    def __post_init__(self) -> None:
        require(bool(self.benchmarks), "benchmarks", self.benchmarks, "at least one, or [all]")
