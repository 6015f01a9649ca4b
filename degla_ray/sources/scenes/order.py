"""The order test: a caption against four shuffles of its words, as ARO's COCO-Order makes them.

The part of speech comes from the world's own words, so no tagger's version decides the test.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from degla_ray.sources.scenes.wording import wording
from degla_ray.sources.scenes.world import SHAPES

MAX_WORDS = 30
_FRAME_NOUNS = frozenset({"image", "drawing"})
_DROPPED = re.compile(r'[.!"()*#:;~]')


def normalise(caption: str) -> str:
    """Lower case, without `.!"()*#:;~`, cut to 30 words (ARO's `pre_caption`)."""
    return " ".join(_DROPPED.sub(" ", caption.lower()).split()[:MAX_WORDS])


def shuffles(caption: str, rng: np.random.Generator) -> list[str]:
    """Four shuffles of a normalised caption: nouns and adjectives each among themselves; all other words;
    the order of its trigrams; the words inside each trigram."""
    words = caption.split(" ")
    adjectives = {w for values in wording().words.values() for ws in values.values() for w in ws}
    nouns = [i for i, word in enumerate(words) if word in SHAPES or word in _FRAME_NOUNS]
    described = [i for i, word in enumerate(words) if word in adjectives]
    others = [i for i in range(len(words)) if i not in nouns and i not in described]
    trigrams = [words[i : i + 3] for i in range(0, len(words), 3)]
    return [
        " ".join(_permuted(_permuted(words, nouns, rng), described, rng)),
        " ".join(_permuted(words, others, rng)),
        " ".join(word for i in rng.permutation(len(trigrams)) for word in trigrams[int(i)]),
        " ".join(word for trigram in trigrams for word in _permuted(trigram, range(len(trigram)), rng)),
    ]


def order_texts(
    caption: str, rng: np.random.Generator, is_wrong: Callable[[str], bool], attempts: int = 30
) -> list[str] | None:
    """The caption and its four shuffles, all normalised and different, or None where there are none.

    Args:
        caption: a true caption. One with a comma gives None: a comma between words would tell by itself.
        is_wrong: whether a shuffle is good enough to be a foil.
    """
    true = normalise(caption)
    if "," in true:
        return None
    for _ in range(attempts):
        texts = [true, *shuffles(true, rng)]
        if len(set(texts)) == len(texts) and all(is_wrong(text) for text in texts[1:]):
            return texts
    return None


def _permuted(words: Sequence[str], places: Sequence[int], rng: np.random.Generator) -> list[str]:
    """`words` with those at `places` in a random order."""
    result = list(words)
    for place, source in zip(places, rng.permutation(len(places)), strict=True):
        result[place] = words[places[int(source)]]
    return result
