"""Collect the words of an image's captions, which may describe it and so cannot be replacements.

Captions are read without the tagger (which would run 5 times per image); any listed form counts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from degla_ray.language.lexicon import Entry, Lexicon
from degla_ray.language.tagging import Sentence, Tag

_WORDS = re.compile(r"[^\W_]+(?:-[^\W_]+)*", re.UNICODE)
_REACH = 3  # maximum number of words between an adjective and its noun


class Mentioned:
    """Nouns and adjective-noun pairs of a caption and its siblings.

    Args:
        lexicon: the lexicon.
        sentence: the caption.
        siblings: other captions of the image.
    """

    def __init__(self, lexicon: Lexicon, sentence: Sentence, siblings: Sequence[str]) -> None:
        self._lexicon = lexicon
        own = [known[0] for t in sentence.tokens if t.tag is Tag.NOUN and (known := lexicon.noun(t.lemma))]
        self._nouns = set(own)
        self._adjectives = {
            line for t in sentence.tokens if t.tag is Tag.ADJ for line in _lines(lexicon, t.lemma)
        }
        self._pairs: set[tuple[str, str]] = set()
        for text in siblings:
            nouns, pairs = _read(lexicon, text)
            self._nouns |= nouns
            self._pairs |= pairs

    def noun(self, word: str) -> bool:
        """Return whether a caption names `word` or something that may be the same thing."""
        known = self._lexicon.noun(word)
        if known is None:
            return False
        # A wider word ("an animal") does not count: siblings often use it for the very word to be replaced.
        return any(e.line == known[0].line for e in self._nouns)

    def adjective(self, word: str, noun: Entry | None) -> bool:
        """Return whether the caption contains `word`, or a sibling attaches it to `noun`."""
        lines = _lines(self._lexicon, word)
        if lines & self._adjectives:
            return True
        return noun is not None and any((line, noun.line) in self._pairs for line in lines)


def _lines(lexicon: Lexicon, adjective: str) -> set[str]:
    return lexicon.adjective_lines(adjective) or {adjective}


@lru_cache(maxsize=50_000)
def _read(lexicon: Lexicon, text: str) -> tuple[frozenset[Entry], frozenset[tuple[str, str]]]:
    words = _WORDS.findall(text.lower())
    entries = [lexicon.noun(word) for word in words]
    pairs = {
        (line, known[0].line)
        for i, word in enumerate(words)
        if lexicon.lists_adjective(word)
        for known in entries[i + 1 : i + 1 + _REACH]
        if known is not None
        for line in lexicon.adjective_lines(word)
    }
    return frozenset(known[0] for known in entries if known is not None), frozenset(pairs)
