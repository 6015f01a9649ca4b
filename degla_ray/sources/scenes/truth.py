"""Decide whether a caption is true of a scene.

Understands every sentence that templates.yaml can produce, and every sentence made from one by exchanging or
replacing nouns, adjectives, relations or noun phrases. About 10,000 new captions a second; repeated captions
are looked up in a cache.

A caption claims that objects with the named attributes and relations exist, a different object for each
different mention. It is true if some assignment of mentions to the scene's objects satisfies it. "The
square" after "a red square" refers to the same square. The answer is None if the sentence is not understood,
or if it could be judged either way:

* a relation between objects that differ by 0.05 to 0.15 of the image's side along its axis;
* an outside word that may describe something in the scene ("rectangle" for a square; listed in
  templates.yaml), if the answer depends on it. Outside words for things that never occur in scenes
  ("hexagon", "orange") make a caption false; any unlisted word makes the answer None;
* a sentence with two readings ("a circle and a star left of a square") that differ in truth.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations

from degla_ray.sources.scenes.wording import wording
from degla_ray.sources.scenes.world import (
    FAILS_UP_TO,
    HOLDS_FROM,
    SHAPES,
    Relation,
    Scene,
    SceneObject,
    Sort,
    difference,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """Meaning of a word: the attribute values that it certainly (`sure`) or possibly (`maybe`) describes."""

    sort: Sort | None  # None: the shape
    sure: frozenset[str]
    maybe: frozenset[str]

    def fits(self, thing: SceneObject, leniently: bool) -> bool:
        value = thing.shape if self.sort is None else thing.value(self.sort)
        return value in self.sure or (leniently and value in self.maybe)


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """One reading of a caption: objects, each with its description, and the relations between them."""

    objects: tuple[tuple[Term, ...], ...]
    relations: tuple[tuple[int, Relation, int], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Chunk:
    """A part of a sentence; `letter` is its class in the clause patterns."""

    letter: str
    terms: tuple[Term, ...] = ()
    relation: Relation | None = None
    definite: bool = False


# Classes of chunk: N noun phrase, A adjective, R "left of", I "to its left", P "on the left", B "is",
# E "there is", W "with", H "has", T "that", & "and", and the comma.
_WORDS = {
    "is": "B", "sits": "B", "lies": "B", "stands": "B", "appears": "B",
    "with": "W", "has": "H", "that": "T", "which": "T", "and": "&", ",": ",",
}  # fmt: skip
_CLAUSES: tuple[tuple[str, str], ...] = (
    ("exists", r"E?N"),
    ("related", r"E?N(?:TB|B)?RN"),
    ("near", r"E?N(?:W|T?H)NI"),
    ("inverted", r"RN[BE]N"),
    ("predicate", r"NBA(?:&A)*"),
    ("places", r"E?NB?P,?&E?NB?P"),
    ("places_first", r"P[BE]N,?&P[BE]N"),
    ("both_related", r"E?N&N(?:B)?RN"),
    ("related_to_both", r"E?N(?:TB|B)?RN&N"),
)
_PATTERNS = tuple((name, re.compile(pattern)) for name, pattern in _CLAUSES)
_SEPARATOR = re.compile(r",&|&|,")
_DETERMINERS = frozenset({"a", "an", "the", "one"})
_TOKEN = re.compile(r"[a-z]+(?:[-'][a-z]+)*|[^\sa-z]")

_Phrases = dict[tuple[str, ...], tuple[str, Relation | None]]


@lru_cache(maxsize=1)
def _vocabulary() -> tuple[_Phrases, int, Mapping[str, Term], Mapping[str, Term]]:
    """Return fixed phrases, the length of the longest, nouns and adjectives."""
    w = wording()
    phrases: _Phrases = {("there", "is"): ("E", None)}
    for letter, table in (("R", w.relation), ("I", w.near), ("P", w.place)):
        for relation, texts in table.items():
            phrases.update({tuple(text.split()): (letter, relation) for text in texts})
    nouns = {shape: Term(sort=None, sure=frozenset({shape}), maybe=frozenset()) for shape in SHAPES}
    for word, maybe in w.foreign_nouns.items():
        nouns[word] = Term(sort=None, sure=frozenset(), maybe=frozenset(maybe))
    adjectives = {}
    for sort, values in w.words.items():
        for value, words in values.items():
            for word in words:
                adjectives[word] = Term(sort=sort, sure=frozenset({value}), maybe=frozenset())
    for said, foreign in w.foreign_adjectives.items():
        for word, maybe in foreign.items():
            adjectives[word] = Term(sort=said, sure=frozenset(), maybe=frozenset(maybe))
    return phrases, max(map(len, phrases)), nouns, adjectives


def is_true(caption: str, scene: Scene) -> bool | None:
    """Return whether `caption` is true of `scene`; None if it is not understood or ambiguous."""
    readings = parse(caption)
    if not readings:
        return None
    answers = {holds(claim, scene) for claim in readings}
    return answers.pop() if len(answers) == 1 else None


def holds(claim: Claim, scene: Scene) -> bool | None:
    """Return whether one reading is true of `scene`; None if it can be judged either way."""
    if _satisfied(claim, scene, leniently=False):
        return True
    return None if _satisfied(claim, scene, leniently=True) else False


def _satisfied(claim: Claim, scene: Scene, leniently: bool) -> bool:
    least = FAILS_UP_TO if leniently else HOLDS_FROM
    for chosen in permutations(scene.objects, len(claim.objects)):
        if all(
            term.fits(thing, leniently)
            for terms, thing in zip(claim.objects, chosen, strict=True)
            for term in terms
        ) and all(difference(chosen[a], relation, chosen[b]) > least for a, relation, b in claim.relations):
            return True
    return False


@lru_cache(maxsize=20_000)
def parse(caption: str) -> tuple[Claim, ...]:
    """Return every reading of a caption; empty if it is not understood."""
    tokens = _TOKEN.findall(caption.strip().lower().rstrip("."))
    claims: dict[Claim, None] = {}
    for prefix, suffix in _frames():
        end = len(tokens) - len(suffix)
        if len(prefix) < end and tokens[: len(prefix)] == prefix and tokens[end:] == suffix:
            chunks = _chunks(tokens[len(prefix) : end])
            if chunks is not None:
                letters = "".join(chunk.letter for chunk in chunks)
                claims.update((claim, None) for r in _readings(letters) for claim in _claims(r, chunks))
            if claims:
                break
    return tuple(claims)


@lru_cache(maxsize=1)
def _frames() -> list[tuple[list[str], list[str]]]:
    """Return openings as the tokens before and after "{}", longest first."""
    halves = [opening.split("{}") for opening in dict.fromkeys(wording().openings)]
    frames = [(before.split(), after.split()) for before, after in halves]
    return sorted(frames, key=lambda frame: -len(frame[0]) - len(frame[1]))


def _chunks(tokens: list[str]) -> list[_Chunk] | None:
    """Return the tokens as chunks, or None if a word belongs to no chunk."""
    phrases, longest, nouns, adjectives = _vocabulary()
    chunks: list[_Chunk] = []
    at = 0
    while at < len(tokens):
        for length in range(min(longest, len(tokens) - at), 0, -1):
            if found := phrases.get(tuple(tokens[at : at + length])):
                chunks.append(_Chunk(letter=found[0], relation=found[1]))
                at += length
                break
        else:
            word = tokens[at]
            if word in _WORDS:
                chunks.append(_Chunk(letter=_WORDS[word]))
            elif word in adjectives:
                chunks.append(_Chunk(letter="A", terms=(adjectives[word],)))
            elif word in _DETERMINERS:
                terms = []
                while at + 1 < len(tokens) and tokens[at + 1] in adjectives:
                    at += 1
                    terms.append(adjectives[tokens[at]])
                at += 1
                if at == len(tokens) or tokens[at] not in nouns:
                    return None
                terms.append(nouns[tokens[at]])
                chunks.append(_Chunk(letter="N", terms=tuple(terms), definite=word == "the"))
            else:
                return None
            at += 1
    return chunks


def _readings(letters: str, start: int = 0) -> Iterator[list[tuple[str, int, int]]]:
    """Yield every division of `letters` into clauses, as (name, start, end) of each clause."""
    for name, pattern in _PATTERNS:
        match = pattern.match(letters, start)
        if match is None:
            continue
        if match.end() == len(letters):
            yield [(name, start, match.end())]
        elif separator := _SEPARATOR.match(letters, match.end()):
            for rest in _readings(letters, separator.end()):
                yield [(name, start, match.end()), *rest]


def _claims(reading: list[tuple[str, int, int]], chunks: list[_Chunk]) -> Iterator[Claim]:
    """Yield the claim of a division into clauses, or nothing if "the square" is ambiguous."""
    objects: list[tuple[Term, ...]] = []
    relations: list[tuple[int, Relation, int]] = []
    for name, start, end in reading:
        clause = chunks[start:end]
        before = len(objects)
        own: list[int] = []
        for chunk in clause:
            if chunk.letter == "N":
                known = _meant(chunk, objects[:before], own) if chunk.definite else []
                if len(known) > 1:
                    return
                if known:
                    objects[known[0]] = tuple(dict.fromkeys(objects[known[0]] + chunk.terms))
                else:
                    objects.append(chunk.terms)
                own.append(known[0] if known else len(objects) - 1)
        said = [chunk.relation for chunk in clause if chunk.relation is not None]
        if name == "predicate":
            objects[own[0]] += tuple(t for chunk in clause if chunk.letter == "A" for t in chunk.terms)
        elif name in ("places", "places_first"):
            if said[0].opposite is not said[1]:
                return
            relations.append((own[0], said[0], own[1]))
        elif name == "related":
            relations.append((own[0], said[0], own[1]))
        elif name in ("near", "inverted"):
            relations.append((own[1], said[0], own[0]))
        elif name == "both_related":
            relations += [(own[0], said[0], own[2]), (own[1], said[0], own[2])]
        elif name == "related_to_both":
            relations += [(own[0], said[0], own[1]), (own[0], said[0], own[2])]
    yield Claim(objects=tuple(objects), relations=tuple(relations))


def _meant(chunk: _Chunk, earlier: list[tuple[Term, ...]], taken: list[int]) -> list[int]:
    """Return the earlier objects that a definite noun phrase can refer to.

    They have the same shape and no conflicting attribute; objects with all of the phrase's attributes already
    mentioned take precedence.
    """
    possible = []
    for i, terms in enumerate(earlier):
        said = {term.sort: term for term in terms}
        if i not in taken and said[None] in chunk.terms:
            possible += [i] if all(said.get(term.sort, term) == term for term in chunk.terms) else []
    return [i for i in possible if set(chunk.terms) <= set(earlier[i])] or possible
