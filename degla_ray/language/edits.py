"""Edit tagged captions and keep them grammatical: a/an, noun number, verb agreement, spaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

from degla_ray.language.lexicon import Behaviour, Lexicon, Number, article, plural
from degla_ray.language.phrases import NounPhrase
from degla_ray.language.tagging import Sentence, Tag, Token

_SINGULAR_DETERMINERS = ("a", "an", "one", "this", "that", "every", "each", "another", "single", "lone")
_PLURAL_DETERMINERS = ("these", "those", "many", "several", "few", "both", "multiple", "various", "numerous")
_BE = {"is": "are", "was": "were", "has": "have", "does": "do", "'s": "are"}


def inflected(lexicon: Lexicon, noun: str, number: Number) -> str | None:
    """Return `noun` (a lemma) in the given number, or None if it has no such form."""
    behaviour = lexicon.behaviour(noun)
    if behaviour is Behaviour.PLURAL_ONLY:
        return noun if number is Number.PLURAL else None
    if number is Number.SINGULAR:
        return noun
    return None if behaviour is Behaviour.MASS else plural(noun)


def counts(token: Token) -> bool:
    """Return whether a determiner or numeral requires a countable noun."""
    word = token.text.lower()
    return token.tag is Tag.NUM or word in _SINGULAR_DETERMINERS or word in _PLURAL_DETERMINERS


def with_noun(token: Token, lexicon: Lexicon, lemma: str, number: Number) -> Token | None:
    """Return `token` with another noun, or None if that noun has no form in the token's number."""
    text = inflected(lexicon, lemma, number)
    return (
        None
        if text is None
        else replace(token, text=text, lemma=lemma, number=number, tag=Tag.NOUN, sure=True)
    )


def substituted(sentence: Sentence, changes: Mapping[int, Token]) -> Sentence:
    """Return the sentence with some tokens replaced; spaces stay and a/an is adjusted."""
    tokens = list(sentence.tokens)
    for i, token in changes.items():
        space = tokens[i].space
        tokens[i] = token if token.space == space else replace(token, space=space)
    return replace(sentence, tokens=tuple(_fit_articles(sentence.tokens, tokens)))


def exchanged(sentence: Sentence, first: NounPhrase, second: NounPhrase) -> Sentence:
    """Return the sentence with two whole phrases exchanged; verbs just after them agree with the new noun."""
    tokens = sentence.tokens
    a, b = list(tokens[first.start : first.end]), list(tokens[second.start : second.end])
    a_space, b_space = a[0].space, b[0].space
    a[0], b[0] = replace(a[0], space=b_space), replace(b[0], space=a_space)
    a_number, b_number = grammatical_number(sentence, first), grammatical_number(sentence, second)
    middle, after = list(tokens[first.end : second.start]), list(tokens[second.end :])
    joined = first.start > 0 and tokens[first.start - 1].lemma in ("and", "or", ",")
    if a_number is not b_number and not joined:
        _agree(middle, b_number)
    if a_number is not b_number and not any(t.lemma in ("and", "or") for t in middle):
        _agree(after, a_number)
    edited = [*tokens[: first.start], *b, *middle, *a, *after]
    return replace(sentence, tokens=tuple(_fit_articles(tokens, edited)))


def moved(sentence: Sentence, units: Sequence[range], order: Sequence[range]) -> Sentence:
    """Put the spans `order` into the places of the spans `units`; tokens outside all spans stay in place.

    The space before a span belongs to the place.
    """
    tokens = sentence.tokens
    edited: list[Token] = []
    at = 0
    for place, source in zip(units, order, strict=True):
        edited += tokens[at : place.start]
        span = [tokens[i] for i in source]
        edited += [replace(span[0], space=tokens[place.start].space), *span[1:]]
        at = place.stop
    return replace(sentence, tokens=tuple(_fit_articles(tokens, [*edited, *tokens[at:]])))


def grammatical_number(sentence: Sentence, phrase: NounPhrase) -> Number | None:
    """Return the number that a verb agrees with; None if both are possible (a group of dogs)."""
    tokens = sentence.tokens[phrase.start : phrase.end]
    return None if any(t.tag is Tag.MEASURE for t in tokens) else sentence.tokens[phrase.head].number


def _agree(following: list[Token], number: Number | None) -> None:
    """Make a finite verb at the start of `following` agree, in place."""
    for i, token in enumerate(following[:2]):
        if token.tag is Tag.ADV:
            continue
        if token.tag is Tag.VERB and number is not None:
            following[i] = replace(token, text=_conjugated(token.text, token.lemma, token.detail, number))
        return


@lru_cache(maxsize=10_000)
def _conjugated(text: str, lemma: str, detail: str, number: Number) -> str:
    lower = text.lower()
    plurals = {v: k for k, v in _BE.items() if k != "'s"}
    if number is Number.PLURAL and lower in _BE:
        return _BE[lower]
    if number is Number.SINGULAR and lower in plurals:
        return plurals[lower]
    if detail not in ("VVZ", "VVB", "VVI") or lemma in ("be", "have", "do"):
        return text
    import lemminflect

    forms = lemminflect.getInflection(lemma, "VBZ" if number is Number.SINGULAR else "VBP")
    return str(forms[0]) if forms else text


def _fit_articles(before: Sequence[Token], after: Sequence[Token]) -> list[Token]:
    """Correct a/an before changed words; mistakes in the original caption stay."""
    places = [i for i, t in enumerate(after) if t.tag is Tag.DET and t.text in ("a", "an", "A", "An")]
    if not places:
        return list(after)
    known = {(a.text, b.text) for a, b in pairwise(before)}
    fitted = list(after)
    for i in places:
        following = after[i + 1] if i + 1 < len(after) else None
        if (
            following is not None
            and (after[i].text, following.text) not in known
            and following.text[0].isalnum()
        ):
            fitted[i] = replace(after[i], text=article(following.text))
    return fitted
