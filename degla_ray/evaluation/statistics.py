"""Uncertainty of accuracies: bootstrap intervals and the paired test between two models. Pure numpy/scipy."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

LEVEL = 0.95


def bootstrap_means(correct: np.ndarray, samples: int, name: str) -> np.ndarray:
    """Means of `samples` resamples with replacement of bool [n], n >= 1: float64 [samples].

    A resample of n zeros and ones with k ones has Binomial(n, k/n) ones, so this draws exactly the
    bootstrap's distribution without making the resamples (n * samples numbers).

    Args:
        correct: bool [n].
        samples: resamples.
        name: seeds the draws: the same name and data give the same interval everywhere.
    """
    n, ones = len(correct), int(np.count_nonzero(correct))
    return np.random.default_rng(_seed(name)).binomial(n, ones / n, size=samples) / n


def bootstrap_group_means(
    correct: np.ndarray, groups: Sequence[str], samples: int, name: str
) -> tuple[float, np.ndarray]:
    """Mean over groups of the groups' means, and `samples` resamples of it, each group resampled on its own.

    Args:
        correct: bool [n], n >= 1.
        groups: of each item.
        samples, name: see `bootstrap_means`.
    """
    _, group_N = np.unique(np.asarray(groups), return_inverse=True)
    size_G = np.bincount(group_N)
    share_G = np.bincount(group_N, weights=correct) / size_G
    rng = np.random.default_rng(_seed(name))
    drawn_SG = rng.binomial(size_G, share_G, size=(samples, len(size_G))) / size_G
    return float(share_G.mean()), drawn_SG.mean(axis=1)


def interval(means: np.ndarray) -> tuple[float, float]:
    """Percentile interval at LEVEL of bootstrap means."""
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _seed(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """Two models on the same items."""

    only_first: int
    """Items that only the first has right."""
    only_second: int
    """Items that only the second has right."""
    p_value: float
    """Exact two-sided McNemar test: are the two counts a fair coin's? 1.0 where they never differ."""


def mcnemar(first: Sequence[bool] | np.ndarray, second: Sequence[bool] | np.ndarray) -> McNemar:
    """Paired test of two models' decisions on the same items in the same order.

    Source: McNemar 1947, in the exact (binomial) form.

    Raises:
        ValueError: the two have different lengths.
    """
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if a.shape != b.shape:
        raise ValueError(f"{a.shape} and {b.shape} decisions: not the same items")
    only_a, only_b = int(np.sum(a & ~b)), int(np.sum(~a & b))
    differing = only_a + only_b
    p_value = 1.0 if differing == 0 else float(binomtest(only_a, differing, 0.5).pvalue)
    return McNemar(only_first=only_a, only_second=only_b, p_value=p_value)
