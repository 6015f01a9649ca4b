"""Tell the language of captions: the rules and checks read English only.

py3langid's model is inside its package; 0.15 ms a caption. Of 10,001 captions of Flickr8k and COCO it takes
0.2 % for another language, none of them with a probability of 0.5.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

ENGLISH = "en"
SAMPLE = 1000
"""Captions of a source whose language is looked at before anything is generated."""
_SURE = 0.5
"""Probability from which a caption of an English source counts as another language's."""


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@lru_cache(maxsize=20_000)
def language_of(caption: str) -> tuple[str, float]:
    """Return the ISO 639-1 code of a caption's language and the probability that it is that one."""
    code, probability = _identifier().classify(caption)
    return str(code), float(probability)


def is_english(caption: str, source_is_english: bool) -> bool:
    """Return whether a caption is English; a doubtful one is what its source is."""
    code, probability = language_of(caption)
    return code == ENGLISH or (source_is_english and probability < _SURE)


def survey(captions: Sequence[str]) -> dict[str, float]:
    """Return language code -> share (0 to 1) of a fixed sample of captions, the commonest first."""
    drawn = random.Random(0).sample(list(captions), min(SAMPLE, len(captions)))
    counts = Counter(language_of(caption)[0] for caption in drawn)
    return {code: count / len(drawn) for code, count in counts.most_common()}


def describe(shares: dict[str, float]) -> str:
    """Return what a survey found in one line, and what it means where most captions are not English."""
    found = ", ".join(f"{code} {share:.0%}" for code, share in list(shares.items())[:3])
    line = f"language of the captions: {found}"
    if shares.get(ENGLISH, 0.0) < 0.5:
        line += "; the rules and checks read English only, so captions in other languages get no negatives"
    return line
