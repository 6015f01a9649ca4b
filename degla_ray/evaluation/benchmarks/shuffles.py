"""ARO's four shuffles of a caption, as functions of the caption and a seed alone.

The official ones hang on spaCy's and NLTK's tokens and on the order of the calls; these on HanTa's tokens
and tags, which part "tennis court" and "in front of" into words but neither "t-shirt" nor "don't". As there,
the words come back joined by single spaces, and a shuffle may leave a caption as it was: of COCO-Order's
captions the first does so to 16 %, the third to 9 %.

Source: Yuksekgonul et al. 2023, perturbations.py and retrieval.py (`pre_caption`) of their code.
"""

from __future__ import annotations

import hashlib
import json
import random
import re

from degla_ray.negatives.grammar import words_sha
from degla_ray.negatives.tagging import Tag, load_tagger, tagger_name

VERSION = 1  # of this file: another one makes other shuffles
WAYS = ("nouns_and_adjectives", "all_but_nouns_and_adjectives", "trigrams", "within_trigrams")
MAX_WORDS = 30


def made_with() -> dict[str, str]:
    """What decides the shuffles beside caption and seed."""
    return {"shuffles": str(VERSION), "tagger": tagger_name(), "words": words_sha()}


def pre_caption(caption: str) -> str:
    """A caption as it is shown to the model: lower case, without .!"()*#:;~, cut to 30 words."""
    text = re.sub(r"\s{2,}", " ", re.sub(r"[.!\"()*#:;~]", " ", caption.lower())).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:MAX_WORDS])


def shuffled(caption: str, seed: int) -> list[str]:
    """The caption shuffled in each of WAYS."""
    words, nouns, adjectives, others = _tagged(caption)
    found = []
    for way in WAYS:
        digest = hashlib.blake2b(json.dumps([seed, caption, way]).encode(), digest_size=8).digest()
        rng = random.Random(int.from_bytes(digest, "big"))
        trigrams = [words[i : i + 3] for i in range(0, len(words), 3)]
        if way == "nouns_and_adjectives":
            shuffle = _permuted(_permuted(words, nouns, rng), adjectives, rng)
        elif way == "all_but_nouns_and_adjectives":
            shuffle = _permuted(words, others, rng)
        elif way == "trigrams":
            shuffle = [word for trigram in rng.sample(trigrams, len(trigrams)) for word in trigram]
        else:
            shuffle = [word for trigram in trigrams for word in rng.sample(trigram, len(trigram))]
        found.append(" ".join(shuffle))
    return found


def _tagged(caption: str) -> tuple[list[str], list[int], list[int], list[int]]:
    """Words and punctuation marks; the places of the nouns, of the adjectives and of all others."""
    words: list[str] = []
    nouns: list[int] = []
    adjectives: list[int] = []
    others: list[int] = []
    for token in load_tagger().analyse(caption).tokens:
        kind = others
        if token.tag in (Tag.NOUN, Tag.NAME):
            kind = nouns
        elif token.tag is Tag.ADJ or token.detail in ("AJC", "AJS"):  # also bigger, biggest
            kind = adjectives
        for word in token.text.split():
            kind.append(len(words))
            words.append(word)
    return words, nouns, adjectives, others


def _permuted(words: list[str], places: list[int], rng: random.Random) -> list[str]:
    """Words of which those at the places changed places."""
    permuted = list(words)
    for i, j in zip(places, rng.sample(places, len(places)), strict=True):
        permuted[i] = words[j]
    return permuted
