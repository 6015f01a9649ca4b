"""Settings of every job that scores models: the test sets, and the hardware that encodes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from degla_ray.config.shared import ComputeConfig, require


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
class ScoringConfig:
    """Test sets that models are scored on, and the actors that encode them."""

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
    benchmarks: list[str] = field(default_factory=lambda: ["all"])
    """Benchmarks to run; [all] runs every benchmark whose files are present."""
    num_actors: int = 2
    """Ray Data actors that encode images and texts."""
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    batch_size: int = 128
    """Images or texts per batch."""

    @property
    def has_tests(self) -> bool:
        """Whether any test set is configured."""
        return self.suite is not None or self.prepared is not None or self.published.given

    def require_scoring(self, prefix: str = "", *, needed: bool = True) -> None:
        """Raise SettingError if these settings cannot work.

        Args:
            prefix: text before the names of the settings, such as `validation.`.
            needed: whether there must be a test set.
        """
        require(
            self.has_tests or not needed,
            f"{prefix}suite",
            None,
            f"a folder of test sets, or `{prefix}prepared` or `{prefix}published.data`: "
            "there is nothing to evaluate on",
        )
        require(
            self.negatives is None or self.prepared is not None,
            f"{prefix}prepared",
            None,
            f"the folder that `{prefix}negatives` was made from",
        )
        require(
            self.split is not None or self.prepared is None,
            f"{prefix}split",
            None,
            f"a split of `{prefix}prepared`, e.g. val",
        )
        require(bool(self.benchmarks), f"{prefix}benchmarks", self.benchmarks, "at least one, or [all]")
        for setting in ("num_actors", "batch_size"):
            require(getattr(self, setting) >= 1, prefix + setting, getattr(self, setting), "at least 1")
