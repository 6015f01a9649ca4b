"""Named checks that every negative caption must pass, whichever engine wrote it. Pure: no Ray, no files.

Each check sees the caption, the candidate and the negatives accepted so far, and returns a reject reason or
None. Meaning is compared in two ways. The candidate must not be compatible with the caption: it is if its
things contradict none of the caption's things on the same side of the same relation (symmetric relations
leave their sides unordered). And a scramble must not merely move whole phrases ("over the lazy dog jumps the
quick brown fox"). On captions of scenes, whose truth is known, 0.1 % of the passing candidates are true.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

from degla_ray.language.grammar import Grammar
from degla_ray.language.lexicon import Entry, Lexicon, Number
from degla_ray.language.phrases import NounPhrase, is_coordinated, is_symmetric, noun_phrases
from degla_ray.language.tagging import Sentence, Tag, Token
from degla_ray.schema import Kind, RejectReason

CHECKS_VERSION = 2
"""Part of a negatives folder's identity; raise it whenever a check's decisions change."""

MIN_BROKEN = 0.5
"""Minimum share of the caption's bonds that a scramble must break."""

_ARTICLES = {"a", "an", "the"}
_WORDS = re.compile(r"[^\W_]+", re.UNICODE)


@dataclass(frozen=True, kw_only=True, eq=False)
class Language:
    """The lexicon and grammar that the checks use."""

    grammar: Grammar
    lexicon: Lexicon


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A proposed negative with its caption.

    Attributes:
        caption, negative: both tagged.
        accepted: normal forms of the caption's negatives accepted so far, of all kinds.
        scrambled: whether word order is free, so that relations cannot be read from it.
        kind: the requested edit, for engines that may have made another one; else None.
    """

    caption: Sentence
    negative: Sentence
    accepted: frozenset[str]
    scrambled: bool = False
    kind: Kind | None = None


def normal_form(text: str) -> str:
    """Return the text without case, spacing, punctuation and articles; equal forms count as one caption."""
    return " ".join(w for w in _WORDS.findall(text.lower()) if w not in _ARTICLES)


def identity(candidate: Candidate, language: Language) -> RejectReason | None:
    """Reject a candidate equal to the caption up to case, spacing, punctuation and articles."""
    same = normal_form(candidate.negative.text) == normal_form(candidate.caption.text)
    return RejectReason.SAME_AS_CAPTION if same else None


def duplicate(candidate: Candidate, language: Language) -> RejectReason | None:
    """Reject a candidate equal to another negative of the caption."""
    seen = normal_form(candidate.negative.text) in candidate.accepted
    return RejectReason.DUPLICATE_NEGATIVE if seen else None


def wrong_kind(candidate: Candidate, language: Language) -> RejectReason | None:
    """Reject a candidate that is not exactly the requested edit: words swapped, replaced, or only moved."""
    if candidate.kind is None:
        return None
    before, after = (
        [t for t in sentence.tokens if t.lemma not in _ARTICLES and t.tag is not Tag.PUNCT]
        for sentence in (candidate.caption, candidate.negative)
    )
    fits = _EDITS[candidate.kind](before, after)
    return None if fits else RejectReason.WRONG_KIND


def synonym(candidate: Candidate, language: Language) -> RejectReason | None:
    """Reject a candidate whose every change is between words that may name the same thing."""
    if candidate.scrambled or len(candidate.caption.tokens) != len(candidate.negative.tokens):
        return None
    changed = [
        (a, b)
        for a, b in zip(candidate.caption.tokens, candidate.negative.tokens, strict=True)
        if a.lemma != b.lemma and a.lemma not in _ARTICLES
    ]
    swapped = Counter(a.lemma for a, _ in changed) == Counter(b.lemma for _, b in changed)
    if changed and all(_related(a, b, language.lexicon, swapped=swapped) for a, b in changed):
        return RejectReason.SYNONYM
    return None


def same_meaning(candidate: Candidate, language: Language) -> RejectReason | None:
    """Reject a candidate that may have the caption's meaning in another order."""
    caption, negative = candidate.caption, candidate.negative
    if candidate.scrambled:
        same = broken_bonds(caption, negative, language) < MIN_BROKEN
    else:
        said = statements(caption, language), statements(negative, language)
        same = may_agree(*said, language.lexicon) or _reads_as_compound(caption, negative, language)
    return RejectReason.SAME_MEANING if same else None


