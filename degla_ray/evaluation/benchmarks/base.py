"""What every benchmark provides, and how a decision is made from scores.

A benchmark names the images and texts it needs; somebody encodes each distinct one once, over all
benchmarks of a call; the benchmark turns the features into one row an item. Scoring is a pure function.

Decisions are made on the float32 numbers that are stored, so the `scores` dataset alone reproduces them.

Shapes: N images or items, M texts, K candidates of an item, D feature dimension.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
import pyarrow as pa

from degla_ray.encoding.features import FeatureTable
from degla_ray.schema import SCORES


class Rule(StrEnum):
    """When the true candidate, number 0, counts as chosen."""

    STRICT = "strict"  # greater than every other: a tie is wrong (SugarCrepe, VALSE, ARO relations)
    FIRST_ARGMAX = "first_argmax"  # the first of the greatest: a tie is correct (ARO order)


def decide(scores_NK: np.ndarray, rule: Rule) -> np.ndarray:
    """Whether candidate 0 is chosen: bool [N] from float32 [N, K], K >= 2. NaN is never correct."""
    true_N, best_foil_N = scores_NK[:, 0], scores_NK[:, 1:].max(axis=1)
    return true_N > best_foil_N if rule is Rule.STRICT else true_N >= best_foil_N


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What a benchmark makes of features."""

    scores: pa.Table
    """Schema SCORES, one row an item that could be scored."""
    missing: Mapping[str, int]
    """Subset -> items left out because their image could not be read; subsets with none may be absent."""


class Benchmark(Protocol):
    """A test set."""

    @property
    def name(self) -> str:
        """Unique within a call."""

    @property
    def subsets(self) -> Sequence[str]:
        """Every subset it reports, also one that has no items."""

    @property
    def protocol(self) -> str:
        """The rule in a few words, for tables."""

    @property
    def averages(self) -> Mapping[str, Sequence[str]]:
        """Published averages by name -> what each is the mean of: subsets, or averages above it."""

    def image_keys(self) -> set[str]:
        """`image_key` of every image it needs."""

    def texts(self) -> set[str]:
        """Every distinct text it needs."""

    def chance(self, subset: str) -> float | None:
        """Accuracy of guessing, 0 to 1; None where there is no such number or no item."""

    def score(self, features: FeatureTable) -> Scored:
        """Per-item scores and decisions; pure."""

    def shown(self) -> Iterable[Shown]:
        """What each item shows, for a reader of reports; subsets over the same items are named once."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One item as a person would see it.

    Attributes:
        subset, item_id: as in the item's row of `scores`.
        images: `image_key` of its images, the true one first.
        texts: its texts, the true one first.
    """

    subset: str
    item_id: str
    images: tuple[str, ...]
    texts: tuple[str, ...]


def dot_NK(img_ND: np.ndarray, txt_NKD: np.ndarray) -> np.ndarray:
    """Similarity of each item's image with its own candidates, float32 [N, K].

    Summed elementwise in float64, not by a matrix product: BLAS may add the columns of one product in
    different orders, and then equal candidates would not tie.
    """
    product_NKD = img_ND[:, None, :].astype(np.float64) * txt_NKD
    return product_NKD.sum(axis=-1).astype(np.float32)


def scores_table(
    benchmark: str,
    subsets: Sequence[str],
    item_ids: Sequence[str],
    images: Sequence[str],
    candidate_scores: Sequence[np.ndarray] | np.ndarray,
    correct: np.ndarray,
    groups: Sequence[str | None] | None = None,
) -> pa.Table:
    """Rows of schema SCORES.

    Args:
        benchmark, subsets, item_ids, correct: see SCORES.
        images: what each item shows. Intervals and tests take the items of one image as one observation.
        candidate_scores: of each item.
        groups: of each item; a null is in none. None: no subset is a mean over groups.
    """
    lengths = np.fromiter((len(row) for row in candidate_scores), dtype=np.int64, count=len(item_ids))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    flat = np.concatenate(candidate_scores) if len(item_ids) else np.zeros(0)
    columns = [
        pa.array([benchmark] * len(item_ids), pa.string()),
        pa.array(subsets, pa.string()),
        pa.array(item_ids, pa.string()),
        pa.array(images, pa.string()),
        pa.array(groups or [None] * len(item_ids), pa.string()),
        pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat.astype(np.float32))),
        pa.array(np.asarray(correct, dtype=bool)),
    ]
    return pa.Table.from_arrays(columns, names=SCORES.names).cast(SCORES)
