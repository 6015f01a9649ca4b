"""How likely is a negative beside its caption, without the image? Scores, and a set that cannot be guessed.

The images are divided into three folds, with an n-gram model of the captions of each. A caption and its
negatives are scored by the model of the next fold when negatives are selected, and by that of the fold after
it when they are judged: neither model has read the caption, nor the judge what the selection was made with.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from degla_ray.language.ngrams import NGrams, words_of
from degla_ray.stage import shard_of

PLAUSIBILITY_VERSION = 1
"""Part of a negatives folder's identity; raise it whenever scores or the balance change."""
MIN_CAPTIONS = 3000
"""Captions below which an n-gram model of a third of them knows too little to select by."""
FOLDS = 3
TARGET = 0.025
"""The score to aim at. The nearest of many candidates is also the one whose score errs most: a model of other
captions gives 0.025 less, by the figures of `benchmarks/blind_judges.py`."""
NEAREST = 24
"""Candidates nearest to the target that are compared further."""
WORD_WEIGHT = 0.1
SIGN_WEIGHT = 0.4
"""Costs, in nats a word, of a word or word pair, and of a sign, that were only put in before."""
EDGES = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Inner bounds of the bins of a score's distance from the target, in nats a word."""
_BINS = 2 * len(EDGES) + 2
Feature = str | tuple[str, str]


def fold_of(image_id: str) -> int:
    """Return the fold of an image."""
    return shard_of(f"fold {image_id}", FOLDS)


class CaptionModels:
    """The n-gram models of a dataset's captions, by fold.

    Args:
        captions: all captions.
        folds: the fold of each.
    """

    def __init__(self, captions: Sequence[str], folds: Sequence[int]) -> None:
        self._models = [
            NGrams(text for text, fold in zip(captions, folds, strict=True) if fold == wanted)
            for wanted in range(FOLDS)
        ]

    def selector(self, fold: int) -> NGrams:
        """Return the model with which negatives of a fold are selected."""
        return self._models[(fold + 1) % FOLDS]

    def judge(self, fold: int) -> NGrams:
        """Return the model by which negatives of a fold are judged."""
        return self._models[(fold + 2) % FOLDS]


def plausibility(model: NGrams, captions: Sequence[str], negatives: Sequence[str]) -> NDArray[np.float64]:
    """Return the log-probability a word of each negative minus that of its caption."""
    distinct = {text: i for i, text in enumerate(dict.fromkeys(captions))}
    scores = model.score([*distinct, *negatives])
    return np.asarray(scores[len(distinct) :] - scores[[distinct[text] for text in captions]])


class Chooser:
    """Orders the candidates of one shard, so that what is chosen cannot be guessed.

    The first is the nearest to its caption in score, corrected by what was chosen before it in the shard:
    words that negatives have put in more often than taken out are avoided, and so is the more frequent sign
    of the score in a bin. Costs 0.5 ms a caption and kind.

    Args:
        models: the n-gram models that score the candidates.
    """

    def __init__(self, models: CaptionModels) -> None:
        self.models = models
        self._put_in: dict[str, Counter[Feature]] = defaultdict(Counter)
        self._taken_out: dict[str, Counter[Feature]] = defaultdict(Counter)
        self._bins: dict[str, Counter[int]] = defaultdict(Counter)

    def order(self, kind: str, caption: str, scores: Mapping[str, float]) -> list[str]:
        """Return the negatives NEAREST to the caption, the best first; then the others.

        Args:
            kind: their kind.
            caption: their caption.
            scores: negative -> score.
        """
        near = sorted(scores, key=lambda negative: abs(scores[negative] - TARGET))
        own = _features(caption)
        cost = {negative: self._cost(kind, own, negative, scores[negative]) for negative in near[:NEAREST]}
        return sorted(cost, key=lambda negative: cost[negative]) + near[NEAREST:]

    def add(self, kind: str, caption: str, negative: str, score: float) -> None:
        """Record a chosen negative."""
        before, after = _features(caption), _features(negative)
        self._put_in[kind].update(after - before)
        self._taken_out[kind].update(before - after)
        self._bins[kind][_bin(score - TARGET)] += 1

    def _cost(self, kind: str, own: frozenset[Feature], negative: str, score: float) -> float:
        put_in, taken_out, bins = self._put_in[kind], self._taken_out[kind], self._bins[kind]
        after = _features(negative)
        words = sum(_excess(put_in[f], taken_out[f]) for f in after - own)
        words -= sum(_excess(put_in[f], taken_out[f]) for f in own - after)
        place = _bin(score - TARGET)
        sign = _excess(bins[place], bins[_BINS - 1 - place])
        return abs(score - TARGET) + WORD_WEIGHT * words + SIGN_WEIGHT * sign


def _features(text: str) -> frozenset[Feature]:
    """Return the words and word pairs of a text: what the judge of `text_only.py` reads."""
    words = words_of(text)
    return frozenset(words) | frozenset(pairwise(["", *words, ""]))


def _excess(one: int, other: int) -> float:
    return (one - other) / (one + other + 4)


@dataclass(frozen=True, kw_only=True)
class Balance:
    """The share of negatives to keep, so that as many score more than the target as less.

    Attributes:
        share: kind -> shares of the bins of the score, from the least likely to the likeliest.
    """

    share: Mapping[str, Sequence[float]]

    @classmethod
    def of(cls, scores: Mapping[str, NDArray[np.float64]], window: float | None = None) -> Balance:
        """Balance each kind.

        Args:
            scores: kind -> scores of its negatives.
            window: greatest distance from the target that is kept; None keeps all.
        """
        return cls(share={kind: _shares(found, window) for kind, found in scores.items()})

    def keeps(
        self, kind: str, scores: NDArray[np.float64], keys: Sequence[str], window: float | None = None
    ) -> NDArray[np.bool_]:
        """Return which negatives to keep.

        Args:
            kind: their kind.
            scores: their scores.
            keys: text that identifies each; its hash decides, so every shard decides alone.
            window: as in `of`.
        """
        drawn = np.array([_uniform(key) for key in keys])
        keep = drawn < np.array(self.share[kind])[_bins(scores)]
        return keep if window is None else keep & (np.abs(scores - TARGET) <= window)


def _shares(scores: NDArray[np.float64], window: float | None) -> list[float]:
    within = scores if window is None else scores[np.abs(scores - TARGET) <= window]
    count = np.bincount(_bins(within), minlength=_BINS)
    kept = np.minimum(count, count[::-1])
    return [float(k / n) if n else 0.0 for k, n in zip(kept, count, strict=True)]


def _bins(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return each score's bin; a bin and its mirror image around the target have numbers of the same sum."""
    return np.array([_bin(distance) for distance in (scores - TARGET).tolist()], np.int64)


def _bin(distance: float) -> int:
    size = bisect_right(EDGES, abs(distance))
    return len(EDGES) + 1 + size if distance > 0 else len(EDGES) - size


def _uniform(key: str) -> float:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64
