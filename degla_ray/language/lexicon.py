"""Which words may stand for one another (`lexicon.yaml`), and how nouns are inflected.

A replacement comes from the same group (semantic field) and never from the same line (words that may name
the same thing). What the lexicon does not know is never replaced: precision over coverage; about nine of
ten noun tokens of COCO captions are known.
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
        line: first word of its line; words of one line may name the same thing.
        group: name of its semantic field.
        wider: a word for the whole group.
        is_noun: noun, else adjective.
    """

    word: str
    line: str
    group: str
    wider: bool
    is_noun: bool


@dataclass(frozen=True, slots=True)
class Group:
    """A semantic field.

    Attributes:
        name: as in the file.
        lines: first words of its lines, in order.
        wider_becomes: group from which a wider word is replaced; "" for none.
        overlaps: names of groups whose words may name the same thing.
        only_with, not_with: noun groups before which an adjective is (not) replaced.
        replaced: members are replaced, not only recognised.
        any_attribute: its things have every sort of attribute, said or not.
        tells_apart: adjectives that may change places with those of another field.
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
        DataError: the file is broken, a noun stands twice, or a named group does not exist.
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
    ) -> dict[str, Group]:
        groups: dict[str, Group] = {}
        for name, group in section.items():
            lines = [[w.strip() for w in str(line).split(",")] for line in group["words"]]
            groups[name] = Group(
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

    def group(self, entry: Entry) -> Group:
        return (self._noun_groups if entry.is_noun else self._adjective_groups)[entry.group]

    def noun(self, text: str) -> tuple[Entry, Number] | None:
        """Entry and number of a noun form; a compound that is not listed is looked up by its last word."""
        text = text.lower()
        return self._nouns.get(text) or self._nouns.get(text.rsplit(" ", 1)[-1])

    def lists_noun(self, text: str) -> bool:
        """Whether the whole of `text` is a listed form."""
        return text.lower() in self._nouns

    def adjective(self, text: str, noun: Entry | None = None) -> Entry | None:
        """Entry of an adjective, in the first group that goes with `noun`."""
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
        """First words of all the lines that an adjective stands in."""
        return {entry.line for entry in self._adjectives.get(text.lower(), ())}

    def multiwords(self) -> dict[tuple[str, ...], str]:
        """Word sequences that are one noun or adjective -> NOUN or ADJ."""
        found = {tuple(w.split(" ")): "ADJ" for w in self._adjectives if " " in w}
        found.update({tuple(w.split(" ")): "NOUN" for w in self._nouns if " " in w})
        return found

    def behaviour(self, noun: str) -> Behaviour:
        """How a noun (singular, or plural-only form) behaves; by its last word where it is a compound."""
        for word in (noun, noun.rsplit(" ", 1)[-1]):
            if word in self.mass:
                return Behaviour.MASS
            if word in self.plural_only:
                return Behaviour.PLURAL_ONLY
        return Behaviour.COUNT

    def synonymous(self, a: Entry | None, b: Entry | None) -> bool:
        """Whether one word may stand for the other: same line, or one wider than the other."""
        if a is None or b is None or a.is_noun != b.is_noun:
            return False
        return a.line == b.line or (a.group == b.group and (a.wider or b.wider))

    def overlapping(self, a: Entry | None, b: Entry | None) -> bool:
        """Whether two words of one caption may name the same thing: synonymous, or of groups that overlap."""
        if a is None or b is None or a.is_noun != b.is_noun:
            return False
        return self.synonymous(a, b) or b.group in self.group(a).overlaps or a.group in self.group(b).overlaps

    def tells_apart(self, field: str) -> bool:
        """Whether a field of adjectives does (see the file)."""
        return self._adjective_groups[field].tells_apart

    def close(self, a: str, b: str) -> bool:
        """Whether two lines (by their first words) are listed as too close for a replacement."""
        return frozenset((a, b)) in self._close

    def replacements(
        self, entry: Entry, vocabulary: frozenset[str] | None = None
    ) -> tuple[list[str], list[str]]:
        """Words that may stand for `entry`: from its own field, and from elsewhere should those all fail.

        Args:
            entry: the word to replace.
            vocabulary: only such words are drawn; none means any line's first word.
        """
        group = self.group(entry)
        if not group.replaced:
            return [], []
        lines = [w for w in group.lines if w != entry.line and not self.close(w, entry.line)]
        own = [] if entry.wider else self._known(group, lines, vocabulary)
        other = self._noun_groups.get(group.wider_becomes)
        return own, self._known(other, other.lines, vocabulary) if other else []

    @staticmethod
    def _known(group: Group, lines: Sequence[str], vocabulary: frozenset[str] | None) -> list[str]:
        if vocabulary is None:
            return list(lines)
        found = (
            next((w for w in group.members[line] if vocabulary.issuperset(w.split(" "))), None)
            for line in lines
        )
        return [word for word in found if word is not None]


@cache
def load_lexicon(path: Path = LEXICON_FILE) -> Lexicon:
    return Lexicon(path)


@lru_cache(maxsize=50_000)
def plural(noun: str) -> str:
    """Plural of a singular noun; of a compound, of its last word."""
    head, space, last = noun.rpartition(" ")
    return head + space + (_irregular()[0].get(last) or _lemminflect().getInflection(last, "NNS")[0])


@lru_cache(maxsize=50_000)
def singular(noun: str) -> str:
    """Singular of a plural noun; a singular comes back as it is."""
    head, space, last = noun.rpartition(" ")
    return head + space + (_irregular()[1].get(last) or _lemminflect().getLemma(last, "NOUN")[0])


@lru_cache(maxsize=50_000)
def article(word: str) -> str:
    """`a` or `an`, as `word` asks for."""
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
    import lemminflect  # 0.5 s to import: only where words are really inflected

    return lemminflect