def _exchanged(tag: Tag) -> Callable[[Sequence[Token], Sequence[Token]], bool]:
    """Return a test: two words of that class swapped places, and nothing else changed but agreement."""

    def fits(before: Sequence[Token], after: Sequence[Token]) -> bool:
        if len(before) != len(after):
            return False
        pairs = [(a, b) for a, b in zip(before, after, strict=True) if a.lemma != b.lemma]
        if len(pairs) != 2 or any(a.tag is not tag for a, _ in pairs):
            return False
        (a, b), (c, d) = pairs
        return a.lemma == d.lemma and c.lemma == b.lemma

    return fits


def _replaced(tag: Tag) -> Callable[[Sequence[Token], Sequence[Token]], bool]:
    """Return a test: one word of that class became another, and nothing else but agreement changed."""

    def fits(before: Sequence[Token], after: Sequence[Token]) -> bool:
        if len(before) != len(after):
            return False
        pairs = [(a, b) for a, b in zip(before, after, strict=True) if a.lemma != b.lemma]
        return len(pairs) == 1 and pairs[0][0].tag is pairs[0][1].tag is tag

    return fits


def _moved(before: Sequence[Token], after: Sequence[Token]) -> bool:
    """Return whether the same content words are in another order; function words may be added or dropped."""
    order = [[t.lemma for t in tokens if t.tag in _CONTENT] for tokens in (before, after)]
    return order[0] != order[1] and Counter(order[0]) == Counter(order[1])


_CONTENT = (Tag.NOUN, Tag.NAME, Tag.ADJ, Tag.VERB, Tag.NUM)
_EDITS: dict[Kind, Callable[[Sequence[Token], Sequence[Token]], bool]] = {
    Kind.SWAP_NOUNS: _exchanged(Tag.NOUN),
    Kind.SWAP_ADJECTIVES: _exchanged(Tag.ADJ),
    Kind.REPLACE_NOUNS: _replaced(Tag.NOUN),
    Kind.REPLACE_ADJECTIVES: _replaced(Tag.ADJ),
    Kind.RESHUFFLE: _moved,
}

CHECKS: dict[str, Callable[[Candidate, Language], RejectReason | None]] = {
    "identity": identity,
    "duplicate": duplicate,
    "kind": wrong_kind,
    "synonym": synonym,
    "same_meaning": same_meaning,
}


def first_failure(candidate: Candidate, language: Language) -> tuple[str, RejectReason] | None:
    """Return name and reason of the first check that `candidate` fails; None if it passes all."""
    for name, check in CHECKS.items():
        reason = check(candidate, language)
        if reason is not None:
            return name, reason
    return None


@dataclass(frozen=True, slots=True)
class Thing:
    """The content of a noun phrase: noun, number, and attributes by field, with synonyms merged.

    Attributes:
        noun: first word of the noun's lexicon line, or its lemma.
        entry: the noun's lexicon entry, if listed.
        number: singular or plural.
        numerals: two, three ...
        attributes: adjective field -> lines; unlisted adjectives are omitted, as they contradict nothing.
    """

    noun: str
    entry: Entry | None
    number: Number | None
    numerals: frozenset[str]
    attributes: Mapping[str, frozenset[str]]


@dataclass(frozen=True, slots=True)
class Statement:
    """A relation and the things on its right; a symmetric relation puts both of its sides into one group.

    Attributes:
        relation: words before the group, in base form.
        things: unordered.
        inner: words of the symmetric relations inside the group, sorted.
    """

    relation: str
    things: tuple[Thing, ...]
    inner: tuple[str, ...]


