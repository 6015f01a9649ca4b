"""Slots: which part of a caption a model fills, with what, and what becomes of its answer."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from degla_ray.negatives.checks import normal_form
from degla_ray.negatives.llm.answers import QualityChecks, alternatives
from degla_ray.negatives.llm.engines.vllm_actor import BLANK, slot_regex, slot_schema
from degla_ray.negatives.llm.prompting import load_prompts
from degla_ray.negatives.llm.slots import Slot, slot_between
from degla_ray.negatives.plausibility import CaptionModels
from degla_ray.schema import Kind

FOX = "The quick brown fox jumps over the lazy dog in the quiet park."
WORDS = frozenset(
    {"quick", "brown", "fox", "lazy", "dog", "quiet", "park", "cat", "horse", "slow", "beach", "cow", "bird"}
)


@pytest.fixture(scope="module")
def checks() -> QualityChecks:
    return QualityChecks("vllm", "small", words=WORDS, slots=True)


def slot_of(checks: QualityChecks, kind: Kind, caption: str = FOX, seed: int = 1) -> Slot:
    asked = checks.question(caption, kind, seed)
    assert asked["applicable"]
    return Slot.from_json(asked["slot"])


def judge(checks: QualityChecks, slot: Slot, kind: Kind, text: str, **answer: Any) -> list[dict[str, Any]]:
    caption = slot.before + slot.part + slot.after
    row = {
        "key": "k",
        "kind": kind.value,
        "attempt": 0,
        "caption": caption,
        "seed": 1,
        "last": False,
        "wanted": 1,
    }
    asked = {"applicable": True, "slot": slot.to_json(), "text": text, "finish_reason": "stop"}
    return checks.judge(BLANK | row | asked | {"prompt_tokens": 90, "completion_tokens": 9} | answer)


@pytest.mark.parametrize(
    ("texts", "question", "options"),
    [
        (["A dog sees a cat."], "A [man] sees a cat.", ("dog",)),
        (["An owl sees a cat.", "A dog sees a cat."], "[A man] sees a cat.", ("An owl", "A dog")),
        (["A cat sees a man."], "A [man sees a cat].", ("cat sees a man",)),
        (["A man sees a cab."], "A man sees a [cat].", ("cab",)),
    ],
)
def test_slot_between_is_the_words_that_change(
    texts: list[str], question: str, options: tuple[str, ...]
) -> None:
    slot = slot_between("A man sees a cat.", texts)
    assert (slot.question, slot.options) == (question, options)
    assert [slot.filled(option) for option in options] == texts


@pytest.mark.parametrize("kind", Kind)
def test_question_options_are_edits_that_the_checks_accept(checks: QualityChecks, kind: Kind) -> None:
    slot = slot_of(checks, kind)
    plain = QualityChecks("vllm", "small")
    assert len(slot.options) == len(set(slot.options)) > 0
    for option in slot.options:
        row = {
            "key": "k",
            "kind": kind.value,
            "attempt": 0,
            "caption": FOX,
            "seed": 1,
            "last": False,
            "slot": "",
        }
        answer = {"applicable": True, "text": slot.filled(option), "finish_reason": "stop"}
        assert plain.judge(BLANK | row | answer)[0]["state"] == "ok"


def test_question_replacement_is_of_one_word_by_words_of_the_captions(checks: QualityChecks) -> None:
    parts = set()
    for seed in range(8):
        slot = slot_of(checks, Kind.REPLACE_NOUNS, seed=seed)
        assert WORDS.issuperset(slot.options)
        assert slot.part not in slot.options
        parts.add(slot.part)
    assert parts > {"fox"}, "the word to replace depends on the seed"


def test_question_without_a_place_for_the_kind_is_not_asked(checks: QualityChecks) -> None:
    asked = checks.question("A dog sleeps.", Kind.SWAP_NOUNS, 1)
    assert asked == {"applicable": False, "slot": ""}


def test_question_with_models_of_the_captions_offers_no_swap_of_two_sorts(checks: QualityChecks) -> None:
    models = CaptionModels(["A child runs in a field.", "A dog sees a cat."] * 3, [0, 0, 1, 1, 2, 2])
    limited = QualityChecks("vllm", "small", words=WORDS, slots=True, models=models)
    for caption, offered in (("A child runs in a field.", False), ("A dog sees a cat.", True)):
        assert checks.question(caption, Kind.SWAP_NOUNS, 1)["applicable"]
        assert limited.question(caption, Kind.SWAP_NOUNS, 1, fold=2)["applicable"] is offered


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ('["cat", "horse", "cat"]', ["cat", "horse"]),
        ('{"answers": ["cat", "horse"]}', ["cat", "horse"]),
        ('<think>["dog"]</think>\n```json\n["cat"]\n```', ["cat"]),
        ('["cat", "hor', ["cat"]),
        ('["a \\"big\\" cat", ""]', ['a "big" cat']),
        ('["c\\at", "horse"]', ["horse"]),
        ("cat", []),
    ],
)
def test_alternatives_are_the_distinct_whole_strings(answer: str, found: list[str]) -> None:
    assert alternatives(answer) == found


def test_judge_next_alternative_of_the_same_answer_makes_way(checks: QualityChecks) -> None:
    slot = slot_of(checks, Kind.REPLACE_NOUNS)
    good = slot.options[0]
    (row,) = judge(checks, slot, Kind.REPLACE_NOUNS, json.dumps(["spaceship", good]))
    assert (row["state"], row["text"]) == ("ok", slot.filled(good))
    (row,) = judge(checks, slot, Kind.REPLACE_NOUNS, json.dumps(["spaceship"]))
    assert (row["state"], row["reason"], row["text"]) == ("rejected", "wrong_kind", "spaceship")


def test_judge_one_answer_supplies_as_many_as_are_wanted_and_costs_once(checks: QualityChecks) -> None:
    slot = slot_of(checks, Kind.REPLACE_NOUNS, "A dog sleeps.")
    text = json.dumps(slot.options)
    rows = judge(checks, slot, Kind.REPLACE_NOUNS, text, wanted=2)
    assert [row["text"] for row in rows] == [slot.filled(option) for option in slot.options[:2]]
    assert [row["prompt_tokens"] for row in rows] == [90, 0]
    assert len(judge(checks, slot, Kind.REPLACE_NOUNS, text)) == 1


@pytest.mark.parametrize("caption", [FOX, "The thermometer hangs."])
def test_judge_half_a_character_is_a_reject_that_files_can_hold(checks: QualityChecks, caption: str) -> None:
    slot = slot_of(checks, Kind.REPLACE_NOUNS, caption)
    (row,) = judge(checks, slot, Kind.REPLACE_NOUNS, '["\\ud83d"]')
    assert row["state"] == "rejected"
    assert row["text"].encode()


@pytest.mark.parametrize(
    ("text", "finish_reason", "reason"),
    [("", "stop", "no_text"), ('["ca', "length", "cut_off"), ("<think>Hm", "length", "reasoning_only")],
)
def test_judge_answer_without_alternatives_is_rejected_by_name(
    checks: QualityChecks, text: str, finish_reason: str, reason: str
) -> None:
    slot = slot_of(checks, Kind.REPLACE_NOUNS)
    (row,) = judge(checks, slot, Kind.REPLACE_NOUNS, text, finish_reason=finish_reason)
    assert (row["state"], row["reason"]) == ("rejected", reason)


@pytest.mark.parametrize(
    ("word", "reason"),
    [("horse", ""), ("spaceship", "wrong_kind"), ("horses", "wrong_kind"), ("quick", "wrong_kind")],
)
def test_judge_any_word_that_captions_use_fits_by_class_and_number(
    checks: QualityChecks, word: str, reason: str
) -> None:
    slot = slot_of(checks, Kind.REPLACE_NOUNS, "The thermometer hangs.")
    assert (slot.part, slot.options) == ("thermometer", ())
    (row,) = judge(checks, slot, Kind.REPLACE_NOUNS, json.dumps([word]))
    assert row["reason"] == reason


def test_slot_any_word_follows_the_article_that_fits() -> None:
    slot = Slot(before="There is a ", part="gizmo", after=" .", options=(), count=1)
    assert slot.filled("owl") == "There is an owl ."


OPTIONS = ["a (big) cat", 'the "old" dog', "x.y", "a café"]


def test_slot_regex_admits_lists_of_the_options_and_nothing_else() -> None:
    pattern = slot_regex({"options": OPTIONS, "count": 2})
    assert all(
        re.fullmatch(pattern, json.dumps([a, b], ensure_ascii=False)) for a in OPTIONS for b in OPTIONS
    )
    for wrong in ([OPTIONS[0]], ["xzy", "x.y"], [*OPTIONS[:3]]):
        assert not re.fullmatch(pattern, json.dumps(wrong, ensure_ascii=False))
    any_word = slot_regex({"options": [], "count": 1})
    assert re.fullmatch(any_word, '["ice cream"]')
    assert not re.fullmatch(any_word, '["A dog!"]')


def test_slot_schema_admits_the_options_and_nothing_else() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = slot_schema({"options": OPTIONS, "count": 2})
    jsonschema.validate({"answers": OPTIONS[:2]}, schema)
    for wrong in ({"answers": OPTIONS[:1]}, {"answers": ["dog", "dog"]}, {}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


@pytest.mark.parametrize("kind", Kind)
def test_prompt_examples_are_slots_whose_answer_is_the_kinds_own_negative(kind: Kind) -> None:
    slots = load_prompts([kind], 12, seed=0, prompting="slots")[(kind,)]
    whole = load_prompts([kind], 12, seed=0)[(kind,)]
    assert slots.instruction != whole.instruction
    for (question, answer), (caption, negative) in zip(slots.examples, whole.examples, strict=True):
        before, _, after = question.replace("]", "[").split("[")
        assert question.replace("[", "").replace("]", "") == caption
        assert normal_form(before + json.loads(answer)[0] + after) == normal_form(negative)
