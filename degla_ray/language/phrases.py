"""Find the noun phrases of a tagged caption and the gaps between them.

A phrase is the longest run "determiner, numeral, adjectives, measure, noun" that ends in a noun. Everything
else is a gap: the relation (verb, preposition, conjunction) that joins two phrases. Works on tokens alone, so
an edited caption needs no second tagging.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from degla_ray.language.grammar import Grammar
from degla_ray.language.lexicon import Lexicon
from degla_ray.language.tagging import Sentence, Tag, Token

_BACK = {"it", "its", "them", "him", "her"}
_BEFORE_NOUN = (Tag.ADJ, Tag.DET, Tag.NUM, Tag.MEASURE)


@dataclass(frozen=True, slots=True)
class NounPhrase:
    """One thing that a caption names.

    Attributes:
        start, end: token span, end exclusive.
        head: index of its noun.
        adjectives: indices of its adjectives, including predicates ("the circle is red").
        usable: whether it may be exchanged or replaced.
    """

    start: int
    end: int
    head: int
    adjectives: tuple[int, ...]
    usable: bool


@lru_cache(maxsize=4096)
def noun_phrases(sentence: Sentence, grammar: Grammar, lexicon: Lexicon) -> tuple[NounPhrase, ...]:
    """Return the phrases of a sentence in order, without nouns that only frame it."""
    tokens = sentence.tokens
    phrases: list[NounPhrase] = []
    negated = False
    for head, token in enumerate(tokens):
        if token.lemma in grammar.negations:
            negated = True
        elif token.tag is Tag.PUNCT:
            negated = False
        if token.tag is not Tag.NOUN or _owns(tokens, head):
            continue
        start = _start(tokens, head, phrases[-1].end if phrases else 0)
        if _last_word(token.lemma) in grammar.frozen and not lexicon.lists_noun(token.lemma):
            continue
        adjectives = [i for i in range(start, head) if tokens[i].tag is Tag.ADJ]
        adjectives += _said_of(tokens, head)
        # Moving a colour used as a noun ("in red"), or a word that is as often a verb, would not be safe.
        usable = (
            token.sure
            and not negated
            and (lexicon.lists_noun(token.lemma) or not lexicon.lists_adjective(token.lemma))
        )
        phrases.append(NounPhrase(start, head + 1, head, tuple(adjectives), usable))
    return tuple(phrases)


def is_symmetric(
    before: Sequence[Token], gap: Sequence[Token], after: Sequence[Token], grammar: Grammar
) -> bool:
    """Return whether a relation is symmetric, so that exchanging its two sides keeps the meaning.

    Args:
        before: tokens before the first phrase: "under a cross is a ring" differs from "the animal is a dog".
        gap: tokens between the two phrases.
        after: tokens after the second phrase, up to the next: in "a circle with a square above it", "with"
            is not symmetric.
        grammar: lists the symmetric relations.
    """
    if _points_back(after, grammar):
        return False
    if _alternates(before, gap, grammar):
        return True
    words = [t.lemma for t in gap if t.tag not in (Tag.DET, Tag.PRON) and t.lemma != "be"]
    words = [w for w, following in pairwise([*words, ""]) if w != following]  # "(is red) and (big) and"
    if not words and all(t.lemma == "be" or t.tag is Tag.DET for t in gap):
        return not (before and before[-1].tag is Tag.PREP)
    bare = [w for w in words if w not in grammar.stances]
    return any(" ".join(w) in grammar.symmetric for w in (words, bare) if w)


def _alternates(before: Sequence[Token], gap: Sequence[Token], grammar: Grammar) -> bool:
    """Return whether `gap` lies between a verb's vehicle and way: "rides (a wave) on (a surfboard)"."""
    verb = before[-1] if before else None
    moves = verb is not None and verb.tag is Tag.VERB and verb.lemma in grammar.alternating
    return moves and [t.tag for t in gap] == [Tag.PREP]


def is_coordinated(gap: Sequence[Token], second: NounPhrase) -> bool:
    """Return whether `second` shares the words before the first noun: "a black hat and coat"."""
    return [t.lemma for t in gap] in (["and"], ["or"], ["&"]) and second.start == second.head


def _points_back(following: Sequence[Token], grammar: Grammar) -> bool:
    if not any(_BACK & set(t.lemma.split(" ")) for t in following):
        return False
    words = [t.lemma for t in following if t.tag not in (Tag.DET, Tag.PRON, Tag.PUNCT) and t.lemma != "be"]
    bare = [w for w in words if w not in grammar.stances]
    return bool(bare) and " ".join(bare) not in grammar.symmetric


def _owns(tokens: Sequence[Token], head: int) -> bool:
    """Return whether the noun at `head` is only the possessor of the next one (a man's hat)."""
    return head + 1 < len(tokens) and tokens[head + 1].tag is Tag.POSS


def _start(tokens: Sequence[Token], head: int, floor: int) -> int:
    """Return the index, at least `floor`, of the first token of the phrase that ends in `head`."""
    start = head
    while start > floor:
        before = tokens[start - 1]
        two_before = tokens[start - 2] if start - 2 >= floor else None
        opens = two_before is None or two_before.tag in _BEFORE_NOUN
        if before.tag in _BEFORE_NOUN:
            start -= 1
        elif before.tag is Tag.POSS and two_before is not None and two_before.tag is Tag.NOUN:
            start -= 2
        elif (
            before.tag is Tag.VERB
            and before.detail in ("VVG", "VVN", "VVD")
            and two_before is not None
            and opens
        ):
            start -= 1  # a running dog, a parked car
        elif before.tag in (Tag.ADV, Tag.OTHER) and start < head and tokens[start].tag is Tag.ADJ and opens:
            start -= 1  # a very large dog
        elif (
            (before.lemma in ("and", ",", "&"))
            and tokens[start].tag is Tag.ADJ
            and two_before is not None
            and two_before.tag is Tag.ADJ
        ):
            start -= 2  # a black and white dog
        else:
            break
    return start


def _said_of(tokens: Sequence[Token], head: int) -> list[int]:
    """Return the indices of the predicate adjectives of the noun at `head`: "the circle is red"."""
    i = head + 1
    if i < len(tokens) and tokens[i].lemma in ("that", "which"):
        i += 1
    if i >= len(tokens) or tokens[i].lemma != "be":
        return []
    i += 1
    found: list[int] = []
    while i < len(tokens) and (tokens[i].tag is Tag.ADJ or (found and tokens[i].lemma in ("and", ","))):
        if tokens[i].tag is Tag.ADJ:
            found.append(i)
        i += 1
    ends_in_noun = i < len(tokens) and tokens[i].tag is Tag.NOUN
    return [] if ends_in_noun else found


def _last_word(text: str) -> str:
    return text.rsplit(" ", 1)[-1]
