"""The interface of a benchmark, and how scores become decisions.

A benchmark names the images and texts that it needs. The caller encodes each distinct one once, across all
benchmarks of a run, and the benchmark turns the features into one row per item. Scoring is a pure function.

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
    """Condition under which the true candidate, number 0, counts as chosen."""

    STRICT = "strict"  # it scores higher than every other; a tie is wrong (SugarCrepe, VALSE, ARO relations)
    FIRST_ARGMAX = "first_argmax"  # it is the first of the highest; a tie is correct (ARO order)


def decide(scores_NK: np.ndarray, rule: Rule) -> np.ndarray:
    """Return whether candidate 0 is chosen: bool [N] from float32 [N, K], K >= 2. NaN is never correct."""
    true_N, best_foil_N = scores_NK[:, 0], scores_NK[:, 1:].max(axis=1)
    return true_N > best_foil_N if rule is Rule.STRICT else true_N >= best_foil_N


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Result of scoring a benchmark."""

    scores: pa.Table
    """Schema SCORES, one row per item that could be scored."""
    missing: Mapping[str, int]
    """Subset -> items left out because their image could not be read; may omit subsets that lost none."""


class Benchmark(Protocol):
    """A test set."""

    @property
    def name(self) -> str:
        """Name, unique within a run."""

    @property
    def subsets(self) -> Sequence[str]:
        """Every subset that the benchmark reports, including empty ones."""

    @property
    def protocol(self) -> str:
        """Decision rule in a few words, for tables."""

    @property
    def averages(self) -> Mapping[str, Sequence[str]]:
        """Published averages: name -> members, which are subsets or averages that precede it."""

    def image_keys(self) -> set[str]:
        """Return the `image_key` of every image that the benchmark needs."""

    def texts(self) -> set[str]:
        """Return every distinct text that the benchmark needs."""

    def chance(self, subset: str) -> float | None:
        """Return the accuracy of random guessing, 0 to 1; None if undefined or if the subset is empty."""

    def score(self, features: FeatureTable) -> Scored:
        """Return each item's scores and decision. Pure."""

    def shown(self) -> Iterable[Shown]:
        """Yield what each item shows to a reader of reports; subsets over the same items yield them once."""


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
    """Return the similarity of each item's image with the item's own candidates, float32 [N, K].

    The products are summed elementwise in float64 rather than by a matrix product: BLAS may add the columns
    of one product in different orders, and equal candidates would then not tie.
    """
    product_NKD = img_ND[:, None, :].astype(np.float64) * txt_NKD
    return product_NKD.sum(axis=-1).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class ScoredItems:
    """Columns of SCORES that say which items were scored, one value per item.

    Attributes:
        subsets, ids: see SCORES.
        images: image of each item. Intervals and tests treat the items of one image as one observation.
        groups: group of each item, None for an item without one; None if no subset is a mean over groups.
        rivals: highest-scoring wrong candidate of each item; None if the items list their candidates.
    """

    subsets: Sequence[str]
    ids: Sequence[str]
    images: Sequence[str]
    groups: Sequence[str | None] | None = None
    rivals: Sequence[str | None] | None = None


def scores_table(
    benchmark: str,
    items: ScoredItems,
    candidate_scores: Sequence[np.ndarray] | np.ndarray,
    correct: np.ndarray,
) -> pa.Table:
    """Build rows of schema SCORES.

    Args:
        benchmark: name of the benchmark.
        items: the items.
        candidate_scores: scores of each item's candidates.
        correct: decision of each item.
    """
    count = len(items.ids)
    lengths = np.fromiter((len(row) for row in candidate_scores), dtype=np.int64, count=count)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    flat = np.concatenate(candidate_scores) if count else np.zeros(0)
    columns = [
        pa.array([benchmark] * count, pa.string()),
        pa.array(items.subsets, pa.string()),
        pa.array(items.ids, pa.string()),
        pa.array(items.images, pa.string()),
        pa.array(items.groups or [None] * count, pa.string()),
        pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat.astype(np.float32))),
        pa.array(np.asarray(correct, dtype=bool)),
        pa.array(items.rivals or [None] * count, pa.string()),
    ]
    return pa.Table.from_arrays(columns, names=SCORES.names).cast(SCORES)
