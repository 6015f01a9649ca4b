"""Load the caption grammar (`grammar.yaml`, editable without programming): phrases, tags, relations."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from degla_ray.errors import DataError

GRAMMAR_FILE = Path(__file__).with_name("grammar.yaml")
LEXICON_FILE = Path(__file__).with_name("lexicon.yaml")


def load_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        DataError: the file is not valid YAML or not a mapping.
    """
    try:
        safe = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=safe)  # noqa: S506 (either is safe)
    except yaml.YAMLError as error:
        raise DataError(str(path), f"broken YAML ({error})", "a YAML mapping") from error
    if not isinstance(data, dict):
        raise DataError(str(path), f"a {type(data).__name__}", "a YAML mapping")
    return data


def words_sha() -> str:
    """Return 16 hex digits of the hash of both word files; part of every row and of the fingerprint."""
    digest = hashlib.sha256()
    for path in (GRAMMAR_FILE, LEXICON_FILE):
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@dataclass(frozen=True, kw_only=True, eq=False)
class Grammar:
    """Knowledge about captions beyond single words.

    Attributes:
        phrases: words of a fixed phrase -> its tag (PREP, ADV, MEASURE).
        tags: word -> corrected tag.
        frozen: nouns that are never swapped or replaced.
        symmetric: symmetric relations, in base form.
        alternating: verbs, in base form, whose vehicle and way may be exchanged.
        stances: base forms removed from a relation before it is compared.
        negations: words whose scope is never edited.
        verbs_after_subject: plural nouns that are verbs after a living subject.
        gendered: words that state a person's sex.
    """

    phrases: dict[tuple[str, ...], str]
    tags: dict[str, str]
    frozen: frozenset[str]
    symmetric: frozenset[str]
    alternating: frozenset[str]
    stances: frozenset[str]
    negations: frozenset[str]
    verbs_after_subject: frozenset[str]
    gendered: frozenset[str]


@cache
def load_grammar(path: Path = GRAMMAR_FILE) -> Grammar:
    """Load the grammar.

    Raises:
        DataError: the file is broken or its sections are not exactly the expected ones.
    """
    data = load_yaml(path)
    wanted = {
        "prepositions",
        "adverbs",
        "measures",
        "frozen",
        "tags",
        "symmetric",
        "alternating",
        "stances",
        "negations",
        "verbs_after_subject",
        "gendered",
    }
    if set(data) != wanted:
        raise DataError(str(path), f"sections {sorted(data)}", f"sections {sorted(wanted)}")
    phrases: dict[tuple[str, ...], str] = {}
    for section, tag in (("prepositions", "PREP"), ("adverbs", "ADV"), ("measures", "MEASURE")):
        phrases.update({tuple(str(p).split()): tag for p in data[section]})
    return Grammar(
        phrases=phrases,
        tags={str(word): str(tag) for word, tag in data["tags"].items()},
        frozen=_strings(data["frozen"]),
        symmetric=_strings(data["symmetric"]),
        alternating=_strings(data["alternating"]),
        stances=_strings(data["stances"]),
        negations=_strings(data["negations"]),
        verbs_after_subject=_strings(data["verbs_after_subject"]),
        gendered=_strings(data["gendered"]),
    )


def _strings(values: Iterable[object]) -> frozenset[str]:
    return frozenset(str(v) for v in values)
