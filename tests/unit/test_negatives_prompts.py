"""The few-shot examples: a file a kind and one for all, each example what its kind and the checks ask for."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import degla_ray.negatives.llm
from degla_ray.language.grammar import load_yaml
from degla_ray.language.tagging import Tag, Token, load_tagger
from degla_ray.negatives.checks import Candidate, Language, first_failure, normal_form
from degla_ray.negatives.llm.prompting import load_prompts
from degla_ray.schema import Kind

FOLDER = Path(degla_ray.negatives.llm.__file__).with_name("prompts")
JOINT, SLOTS = "joint.yaml", "slots.yaml"
FEWEST = 20
"""Examples that a file must hold at least."""

ARTICLES = {"a", "an", "the"}
SWAPS = (Kind.SWAP_NOUNS, Kind.SWAP_ADJECTIVES)
REPLACEMENTS = (Kind.REPLACE_NOUNS, Kind.REPLACE_ADJECTIVES)


def prompt(kind: Kind) -> dict[str, Any]:
    return load_yaml(FOLDER / f"{kind.value}.yaml")


def examples(*kinds: Kind) -> list[Any]:
    """Kind, caption and negative of every example of these kinds, in their own files and in the joint one."""
    own = [
        pytest.param(kind, example["caption"], example["negative"], id=f"{kind.value}-{number}")
        for kind in kinds
        for number, example in enumerate(prompt(kind)["examples"], start=1)
    ]
    together = load_yaml(FOLDER / JOINT)["examples"]
    return own + [
        pytest.param(kind, example["caption"], example[kind.value], id=f"joint-{kind.value}-{number}")
        for kind in kinds
        for number, example in enumerate(together, start=1)
    ]


def words(text: str) -> list[Token]:
    """Tokens but articles and punctuation."""
    tokens = load_tagger().analyse(text).tokens
    return [t for t in tokens if t.lemma not in ARTICLES and t.tag is not Tag.PUNCT]


def changed(caption: str, negative: str) -> list[tuple[Token, Token]]:
    """The words that differ, in place."""
    pairs = zip(words(caption), words(negative), strict=True)
    return [(a, b) for a, b in pairs if a.text.lower() != b.text.lower()]


def is_of_kind(kind: Kind, token: Token) -> bool:
    """Whether a word is of the class that a swap or replacement of this kind moves."""
    if kind in (Kind.SWAP_NOUNS, Kind.REPLACE_NOUNS):
        return token.tag is Tag.NOUN
    return load_tagger().lexicon.lists_adjective(token.text)  # colours are nouns too: a woman in red


def test_prompts_there_is_one_file_for_each_kind() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {
        JOINT,
        SLOTS,
        *(f"{kind.value}.yaml" for kind in Kind),
    }


def test_prompts_slots_have_an_instruction_for_each_kind() -> None:
    instructions = load_yaml(FOLDER / SLOTS)
    assert set(instructions) == {kind.value for kind in Kind}
    assert all("[brackets]" in text for text in instructions.values())


def test_prompts_joint_file_has_enough_examples_of_all_kinds() -> None:
    together = load_yaml(FOLDER / JOINT)["examples"]
    assert len(together) >= FEWEST
    for example in together:
        assert set(example) == {"caption", *(kind.value for kind in Kind)}
        assert len({normal_form(text) for text in example.values()}) == 1 + len(Kind)


def test_prompts_joint_question_shows_the_kinds_asked_for_and_no_others() -> None:
    kinds = tuple(kind for kind in Kind if kind in (Kind.SWAP_NOUNS, Kind.RESHUFFLE))
    prompts = load_prompts(list(Kind), 5, seed=0, prompting="joint")
    assert len(prompts) == 2 ** len(Kind) - 1
    for _, answer in prompts[kinds].examples:
        assert set(json.loads(answer)) == {"swap_nouns", "reshuffle"}
    assert "replace_nouns:" not in prompts[kinds].instruction


@pytest.mark.parametrize("kind", Kind)
def test_prompts_file_has_an_instruction_and_enough_examples(kind: Kind) -> None:
    data = prompt(kind)
    assert set(data) == {"instruction", "examples"}
    assert isinstance(data["instruction"], str)
    assert data["instruction"].strip()
    assert len(data["examples"]) >= FEWEST
    for example in data["examples"]:
        assert set(example) == {"caption", "negative"}
        assert all(isinstance(text, str) and text == text.strip() for text in example.values())


def test_prompts_no_text_stands_twice() -> None:
    texts = Counter(
        normal_form(text)
        for content in (*map(prompt, Kind), load_yaml(FOLDER / JOINT))
        for example in content["examples"]
        for text in example.values()
    )
    assert [text for text, times in texts.items() if times > 1] == []


@pytest.mark.parametrize(("kind", "caption", "negative"), examples(*Kind))
def test_prompts_example_passes_the_checks(kind: Kind, caption: str, negative: str) -> None:
    tagger = load_tagger()
    candidate = Candidate(
        caption=tagger.analyse(caption), negative=tagger.analyse(negative), accepted=frozenset()
    )
    assert first_failure(candidate, Language(grammar=tagger.grammar, lexicon=tagger.lexicon)) is None
    assert caption.endswith(".") == negative.endswith(".")


@pytest.mark.parametrize(("kind", "caption", "negative"), examples(Kind.RESHUFFLE, *SWAPS))
def test_prompts_moving_kinds_keep_the_words(kind: Kind, caption: str, negative: str) -> None:
    assert Counter(t.lemma for t in words(caption)) == Counter(t.lemma for t in words(negative))


@pytest.mark.parametrize(("kind", "caption", "negative"), examples(*SWAPS))
def test_prompts_swap_exchanges_two_words_of_its_class(kind: Kind, caption: str, negative: str) -> None:
    (first, new_first), (second, new_second) = changed(caption, negative)
    assert (first.lemma, second.lemma) == (new_second.lemma, new_first.lemma)
    assert all(is_of_kind(kind, token) for token in (first, second, new_first, new_second))


@pytest.mark.parametrize(("kind", "caption", "negative"), examples(*REPLACEMENTS))
def test_prompts_replacement_changes_one_word_of_its_class(kind: Kind, caption: str, negative: str) -> None:
    [(old, new)] = changed(caption, negative)
    assert is_of_kind(kind, old)
    assert is_of_kind(kind, new)
