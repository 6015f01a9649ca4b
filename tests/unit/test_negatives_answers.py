"""What a language model wrote: taken as a caption, or refused for its form by name."""

from __future__ import annotations

import pytest

from degla_ray.negatives.llm.answers import Unusable, read_answer
from degla_ray.schema import RejectReason

CAPTION = "A brown dog chases a white cat."
GOOD = "A white cat chases a brown dog."


@pytest.mark.parametrize(
    "answer",
    [
        GOOD,
        f"  {GOOD}\n",
        f'"{GOOD}"',
        f"Rewritten: {GOOD}",
        f"Caption: “{GOOD}”",
        "a white cat chases a brown dog",
        f"\n{GOOD}\nCaption: A man eats.",
        "A white   cat chases a brown dog !",
        f"<think>\nThe nouns are dog and cat.\nI swap them.\n</think>\n\n{GOOD}",
        f"The nouns are dog and cat.\n</think>\n{GOOD}",  # the template opened the thought
        f"<thinking>Hm.</thinking><thinking>Yes.</thinking>{GOOD}\nDone.",
        f"[THINK]Hm.[/THINK]{GOOD}",
        f"{GOOD}\n<think>Was that right?",
    ],
)
def test_read_answer_takes_labels_quotes_and_endings_off(answer):
    assert read_answer(answer, CAPTION, cut_off=False) == GOOD


def test_read_answer_follows_the_captions_case_and_full_stop():
    assert read_answer("A cat chases a dog.", "a dog chases a cat", cut_off=False) == "a cat chases a dog"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", RejectReason.NO_TEXT),
        (" \n ", RejectReason.NO_TEXT),
        ("...", RejectReason.NO_TEXT),
        ("A white cat\x07 chases a brown dog.", RejectReason.NON_PRINTABLE),
        ("A white cat � chases a brown dog.", RejectReason.NON_PRINTABLE),
        ("**A white cat** chases a brown dog.", RejectReason.MARKUP),
        ("1. A white cat chases a brown dog.", RejectReason.MARKUP),
        ("<p>A white cat chases a brown dog.</p>", RejectReason.MARKUP),
        ("I'm sorry, but I cannot help with that.", RejectReason.COMMENTARY),
        ("Sure, a white cat chases a brown dog.", RejectReason.COMMENTARY),
        ("A white cat chases a brown dog (swapped nouns).", RejectReason.COMMENTARY),
        ("The rewritten caption is as follows:", RejectReason.COMMENTARY),
        ("Does a white cat chase a brown dog?", RejectReason.COMMENTARY),
        ("A white cat runs. A brown dog follows.", RejectReason.SEVERAL_SENTENCES),
        ("Белый кот гонит собаку.", RejectReason.WRONG_LANGUAGE),
        ("A white cat chases a 棕色 dog.", RejectReason.WRONG_LANGUAGE),
        ("A white cat chases a brown dog 😀.", RejectReason.GIVE_AWAY),
        ("A white cat chases a brown dog 🇬🇧", RejectReason.GIVE_AWAY),
        ("A white cat ☺ chases a brown dog.", RejectReason.GIVE_AWAY),
        ("A white cat chases a brown dog…", RejectReason.GIVE_AWAY),
        ("A white cat — not a brown dog — chases.", RejectReason.GIVE_AWAY),
        ("A white cat (small) chases a brown dog.", RejectReason.GIVE_AWAY),
        ("A white cat chases a brown dog; it runs.", RejectReason.GIVE_AWAY),
        ("A white cat chases a “brown” dog.", RejectReason.GIVE_AWAY),
        ("A white cat & a brown dog.", RejectReason.GIVE_AWAY),
        ("A white cat chases a brown dog\u20e3.", RejectReason.GIVE_AWAY),
        ("A white cat chases ② brown dogs.", RejectReason.GIVE_AWAY),
        ("A white cat chases a ﬂuffy dog.", RejectReason.GIVE_AWAY),
        ("A WHITE cat chases a brown dog.", RejectReason.GIVE_AWAY),
        ("A White Cat Chases A Brown Dog.", RejectReason.GIVE_AWAY),
        ("<think>\nThe nouns are dog and", RejectReason.REASONING_ONLY),
        ("<think>The nouns are dog and cat.</think>\n", RejectReason.REASONING_ONLY),
        ("The nouns are dog and cat.</think>", RejectReason.REASONING_ONLY),
        ("A white cat " + "and another cat " * 8 + "chases a brown dog.", RejectReason.TOO_LONG),
    ],
)
def test_read_answer_refuses_what_is_no_caption(answer, reason):
    found = read_answer(answer, CAPTION, cut_off=False)
    assert isinstance(found, Unusable)
    assert found.reason is reason


def test_read_answer_refuses_a_line_that_was_cut_off():
    found = read_answer("A white cat chases a", CAPTION, cut_off=True)
    assert isinstance(found, Unusable)
    assert found.reason is RejectReason.CUT_OFF


def test_read_answer_takes_the_whole_line_before_the_cut():
    assert read_answer(f"{GOOD}\nCaption: A ma", CAPTION, cut_off=True) == GOOD


def test_read_answer_allows_what_the_caption_has_itself():
    caption = "A sign reads: STOP! A man waits - patiently."
    answer = "A man reads: STOP! A sign waits - patiently."
    assert read_answer(answer, caption, cut_off=False) == answer


@pytest.mark.parametrize(
    ("caption", "answer", "taken"),
    [
        ("A man's dog sits.", "A dog’s man sits.", "A dog's man sits."),
        ("A man’s dog sits.", "A dog’s man sits.", "A dog’s man sits."),
        ("A man in Paris walks.", "A man in London walks.", "A man in London walks."),
        ("Boston terriers see a dog.", "A dog sees Boston terriers.", "A dog sees Boston terriers."),
        ("A ♥ on a red card.", "A ♥ on a blue card.", "A ♥ on a blue card."),
        ("A café by a red-brick house.", "A red-brick café by a house.", "A red-brick café by a house."),
    ],
)
def test_read_answer_takes_marks_and_capitals_that_give_nothing_away(caption, answer, taken):
    assert read_answer(answer, caption, cut_off=False) == taken


def test_read_answer_thought_that_was_cut_off_is_a_thought():
    found = read_answer("<think>The nouns are", CAPTION, cut_off=True)
    assert isinstance(found, Unusable)
    assert found.reason is RejectReason.REASONING_ONLY
