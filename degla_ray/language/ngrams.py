"""Score captions with an n-gram model of other captions: how likely is each word after the three before it?

Interpolated Witten-Bell smoothing (Witten & Bell 1991). Kept here because `kenlm` counts with a program of
its own that needs Boost, and `nltk.lm` scores one word at a time in Python. Counts are sorted numpy arrays of
hashed n-grams, so fitting and scoring are array operations, and all actors of a node share one copy: 35,000
captions take 0.5 s.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

ORDER = 4
REACH = 3
"""Words between which pairs are counted: a preposition, a determiner, an adjective, a noun."""
_UNKNOWN, _START, _END = 0, 1, 2
_WORDS = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*", re.UNICODE)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)

Keys = NDArray[np.uint64]


def words_of(text: str) -> list[str]:
    """Return the words that the model reads: lower case, without punctuation."""
    return _WORDS.findall(text.lower())


@dataclass(frozen=True)
class _Counts:
    """Counts of one order. G distinct n-grams, C distinct contexts (their first n - 1 words).

    Attributes:
        gram_G, count_G: hash of each n-gram, ascending, and its occurrences.
        context_C, total_C, types_C: hash of each context, ascending, its occurrences, and the number of
            distinct words that follow it.
    """

    gram_G: Keys
    count_G: NDArray[np.int64]
    context_C: Keys
    total_C: NDArray[np.int64]
    types_C: NDArray[np.int64]

    @classmethod
    def of(cls, grams: Keys, contexts: Keys) -> _Counts:
        gram_G, first, count_G = np.unique(grams, return_index=True, return_counts=True)
        context_C, of_gram, types_C = np.unique(contexts[first], return_inverse=True, return_counts=True)
        total_C = np.bincount(of_gram, weights=count_G).astype(np.int64)
        return cls(gram_G, count_G, context_C, total_C, types_C)


class NGrams:
    """An n-gram model of captions.

    Args:
        texts: captions to count.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._numbers: dict[str, int] = {}
        rows = [
            [self._numbers.setdefault(word, len(self._numbers) + _END + 1) for word in words_of(text)]
            for text in texts
        ]
        ids, here = _padded(rows)
        hashes = _hashes(ids)
        self._counts = [
            _Counts.of(
                hashes[n][here], _before(hashes[n - 1])[here] if n else np.zeros(here.sum(), np.uint64)
            )
            for n in range(ORDER)
        ]
        self._pair_P, self._pair_count_P = np.unique(_pairs(ids), return_counts=True)

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return each text's mean log-probability a word (the text's end counts as one)."""
        ids, here = _padded([[self._numbers.get(w, _UNKNOWN) for w in words_of(text)] for text in texts])
        hashes = _hashes(ids)
        chance = np.full(int(here.sum()), 1 / (len(self._numbers) + 2))
        for n, counts in enumerate(self._counts):
            contexts = _before(hashes[n - 1])[here] if n else np.zeros(len(chance), np.uint64)
            found = _look_up(counts.gram_G, hashes[n][here], counts.count_G)
            total = _look_up(counts.context_C, contexts, counts.total_C)
            types = _look_up(counts.context_C, contexts, counts.types_C)
            seen = total > 0
            chance[seen] = (found + types * chance)[seen] / (total + types)[seen]
        text_of = (np.cumsum(ids == _START) // (ORDER - 1) - 1)[here]
        return np.asarray(
            np.bincount(text_of, weights=np.log(chance), minlength=len(texts)) / np.bincount(text_of)
        )

    def together(self, first: str, second: str) -> int:
        """Return how often `second` is among the REACH words after `first`."""
        number = np.array([self._numbers.get(word, _UNKNOWN) for word in (first, second)])
        return int(_look_up(self._pair_P, _pairs(number)[:1], self._pair_count_P)[0])

    def association(self, first: str, second: str) -> float:
        """Return how often `second` follows `first`, over how often it would by chance; both plus one.

        Pairs of rare words are near 1, because nothing is known about them.
        """
        number = [self._numbers.get(word, _UNKNOWN) for word in (first, second)]
        single, pair = _hashes(np.array(number))[:2]
        one = _look_up(self._counts[0].gram_G, single, self._counts[0].count_G)
        both = _look_up(self._counts[1].gram_G, pair[1:], self._counts[1].count_G)
        by_chance = one[0] * one[1] / self._counts[0].count_G.sum()
        return float((both[0] + 1) / (by_chance + 1))


def _padded(rows: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return all rows in one array, each between start and end marks, and where a word or an end is."""
    start = [_START] * (ORDER - 1)
    ids = np.fromiter(chain.from_iterable((*start, *row, _END) for row in rows), np.int64)
    return ids, ids != _START


def _hashes(ids: NDArray[np.int64]) -> list[Keys]:
    """Return, for each n, the hash of the n words that end at each position."""
    keys = _mixed(ids.astype(np.uint64) + np.uint64(1))
    hashes = [keys]
    for _ in range(1, ORDER):
        hashes.append(_mixed(_before(hashes[-1]) * _MULTIPLIER + keys))
    return hashes


def _pairs(ids: NDArray[np.int64]) -> Keys:
    """Return the hash of each word with each of the REACH words after it; marks are words too."""
    keys = _mixed(ids.astype(np.uint64) + np.uint64(1))
    return np.concatenate([_mixed(keys[:-n] * _MULTIPLIER + keys[n:]) for n in range(1, REACH + 1)])


def _before(keys: Keys) -> Keys:
    """Return the keys of the position before; zero at the first."""
    return np.concatenate([np.zeros(1, np.uint64), keys[:-1]])


def _mixed(keys: Keys) -> Keys:
    keys = (keys ^ (keys >> np.uint64(31))) * _MULTIPLIER
    return keys ^ (keys >> np.uint64(29))


def _look_up(keys: Keys, wanted: Keys, values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the value of each wanted key; 0 for those that are absent."""
    if not len(keys):
        return np.zeros(len(wanted), np.int64)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)
