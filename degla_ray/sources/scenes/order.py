"""Generate the order test: a caption against four shuffles of its words, as in ARO's COCO-Order.

Parts of speech come from the world's own words, so the test does not depend on a tagger's version.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from degla_ray.sources.scenes.wording import wording
from degla_ray.sources.scenes.world import SHAPES

MAX_WORDS = 30
_FRAME_NOUNS = frozenset({"picture", "image", "drawing"})
_DROPPED = re.compile(r'[.!"()*#:;~]')


def normalise(caption: str) -> str:
    """Return lower case text without `.!"()*#:;~`, cut to 30 words (ARO's `pre_caption`)."""
    return " ".join(_DROPPED.sub(" ", caption.lower()).split()[:MAX_WORDS])


def shuffles(caption: str, rng: np.random.Generator) -> list[str]:
    """Return four shuffles of a normalised caption.

    The four shuffle (1) nouns among themselves and adjectives among themselves, (2) all other words, (3) the
    order of trigrams, (4) the words within each trigram.
    """
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
    """Return the caption and its four shuffles, normalised and distinct, or None if there are none.

    Args:
        caption: a true caption. One with a comma gives None, since a comma between words would be a giveaway.
        is_wrong: whether a shuffle is acceptable as a foil.
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
    """Return `words` with those at `places` in random order."""
    result = list(words)
    for place, source in zip(places, rng.permutation(len(places)), strict=True):
        result[place] = words[places[int(source)]]
    return result
