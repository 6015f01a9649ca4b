"""Quality checks of answers: which edit was made, and whether it may still be true."""

from __future__ import annotations

import pytest

from degla_ray.negatives.llm.answers import QualityChecks
from degla_ray.negatives.llm.engines.vllm_actor import BLANK
from degla_ray.negatives.llm.sending import seed_of
from degla_ray.schema import Kind

FOX = "The quick brown fox jumps over the lazy dog in the quiet park."


@pytest.fixture(scope="module")
def checks():
    return QualityChecks("vllm", "small")


def judge(checks, kind, text, caption=FOX, **answer):
    row = {"key": "k", "kind": kind, "attempt": 0, "caption": caption, "seed": 1, "last": False}
    rows = checks.judge(
        BLANK | row | {"applicable": True, "slot": "", "text": text, "finish_reason": "stop"} | answer
    )
    return rows


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("swap_nouns", "The quick brown dog jumps over the lazy fox in the quiet park."),
        ("swap_adjectives", "The quick quiet fox jumps over the lazy dog in the brown park."),
        ("replace_adjectives", "The slow brown fox jumps over the lazy dog in the quiet park."),
        ("replace_nouns", "The quick brown fox jumps over the lazy cat in the quiet park."),
        ("reshuffle", "The lazy dog jumps over the quick brown fox in the quiet park."),
    ],
)
def test_judge_accepts_the_papers_kinds(checks, kind, text):
    (row,) = judge(checks, kind, text)
    assert (row["state"], row["text"], row["engine"], row["model"]) == ("ok", text, "vllm", "small")


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        # the paper's own two faults
        ("reshuffle", "Over the lazy dog jumps the quick brown fox in the quiet park.", "same_meaning"),
        ("replace_adjectives", "The swift brown fox jumps over the lazy dog in the quiet park.", "synonym"),
        ("swap_nouns", FOX, "same_as_caption"),
        ("swap_nouns", "quick brown fox jumps over a lazy dog in the quiet park", "same_as_caption"),
        ("swap_nouns", "The quick brown fox jumps over the lazy cat in the quiet park.", "wrong_kind"),
        ("swap_nouns", "The lazy brown fox jumps over the quick dog in the quiet park.", "wrong_kind"),
        ("swap_adjectives", "The quick brown dog jumps over the lazy fox in the quiet park.", "wrong_kind"),
        ("replace_nouns", "The slow brown fox jumps over the lazy dog in the quiet park.", "wrong_kind"),
        ("replace_nouns", "The quick brown cat jumps over the lazy cow in the quiet park.", "wrong_kind"),
        ("replace_nouns", "The quick brown fox sleeps beside the lazy dog in the quiet park.", "wrong_kind"),
        ("reshuffle", "The quick brown fox jumps over the dog in the quiet park.", "wrong_kind"),
        ("reshuffle", "A quick brown fox jumps over a lazy dog in a very quiet park.", "wrong_kind"),
        ("reshuffle", "I cannot do that.", "commentary"),
    ],
)
def test_judge_rejects_by_name(checks, kind, text, reason):
    (row,) = judge(checks, kind, text)
    assert (row["state"], row["reason"]) == ("rejected", reason)


def test_judge_swap_inside_a_list_means_the_same(checks):
    (row,) = judge(
        checks, "swap_nouns", "A cat and a dog sleep on a bed.", caption="A dog and a cat sleep on a bed."
    )
    assert row["reason"] == "same_meaning"


def test_judge_keeps_the_engines_error(checks):
    (row,) = judge(checks, "swap_nouns", "no answer within 3 s", error="timeout")
    assert (row["state"], row["reason"], row["text"]) == ("error", "timeout", "no answer within 3 s")


def test_judge_counts_a_cut_answer_as_rejected(checks):
    (row,) = judge(checks, "swap_nouns", "The quick brown dog jumps over the", finish_reason="length")
    assert (row["state"], row["reason"]) == ("rejected", "cut_off")


def test_judge_asks_nothing_of_a_caption_that_cannot_have_the_kind(checks):
    assert not checks.applicable("A dog sleeps.", Kind.SWAP_NOUNS)
    assert not checks.applicable("A dog sleeps on a bed.", Kind.REPLACE_ADJECTIVES)
    assert checks.applicable("A dog sleeps on a bed.", Kind.SWAP_NOUNS)
    (row,) = judge(checks, "swap_nouns", "", caption="A dog sleeps.", applicable=False)
    assert (row["state"], row["reason"]) == ("not_applicable", "")


def test_judge_fills_in_by_rule_only_after_the_last_attempt():
    checks = QualityChecks("vllm", "small", words=frozenset({"dog", "fox", "cat", "park"}), fills=True)
    (row,) = judge(checks, "swap_nouns", FOX)
    assert row["state"] == "rejected"
    rejected, filled = judge(checks, "swap_nouns", FOX, last=True, prompt_tokens=90)
    assert (rejected["state"], rejected["prompt_tokens"]) == ("rejected", 90)
    assert (filled["state"], filled["engine"], filled["prompt_tokens"]) == ("ok", "rules", 0)
    assert sorted(filled["text"].split()) == sorted(FOX.split())


def test_seed_of_depends_on_what_is_asked_only():
    first = seed_of(0, "k", "reshuffle", 0)
    assert first == seed_of(0, "k", "reshuffle", 0)
    assert len({first, seed_of(1, "k", "reshuffle", 0), seed_of(0, "k", "reshuffle", 1)}) == 3
