"""The named checks, on texts from anywhere (as another engine would write them)."""

from __future__ import annotations

import pytest

from degla_ray.language.tagging import load_tagger
from degla_ray.negatives.checks import CHECKS, Candidate, Language, first_failure, normal_form
from degla_ray.schema import RejectReason


def failure(caption: str, negative: str, *accepted: str, scrambled: bool = False) -> RejectReason | None:
    tagger = load_tagger()
    candidate = Candidate(
        caption=tagger.analyse(caption),
        negative=tagger.analyse(negative),
        accepted=frozenset(map(normal_form, accepted)),
        scrambled=scrambled,
    )
    failed = first_failure(candidate, Language(grammar=tagger.grammar, lexicon=tagger.lexicon))
    return failed[1] if failed else None


@pytest.mark.parametrize(
    "negative", ["a dog chases a cat.", "A  dog chases the CAT", "The dog, chases a cat !"]
)
def test_identity_case_space_punctuation_and_articles_are_no_difference(negative: str) -> None:
    assert failure("A dog chases a cat", negative) is RejectReason.SAME_AS_CAPTION


def test_duplicate_another_negative_of_the_caption_is_rejected() -> None:
    assert failure("a dog", "a cat", "The cat.") is RejectReason.DUPLICATE_NEGATIVE
    assert failure("a dog", "a cat", "a cow") is None


@pytest.mark.parametrize(
    ("caption", "negative"),
    [
        ("a quick fox", "a swift fox"),
        ("a large dog runs", "a big dog runs"),
        ("a man with a dog", "a guy with a dog"),
        ("a dog runs", "an animal runs"),
        ("a child on a bike", "a boy on a bike"),
    ],
)
def test_synonym_for_a_word_is_rejected(caption: str, negative: str) -> None:
    assert failure(caption, negative) is RejectReason.SYNONYM


def test_synonym_exchange_of_words_that_may_name_the_same_is_rejected() -> None:
    assert failure("a man helps a player", "a player helps a man") is RejectReason.SYNONYM
    assert failure("a man helps a dog", "a dog helps a man") is None


@pytest.mark.parametrize(
    ("caption", "negative"),
    [
        ("a man and a woman", "a woman and a man"),
        ("a red circle next to a blue square", "a blue square next to a red circle"),
        ("a dog, a cat and a bird", "a bird, a cat and a dog"),
        ("a man is standing beside a dog", "a dog is standing beside a man"),
        ("a tiny star above a ring", "a star above a tiny ring"),  # of shapes every attribute may hold
    ],
)
def test_same_meaning_exchange_across_a_symmetric_relation_is_rejected(caption: str, negative: str) -> None:
    assert failure(caption, negative) is RejectReason.SAME_MEANING


@pytest.mark.parametrize(
    ("caption", "negative"),
    [
        ("a red circle and a blue square", "a blue circle and a red square"),
        ("a circle above a square", "a square above a circle"),
        ("a circle with a square above it", "a square with a circle above it"),
        ("two dogs and a cat", "two cats and a dog"),
    ],
)
def test_same_meaning_true_changes_pass(caption: str, negative: str) -> None:
    assert failure(caption, negative) is None


def test_same_meaning_scramble_that_only_moves_phrases_is_rejected() -> None:
    caption = "the quick brown fox jumps over the lazy dog in the quiet park"
    moved = "over the lazy dog jumps the quick brown fox in the quiet park"
    broken = "the quick over fox dog jumps the lazy brown in park quiet the"
    assert failure(caption, moved, scrambled=True) is RejectReason.SAME_MEANING
    assert failure(caption, broken, scrambled=True) is None


def test_checks_are_named_after_what_they_find() -> None:
    assert list(CHECKS) == ["identity", "duplicate", "kind", "synonym", "same_meaning"]
