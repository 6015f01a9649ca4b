"""Load the words of scene captions (`templates.yaml`), and represent captions as structured sentences."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml

from degla_ray.sources.scenes.world import Relation, Sort

_FILE = Path(__file__).with_name("templates.yaml")
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Wording:
    """The content of `templates.yaml`."""

    words: Mapping[Sort, Mapping[str, list[str]]]
    openings: list[str]
    phrases: Mapping[str, list[str]]
    sentences: Mapping[str, list[str]]
    relation: Mapping[Relation, list[str]]
    near: Mapping[Relation, list[str]]
    place: Mapping[Relation, list[str]]
    foreign_nouns: Mapping[str, list[str]]
    foreign_adjectives: Mapping[Sort | None, Mapping[str, list[str]]]  # None: they describe a shape


@lru_cache(maxsize=1)
def wording() -> Wording:
    text: dict[str, Any] = yaml.safe_load(_FILE.read_bytes())
    by_relation = {
        key: {Relation(name): phrases for name, phrases in text[key].items()}
        for key in ("relation", "near", "place")
    }
    return Wording(
        words={Sort(sort): values for sort, values in text["words"].items()},
        openings=text["openings"],
        phrases=text["phrases"],
        sentences=text["sentences"],
        foreign_nouns=text["foreign_nouns"],
        foreign_adjectives={
            None if sort == "shape" else Sort(sort): words
            for sort, words in text["foreign_adjectives"].items()
        },
        **by_relation,
    )


def pick(rng: np.random.Generator, options: Sequence[_T]) -> _T:
    """Return a random element of `options` (numpy's choice would convert them to an array)."""
    return options[int(rng.integers(len(options)))]


@dataclass(frozen=True, kw_only=True)
class Mention:
    """An object as named in a caption.

    Attributes:
        noun: the word for its shape.
        adjectives: the word for each attribute that is named.
    """

    noun: str
    adjectives: Mapping[Sort, str]

    @property
    def bare(self) -> str:
        """Return the mention without its article; adjectives follow the order of `Sort`, as in English."""
        return " ".join([*(self.adjectives[sort] for sort in Sort if sort in self.adjectives), self.noun])

    @property
    def predicate(self) -> str:
        return " and ".join(self.adjectives[sort] for sort in Sort if sort in self.adjectives)


@dataclass(frozen=True, kw_only=True)
class SceneSentence:
    """A caption in structured form.

    Attributes:
        template: contains the slots described in templates.yaml.
        mentions: the objects for {0}, {1} …
        relations: (first position, relation, second position, index of the phrase) of the first and second
            relation.
        opening: the opening around the template, or None.
        formal: whether the caption starts with a capital and ends with a full stop.
    """

    template: str
    mentions: tuple[Mention, ...]
    relations: tuple[tuple[int, Relation, int, int], ...] = ()
    opening: str = "{}"
    formal: bool = True

    @property
    def text(self) -> str:
        slots: dict[str, str] = {}
        for i, mention in enumerate(self.mentions):
            slots[str(i)] = f"{article(mention.bare)} {mention.bare}"
            slots[f"the{i}"] = f"the {mention.bare}"
            slots[f"noun{i}"] = mention.noun
            slots[f"adjectives{i}"] = mention.predicate
        if self.relations:
            _, relation, _, which = self.relations[0]
            w = wording()
            slots["relation"] = _nth(w.relation[relation], which)
            slots["near"] = _nth(w.near[relation], which)
            slots["place0"] = _nth(w.place[relation], which)
            slots["place1"] = _nth(w.place[relation.opposite], which)
        if len(self.relations) > 1:
            _, relation, target, which = self.relations[1]
            slots["relation2"] = _nth(wording().relation[relation], which)
            slots["that"] = f"the {self._short(target)}"
        body = re.sub(r"\{(\w+)\}", lambda match: slots[match[1]], self.template)
        text = self.opening.replace("{}", body)
        return f"{text[0].upper()}{text[1:]}." if self.formal else text

    def _short(self, target: int) -> str:
        """Return the noun of mention `target` if it is unique, else the mention with its adjectives."""
        nouns = [mention.noun for mention in self.mentions]
        return nouns[target] if nouns.count(nouns[target]) == 1 else self.mentions[target].bare


def article(words: str) -> str:
    return "an" if words[0] in "aeiou" else "a"


def _nth(phrases: list[str], which: int) -> str:
    return phrases[which % len(phrases)]