@lru_cache(maxsize=4096)
def statements(sentence: Sentence, language: Language) -> tuple[Statement, ...]:
    """Return a caption's statements about its things; the last one holds the words after the last thing."""
    phrases = noun_phrases(sentence, language.grammar, language.lexicon)
    if not phrases:
        return (Statement(normal_form(sentence.text), (), ()),)
    stated = {i for phrase in phrases for i in phrase.adjectives}  # predicates ("is red") included
    starts = [0, *(phrase.end for phrase in phrases)]
    ends = [*(phrase.start for phrase in phrases), len(sentence.tokens)]
    gaps = [
        [sentence.tokens[i] for i in range(start, end) if i not in stated]
        for start, end in zip(starts, ends, strict=True)
    ]
    said: list[Statement] = []
    relation, things, inner = _words(gaps[0]), [_thing(sentence, phrases[0], language.lexicon)], []
    for i, phrase in enumerate(phrases[1:], start=1):
        if is_symmetric(gaps[i - 1], gaps[i], gaps[i + 1], language.grammar):
            inner.append(_words(gaps[i]))
        else:
            said.append(Statement(relation, tuple(things), tuple(sorted(inner))))
            relation, things, inner = _words(gaps[i]), [], []
        thing = _thing(sentence, phrase, language.lexicon)
        if is_coordinated(gaps[i], phrase) and things:
            # "A black hat and coat": attributes are shared, and number does not distinguish the things.
            thing = replace(thing, attributes=things[-1].attributes, number=None)
            things[-1] = replace(things[-1], number=None)
        things.append(thing)
    said.append(Statement(relation, tuple(things), tuple(sorted(inner))))
    return (*said, Statement(_words(gaps[-1]), (), ()))


def may_agree(caption: Sequence[Statement], negative: Sequence[Statement], lexicon: Lexicon) -> bool:
    """Return whether a negative may be true if its caption is: same relations, compatible things."""
    if [(s.relation, s.inner) for s in caption] != [(s.relation, s.inner) for s in negative]:
        return False
    return all(_may_match(a.things, b.things, lexicon) for a, b in zip(caption, negative, strict=True))


def _may_match(one: Sequence[Thing], two: Sequence[Thing], lexicon: Lexicon) -> bool:
    """Return whether the things of one group may be, in some order, those of the other."""
    if not one or not two:
        return len(one) == len(two)
    first, *rest = one
    alone = len(one) == 1
    return any(
        _may_be(first, other, lexicon, alone=alone) and _may_match(rest, [*two[:i], *two[i + 1 :]], lexicon)
        for i, other in enumerate(two)
    )


def _may_be(a: Thing, b: Thing, lexicon: Lexicon, *, alone: bool) -> bool:
    """Return whether two descriptions may fit one thing, that is, contain no contradiction."""
    if a.noun != b.noun and not lexicon.synonymous(a.entry, b.entry):
        return False
    if a.number is not b.number or (a.numerals and b.numerals and a.numerals != b.numerals):
        return False
    if any(_contradict(a.attributes[f], b.attributes[f]) for f in a.attributes.keys() & b.attributes.keys()):
        return False
    # An unmentioned attribute may still hold; but a caption that attaches "wooden" to one of two things
    # would mention it for both.
    unsaid = a.attributes.keys() ^ b.attributes.keys()
    if not alone or a.entry is None or lexicon.group(a.entry).any_attribute:
        return True
    return not any(lexicon.tells_apart(field) for field in unsaid)


def _contradict(a: frozenset[str], b: frozenset[str]) -> bool:
    """Return whether two value sets of one field exclude each other: black and white, pink and white."""
    return a.isdisjoint(b) or (len(a) == len(b) and a != b)


def broken_bonds(caption: Sentence, scrambled: Sentence, language: Language) -> float:
    """Return the share of the caption's bonds that a scramble breaks.

    Bonds join adjectives, or prepositions, to their nouns; the larger of the two shares is returned. If few
    are broken, only whole phrases moved, and the scramble may still be read as the caption. A caption without
    bonds gives 0.
    """
    wanted: Counter[tuple[str, str, str]] = Counter()
    for phrase in noun_phrases(caption, language.grammar, language.lexicon):
        head = _folded(caption.tokens[phrase.head], language.lexicon)
        adjectives = (_folded(caption.tokens[i], language.lexicon) for i in phrase.adjectives)
        wanted.update(("adjective", adjective, head) for adjective in adjectives)
        before = caption.tokens[phrase.start - 1] if phrase.start else None
        if before is not None and before.tag is Tag.PREP and before.lemma not in language.grammar.symmetric:
            wanted[("preposition", before.lemma, head)] += 1
    broken = wanted - _bonds(scrambled.tokens, language.lexicon)
    shares = []
    for sort in ("adjective", "preposition"):
        if all_of_it := sum(n for bond, n in wanted.items() if bond[0] == sort):
            shares.append(sum(n for bond, n in broken.items() if bond[0] == sort) / all_of_it)
    return max(shares, default=0.0)


