"""What may stand in a word's place: the same sort of thing, and words that captions put together."""

from __future__ import annotations

from degla_ray.language.lexicon import Entry, Lexicon
from degla_ray.language.ngrams import NGrams, words_of
from degla_ray.language.phrases import NounPhrase
from degla_ray.language.tagging import Sentence, Tag, Token

MIN_ASSOCIATION = 0.5
"""Least ratio of an adjective's occurrences before a noun to those expected by chance."""

_GOVERNORS = (Tag.PREP, Tag.VERB)
_SORTS = {
    "people": ("adults", "children", "roles"),
    "worn": ("clothing", "headwear", "legwear", "footwear", "accessories"),
    "ground": ("landscapes", "ground", "waters"),
}
_SORT = {group: sort for sort, groups in _SORTS.items() for group in groups}


def sort_of(group: str) -> str:
    """Return the sort of thing that a field's nouns name: all people are of one sort."""
    return _SORT.get(group, group)


def same_sort(sentence: Sentence, first: NounPhrase, second: NounPhrase, lexicon: Lexicon) -> bool:
    """Return whether two phrases name the same sort of thing: two people, two animals, two clothes."""
    known = [lexicon.noun(sentence.tokens[phrase.head].lemma) for phrase in (first, second)]
    if known[0] is None or known[1] is None:
        return False
    return sort_of(known[0][0].group) == sort_of(known[1][0].group)


def same_form(sentence: Sentence, first: NounPhrase, second: NounPhrase) -> bool:
    """Return whether the nouns of two phrases have the same number and determiners: "a dog" and "a cat"."""
    a, b = sentence.tokens[first.head], sentence.tokens[second.head]
    return a.number is b.number and _determiners(sentence, first) == _determiners(sentence, second)


def _determiners(sentence: Sentence, phrase: NounPhrase) -> list[str]:
    before = sentence.tokens[phrase.start : phrase.head]
    return ["a" if t.lemma == "an" else t.lemma for t in before if t.tag in (Tag.DET, Tag.NUM, Tag.MEASURE)]


def adjective_fits(model: NGrams, adjective: str, noun: Token) -> bool:
    """Return whether captions put an adjective before a noun at least half as often as by chance."""
    return model.association(adjective, words_of(noun.text)[0]) >= MIN_ASSOCIATION


def noun_fits(model: NGrams, sentence: Sentence, phrase: NounPhrase, noun: Token) -> bool:
    """Return whether captions put a noun after the phrase's preposition or verb, and after its adjectives.

    The first phrase of a caption has none before it; the word after it counts instead.
    """
    tokens = sentence.tokens
    if not all(adjective_fits(model, tokens[i].text, noun) for i in phrase.adjectives if i < phrase.head):
        return False
    before = tokens[phrase.start - 1] if phrase.start else None
    after = tokens[phrase.end] if phrase.end < len(tokens) else None
    if before is not None and before.tag in _GOVERNORS:
        return model.together(words_of(before.text)[-1], words_of(noun.text)[0]) > 0
    if after is not None and after.tag in _GOVERNORS:
        return model.together(words_of(noun.text)[-1], words_of(after.text)[0]) > 0
    return True


def keeps_sort(entry: Entry, lexicon: Lexicon) -> bool:
    """Return whether the field that replaces a general word ("animal") names the same sort of thing."""
    return sort_of(lexicon.group(entry).wider_becomes) == sort_of(entry.group)
