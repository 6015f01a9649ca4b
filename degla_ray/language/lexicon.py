"""Load the lexicon of interchangeable words (`lexicon.yaml`) and inflect nouns.

A replacement comes from the same group (semantic field) and never from the same line (words that may name
the same thing). Words outside the lexicon are never replaced: precision before coverage. About nine in ten
noun tokens of COCO captions are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from degla_ray.errors import DataError
from degla_ray.language.grammar import LEXICON_FILE, load_yaml


class Number(StrEnum):
    SINGULAR = "singular"
    PLURAL = "plural"


class Behaviour(StrEnum):
    COUNT = "count"
    MASS = "mass"
    PLURAL_ONLY = "plural_only"


@dataclass(frozen=True, slots=True)
class Entry:
    """A word of the lexicon.

    Attributes:
        word: the word itself (nouns: in the singular).
        line: first word of its line; words of a line may name the same thing.
        group: name of its semantic field.
        wider: whether the word names the whole group.
        is_noun: True for a noun, False for an adjective.
    """

    word: str
    line: str
    group: str
    wider: bool
    is_noun: bool


@dataclass(frozen=True, slots=True)
class WordGroup:
    """A semantic field.

    Attributes:
        name: as in the file.
        lines: first words of its lines, in order.
        wider_becomes: group that supplies replacements of a wider word; "" for none.
        overlaps: names of groups whose words may name the same thing.
        only_with, not_with: noun groups before which an adjective is (not) replaced.
        replaced: whether members are replaced and not only recognised.
        any_attribute: whether its things have every sort of attribute, mentioned or not.
        tells_apart: whether its adjectives may be swapped with those of another field.
        members: the words of each line.
    """

    name: str
    lines: tuple[str, ...]
    wider_becomes: str
    overlaps: frozenset[str]
    only_with: frozenset[str]
    not_with: frozenset[str]
    replaced: bool
    any_attribute: bool
    tells_apart: bool
    members: dict[str, tuple[str, ...]]


class Lexicon:
    """Nouns and adjectives of captions, by field.

    Args:
        path: the YAML file.

    Raises:
        DataError: the file is broken, a noun occurs twice, or a group that it refers to does not exist.
    """

    def __init__(self, path: Path = LEXICON_FILE) -> None:
        data = load_yaml(path)
        self._path = str(path)
        self.mass = frozenset(data["mass"])
        self.plural_only = frozenset(data["plural_only"])
        self.colours_of_people = frozenset(data["colours_of_people"])
        self._close = {frozenset(w.strip() for w in pair.split(",")) for pair in data["close"]}
        nouns: dict[str, list[Entry]] = {}
        self._adjectives: dict[str, list[Entry]] = {}
        self._noun_groups = self._read(data["nouns"], nouns, is_noun=True)
        self._adjective_groups = self._read(data["adjectives"], self._adjectives, is_noun=False)
        for group in [*self._noun_groups.values(), *self._adjective_groups.values()]:
            used = {group.wider_becomes} - {""} | group.overlaps | group.only_with | group.not_with
            if unknown := used - set(self._noun_groups):
                raise DataError(self._path, f"group {group.name!r} names {sorted(unknown)}", "noun groups")
        if twice := sorted(word for word, entries in nouns.items() if len(entries) > 1):
            raise DataError(self._path, f"nouns in two places: {twice}", "each noun once")
        self._nouns: dict[str, tuple[Entry, Number]] = {
            word: (entries[0], Number.PLURAL if word in self.plural_only else Number.SINGULAR)
            for word, entries in nouns.items()
        }
        for word, entries in nouns.items():
            if word not in self.mass | self.plural_only:
                self._nouns.setdefault(plural(word), (entries[0], Number.PLURAL))

    def _read(
        self, section: dict[str, Any], entries: dict[str, list[Entry]], *, is_noun: bool
    ) -> dict[str, WordGroup]:
        groups: dict[str, WordGroup] = {}
        for name, group in section.items():
            lines = [[w.strip() for w in str(line).split(",")] for line in group["words"]]
            groups[name] = WordGroup(
                name=name,
                lines=tuple(line[0] for line in lines),
                wider_becomes=group.get("wider_becomes", ""),
                overlaps=frozenset(group.get("overlaps", ())),
                only_with=frozenset(group.get("only_with", ())),
                not_with=frozenset(group.get("not_with", ())),
                replaced=not group.get("only_recognise", False),
                any_attribute=group.get("any_attribute", False),
                tells_apart=group.get("tells_apart", False),
                members={line[0]: tuple(line) for line in lines},
            )
            for line in lines:
                for word in line:
                    entries.setdefault(word, []).append(Entry(word, line[0], name, False, is_noun))
            for word in map(str, group.get("wider", ())):
                entries.setdefault(word, []).append(Entry(word, word, name, True, is_noun))
        return groups

    def group(self, entry: Entry) -> WordGroup:
        return (self._noun_groups if entry.is_noun else self._adjective_groups)[entry.group]

    def noun(self, text: str) -> tuple[Entry, Number] | None:
        """Return the entry and number of a noun form; an unlisted compound is looked up by its last word."""
        text = text.lower()
        return self._nouns.get(text) or self._nouns.get(text.rsplit(" ", 1)[-1])

    def lists_noun(self, text: str) -> bool:
        """Return whether the whole `text` is a listed noun form."""
        return text.lower() in self._nouns

    def adjective(self, text: str, noun: Entry | None = None) -> Entry | None:
        """Return the entry of an adjective from the first group that may precede `noun`."""
        for entry in self._adjectives.get(text.lower(), ()):
            group = self._adjective_groups[entry.group]
            if group.only_with and (noun is None or noun.group not in group.only_with):
                continue
            if noun is None or noun.group not in group.not_with:
                return entry
        return None

    def lists_adjective(self, text: str) -> bool:
        return text.lower() in self._adjectives

    def adjective_lines(self, text: str) -> set[str]:
        """Return the first words of all lines that contain an adjective."""
        return {entry.line for entry in self._adjectives.get(text.lower(), ())}

    def multiwords(self) -> dict[tuple[str, ...], str]:
        """Return the multiword nouns and adjectives: word sequence -> NOUN or ADJ."""
        found = {tuple(w.split(" ")): "ADJ" for w in self._adjectives if " " in w}
        found.update({tuple(w.split(" ")): "NOUN" for w in self._nouns if " " in w})
        return found

    def behaviour(self, noun: str) -> Behaviour:
        """Return how a noun (singular, or plural-only form) behaves; compounds follow their last word."""
        for word in (noun, noun.rsplit(" ", 1)[-1]):
            if word in self.mass:
                return Behaviour.MASS
            if word in self.plural_only:
                return Behaviour.PLURAL_ONLY
        return Behaviour.COUNT

    def synonymous(self, a: Entry | None, b: Entry | None) -> bool:
        """Return whether one word may replace the other with the same meaning: same line, or one is wider."""
        if a is None or b is None or a.is_noun != b.is_noun:
            return False
        return a.line == b.line or (a.group == b.group and (a.wider or b.wider))

    def overlapping(self, a: Entry | None, b: Entry | None) -> bool:
        """Return whether two words of a caption may name the same thing: synonyms, or overlapping groups."""
        if a is None or b is None or a.is_noun != b.is_noun:
            return False
        return self.synonymous(a, b) or b.group in self.group(a).overlaps or a.group in self.group(b).overlaps

    def tells_apart(self, field: str) -> bool:
        """Return whether a field of adjectives has `tells_apart` set (see Group)."""
        return self._adjective_groups[field].tells_apart

    def close(self, a: str, b: str) -> bool:
        """Return whether two lines (given by first word) are listed as too similar to replace each other."""
        return frozenset((a, b)) in self._close

    def replacements(
        self, entry: Entry, vocabulary: frozenset[str] | None = None, *, every: bool = False
    ) -> tuple[list[str], list[str]]:
        """Return words that may replace `entry`: from its own field, and a fallback from other fields.

        Args:
            entry: the word to replace.
            vocabulary: words that may be used; None allows all.
            every: return all words of a line, not only the first that may be used.
        """
        group = self.group(entry)
        if not group.replaced:
            return [], []
        lines = [w for w in group.lines if w != entry.line and not self.close(w, entry.line)]
        own = [] if entry.wider else self._known(group, lines, vocabulary, every)
        other = self._noun_groups.get(group.wider_becomes)
        return own, self._known(other, other.lines, vocabulary, every) if other else []

    @staticmethod
    def _known(
        group: WordGroup, lines: Sequence[str], vocabulary: frozenset[str] | None, every: bool
    ) -> list[str]:
        found: list[str] = []
        for line in lines:
            words = [
                w for w in group.members[line] if vocabulary is None or vocabulary.issuperset(w.split(" "))
            ]
            found += words if every else words[:1]
        return found


@cache
def load_lexicon(path: Path = LEXICON_FILE) -> Lexicon:
    return Lexicon(path)


@lru_cache(maxsize=50_000)
def plural(noun: str) -> str:
    """Return the plural of a singular noun; in a compound, the last word is inflected."""
    head, space, last = noun.rpartition(" ")
    return head + space + (_irregular()[0].get(last) or _lemminflect().getInflection(last, "NNS")[0])


@lru_cache(maxsize=50_000)
def singular(noun: str) -> str:
    """Return the singular of a plural noun; a singular is returned unchanged."""
    head, space, last = noun.rpartition(" ")
    return head + space + (_irregular()[1].get(last) or _lemminflect().getLemma(last, "NOUN")[0])


@lru_cache(maxsize=50_000)
def article(word: str) -> str:
    """Return `a` or `an`, whichever fits `word`."""
    word = word.lower()
    spelling = _spelling()
    if word.startswith(tuple(spelling["an_before"])):
        return "an"
    vowel = word[:1] in "aeiou" or (word[:1] == "8" or word in ("11", "18"))
    return "an" if vowel and not word.startswith(tuple(spelling["a_before"])) else "a"


@cache
def _spelling() -> dict[str, Any]:
    return {
        name: value for name, value in load_yaml(LEXICON_FILE).items() if name not in ("nouns", "adjectives")
    }


@cache
def _irregular() -> tuple[dict[str, str], dict[str, str]]:
    plurals = {str(k): str(v) for k, v in _spelling()["plurals"].items()}
    return plurals, {v: k for k, v in plurals.items()}


def _lemminflect() -> Any:
    import lemminflect  # takes 0.5 s, so it is imported only if words are inflected

    return lemminflect
