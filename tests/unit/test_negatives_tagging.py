"""Captions as tagged tokens and noun phrases."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from degla_ray.language.lexicon import Number
from degla_ray.language.phrases import noun_phrases
from degla_ray.language.tagging import Sentence, Tag, Token, load_tagger, plain


def token(caption: str, text: str) -> Token:
    return next(t for t in load_tagger().analyse(caption).tokens if t.text == text)


def phrases(caption: str) -> list[tuple[str, list[str]]]:
    """Text and adjectives of each usable noun phrase."""
    tagger = load_tagger()
    sentence = tagger.analyse(caption)
    return [
        (
            " ".join(t.text for t in sentence.tokens[p.start : p.end]),
            [sentence.tokens[i].text for i in p.adjectives],
        )
        for p in noun_phrases(sentence, tagger.grammar, tagger.lexicon)
        if p.usable
    ]


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_analyse_any_text_gives_the_same_text_back(text: str) -> None:
    text = plain(text)
    sentence = load_tagger().analyse(text)
    assert sentence.text == text
    for t in sentence.tokens:
        assert text[t.start : t.end].lower() == t.text.lower()


def test_analyse_sentence_start_is_lowered_and_written_large_again() -> None:
    sentence = load_tagger().analyse('"A dog runs ."')
    assert [t.text for t in sentence.tokens][:3] == ['"', "a", "dog"]
    assert sentence.text == '"A dog runs ."'


@pytest.mark.parametrize(
    ("caption", "text", "tag"),
    [
        ("a square to the left of a circle", "to the left of", Tag.PREP),
        ("a square left of a circle", "left of", Tag.PREP),
        ("a cup on top of a table", "on top of", Tag.PREP),
        ("a red fire hydrant by the road", "fire hydrant", Tag.NOUN),
        ("two men on a tennis court", "tennis court", Tag.NOUN),
        ("a dog beside a brick wall", "brick", Tag.ADJ),
        ("the circle is orange", "orange", Tag.ADJ),
        ("a man peels an orange", "orange", Tag.NOUN),
        ("a boy skateboards down a street", "skateboards", Tag.VERB),
        ("there is a group of dogs", "group of", Tag.MEASURE),
        ("a bigger dog", "bigger", Tag.OTHER),
    ],
)
def test_analyse_known_slips_are_put_right(caption: str, text: str, tag: Tag) -> None:
    assert token(caption, text).tag is tag


@pytest.mark.parametrize(
    ("caption", "text", "lemma", "number"),
    [
        ("two dogs", "dogs", "dog", Number.PLURAL),
        ("some people", "people", "person", Number.PLURAL),
        ("three fire hydrants", "fire hydrants", "fire hydrant", Number.PLURAL),
        ("a man in blue jeans", "jeans", "jeans", Number.PLURAL),
        ("a sheep", "sheep", "sheep", Number.SINGULAR),
        ("the children", "children", "child", Number.PLURAL),
    ],
)
def test_analyse_noun_has_lemma_and_number(caption: str, text: str, lemma: str, number: Number) -> None:
    noun = token(caption, text)
    assert (noun.lemma, noun.number) == (lemma, number)


def test_noun_phrases_of_caption_hold_determiners_adjectives_and_measures() -> None:
    assert phrases("A black and white dog sees a large group of young people in a man's car") == [
        ("a black and white dog", ["black", "white"]),
        ("a large group of young people", ["large", "young"]),
        ("a man 's car", []),
    ]


def test_noun_phrases_predicate_adjectives_belong_to_their_noun() -> None:
    assert phrases("the circle is red and the square is large and blue") == [
        ("the circle", ["red"]),
        ("the square", ["large", "blue"]),
    ]


@pytest.mark.parametrize("caption", ["a picture of a dog", "a view of the back of a dog at night"])
def test_noun_phrases_framing_nouns_are_left_alone(caption: str) -> None:
    assert phrases(caption) == [("a dog", [])]


def test_noun_phrases_after_a_negation_are_left_alone() -> None:
    assert phrases("a man without a hat , on a horse") == [("a man", []), ("a horse", [])]


def test_sentence_without_words_has_no_phrases() -> None:
    tagger = load_tagger()
    sentence = tagger.analyse("  ")
    assert isinstance(sentence, Sentence)
    assert noun_phrases(sentence, tagger.grammar, tagger.lexicon) == ()