def _reads_as_compound(caption: Sentence, negative: Sentence, language: Language) -> bool:
    """Return whether a swap made a compound of equal meaning: boys playing soccer, soccer playing boys."""
    seen: list[set[tuple[str, str, str]]] = []
    for sentence, turned in ((caption, True), (negative, False)):
        phrases = noun_phrases(sentence, language.grammar, language.lexicon)
        found = set()
        for a, b in pairwise(phrases):
            between = sentence.tokens[a.end : b.start]
            bare = all(sentence.tokens[i].tag is Tag.ADJ for i in range(a.start, a.head))
            if len(between) == 1 and between[0].detail == "VVG" and (turned or bare):
                heads = (sentence.tokens[a.head].lemma, sentence.tokens[b.head].lemma)
                found.add((between[0].lemma, *(reversed(heads) if turned else heads)))
        seen.append(found)
    return bool(seen[0] & seen[1])


def _bonds(tokens: Sequence[Token], lexicon: Lexicon) -> Counter[tuple[str, str, str]]:
    """Return adjectives and prepositions next to a noun, on either side, with only its own words between."""
    found: Counter[tuple[str, str, str]] = Counter()
    for head, token in enumerate(tokens):
        if token.tag is not Tag.NOUN:
            continue
        noun = _folded(token, lexicon)
        for step in (-1, 1):
            i = head + step
            while 0 <= i < len(tokens) and _is_inside(tokens[i]):
                if tokens[i].tag is Tag.ADJ:
                    found[("adjective", _folded(tokens[i], lexicon), noun)] += 1
                i += step
            if 0 <= i < len(tokens) and tokens[i].tag is Tag.PREP:
                found[("preposition", tokens[i].lemma, noun)] += 1
    return found


def _is_inside(token: Token) -> bool:
    """Return whether a token may occur between a noun and its adjective or preposition."""
    if token.tag is Tag.VERB:
        return token.detail in ("VVG", "VVN")  # a white running dog
    inside = (Tag.ADJ, Tag.DET, Tag.NUM, Tag.MEASURE, Tag.ADV)
    return token.tag in inside or token.lemma in ("and", ",")


def _folded(token: Token, lexicon: Lexicon) -> str:
    """Return a noun or adjective as the first word of its lexicon line."""
    if token.tag is Tag.NOUN:
        known = lexicon.noun(token.lemma)
        return known[0].line if known else token.lemma
    return min(lexicon.adjective_lines(token.lemma), default=token.lemma)


def _related(a: Token, b: Token, lexicon: Lexicon, *, swapped: bool) -> bool:
    """Return whether two words may name the same thing; in a swap, overlapping groups count too."""
    if a.tag is Tag.NOUN and b.tag is Tag.NOUN:
        first, second = (
            (known[0] if known else None) for known in (lexicon.noun(a.lemma), lexicon.noun(b.lemma))
        )
        return lexicon.overlapping(first, second) if swapped else lexicon.synonymous(first, second)
    if a.tag is Tag.ADJ and b.tag is Tag.ADJ:
        return bool(lexicon.adjective_lines(a.lemma) & lexicon.adjective_lines(b.lemma))
    return False


def _thing(sentence: Sentence, phrase: NounPhrase, lexicon: Lexicon) -> Thing:
    head = sentence.tokens[phrase.head]
    entry = known[0] if (known := lexicon.noun(head.lemma)) else None
    attributes: dict[str, frozenset[str]] = {}
    for i in phrase.adjectives:
        adjective = lexicon.adjective(sentence.tokens[i].lemma, entry) or lexicon.adjective(
            sentence.tokens[i].lemma
        )
        if adjective is not None:
            attributes[adjective.group] = attributes.get(adjective.group, frozenset()) | {adjective.line}
    before = sentence.tokens[phrase.start : phrase.head]
    return Thing(
        noun=entry.line if entry is not None and not entry.wider else head.lemma,
        entry=entry,
        number=head.number,
        numerals=frozenset(t.lemma for t in before if t.tag is Tag.NUM),
        attributes=attributes,
    )


def _words(tokens: Iterable[Token]) -> str:
    # A verb's agreement and the comma after a phrase carry no meaning.
    return " ".join(t.lemma for t in tokens if t.lemma not in _ARTICLES and t.tag is not Tag.PUNCT)
