"""The word lists: consistent, and no replacement that may name the same thing."""

from __future__ import annotations

from pathlib import Path

import pytest

from degla_ray.errors import DataError
from degla_ray.language.grammar import LEXICON_FILE, load_grammar, load_yaml, words_sha
from degla_ray.language.lexicon import Entry, Lexicon, article, load_lexicon, plural, singular
from degla_ray.language.tagging import Tag


def noun(word: str) -> Entry:
    known = load_lexicon().noun(word)
    assert known is not None, word
    return known[0]


def all_words(section: str) -> list[str]:
    words = []
    for group in load_yaml(LEXICON_FILE)[section].values():
        for line in group["words"]:
            words += [word.strip() for word in line.split(",")]
        words += map(str, group.get("wider", []))
    return words


def test_replacements_of_every_noun_are_never_synonyms_of_it() -> None:
    lexicon = load_lexicon()
    replaced = 0
    for word in all_words("nouns"):
        entry = noun(word)
        own, elsewhere = lexicon.replacements(entry)
        for other in own + elsewhere:
            replaced += 1
            assert not lexicon.synonymous(entry, noun(other)), (word, other)
    assert replaced > 2000


def test_replacements_of_every_adjective_are_of_its_field_and_another_line() -> None:
    lexicon = load_lexicon()
    replaced = 0
    for word in all_words("adjectives"):
        entry = lexicon.adjective(word)
        for other in lexicon.replacements(entry)[0] if entry else ():
            replaced += 1
            assert entry is not None
            assert other in lexicon.group(entry).lines
            assert entry.line not in lexicon.adjective_lines(other), (word, other)
    assert replaced > 200


@pytest.mark.parametrize(
    ("word", "never"),
    [
        ("man", {"guy", "person", "boy"}),
        ("child", {"boy", "girl", "man", "woman"}),
        ("person", {"man", "woman"}),
        ("dog", {"puppy", "animal"}),
        ("animal", {"dog", "cat"}),
        ("ball", {"football", "toy"}),
        ("bike", {"bicycle", "motorcycle", "vehicle"}),
    ],
)
def test_replacements_of_a_word_are_no_narrower_or_wider_words(word: str, never: set[str]) -> None:
    own, elsewhere = load_lexicon().replacements(noun(word))
    assert own + elsewhere
    assert not never & {*own, *elsewhere}


def test_replacements_with_a_vocabulary_are_words_of_it() -> None:
    lexicon = load_lexicon()
    vocabulary = frozenset({"dotted", "striped", "solid", "hydrant", "fire", "puppy", "cow"})
    striped = lexicon.adjective("striped")
    assert striped is not None
    assert lexicon.replacements(striped, vocabulary)[0] == ["dotted", "solid"]
    assert lexicon.replacements(noun("cat"), vocabulary)[0] == ["puppy", "cow"]


def test_adjective_entry_depends_on_the_noun() -> None:
    lexicon = load_lexicon()
    for word, modified, others in (
        ("old", "man", ["young"]),
        ("old", "car", ["new"]),
        ("short", "hair", ["long"]),
    ):
        entry = lexicon.adjective(word, noun(modified))
        assert entry is not None
        assert lexicon.replacements(entry)[0] == others
    assert lexicon.adjective("little", noun("girl")) is None  # "a large girl" may well be a little girl


@pytest.mark.parametrize(
    ("one", "many"),
    [("man", "men"), ("person", "people"), ("fish", "fish"), ("police officer", "police officers"),
     ("bus", "buses"), ("knife", "knives"), ("goose", "geese")],
)  # fmt: skip
def test_plural_and_singular_of_listed_nouns_are_inverse(one: str, many: str) -> None:
    assert plural(one) == many
    assert singular(many) == one


@pytest.mark.parametrize(
    ("word", "wanted"),
    [("apple", "an"), ("hour", "an"), ("uniform", "a"), ("umbrella", "an"), ("one-way", "a"), ("dog", "a"),
     ("unicycle", "a"), ("European", "a"), ("old", "an"), ("uninteresting", "an")],
)  # fmt: skip
def test_article_fits_the_word(word: str, wanted: str) -> None:
    assert article(word) == wanted


def test_grammar_tags_are_all_known() -> None:
    grammar = load_grammar()
    assert {Tag(tag) for tag in {*grammar.tags.values(), *grammar.phrases.values()}}
    assert len(words_sha()) == 16


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (("      - woman, lady", "      - man, lady"), "nouns in two places"),
        (("wider_becomes: animals", "wider_becomes: beasts"), "beasts"),
        (("nouns:\n", "nouns: [\n"), "broken YAML"),
    ],
)
def test_lexicon_broken_file_is_refused_with_its_name(
    tmp_path: Path, change: tuple[str, str], found: str
) -> None:
    path = tmp_path / "lexicon.yaml"
    text = LEXICON_FILE.read_text(encoding="utf-8")
    assert change[0] in text
    path.write_text(text.replace(*change), encoding="utf-8")
    with pytest.raises(DataError, match=found) as error:
        Lexicon(path)
    assert str(path) in str(error.value)
