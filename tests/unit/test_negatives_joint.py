"""An answer for several kinds, taken apart."""

from __future__ import annotations

import json

import pytest

from degla_ray.negatives.llm.answers import Unusable, read_answer
from degla_ray.negatives.llm.engines.vllm_actor import BLANK, json_schema, split
from degla_ray.schema import RejectReason

KINDS = ["swap_nouns", "replace_nouns", "reshuffle"]
COUNTED = BLANK | {"prompt_tokens": 100, "completion_tokens": 31, "cached_tokens": 1, "seconds": 0.6}


def test_split_gives_each_kind_its_text_and_the_tokens_add_up() -> None:
    texts = {kind: f"a caption for {kind}" for kind in KINDS}
    each = split(COUNTED | {"text": json.dumps(texts), "finish_reason": "stop"}, KINDS)
    assert [answer["text"] for answer in each] == list(texts.values())
    for name in ("prompt_tokens", "completion_tokens", "cached_tokens"):
        assert sum(answer[name] for answer in each) == COUNTED[name]
    assert abs(sum(answer["seconds"] for answer in each) - 0.6) < 1e-9


def test_split_kind_that_is_not_there_is_empty() -> None:
    each = split(COUNTED | {"text": '{"swap_nouns": "a dog"}'}, KINDS)
    assert [answer["text"] for answer in each] == ["a dog", "", ""]


def test_split_what_is_no_object_stays_as_it_is() -> None:
    for text in ('{"swap_nouns": "a dog on a', "[1, 2]", "", "no answer within 3 s"):
        each = split(COUNTED | {"text": text, "error": "timeout"}, KINDS)
        assert {(answer["text"], answer["error"]) for answer in each} == {(text, "timeout")}


TEXTS = {kind: f"a caption for {kind}" for kind in KINDS}
OBJECT = json.dumps(TEXTS)


@pytest.mark.parametrize(
    "text",
    [
        f"```json\n{json.dumps(TEXTS, indent=2)}\n```",
        f"Here is the JSON you asked for: {OBJECT}",
        f"Sure {{as you wish}}!\n{OBJECT}\nHope that helps.",
        f'<think>\n{{"swap_nouns": "a first try"}}\n</think>\n{OBJECT}',
        f"[{OBJECT}]",
        json.dumps({"captions": TEXTS}),
        f'{{"note": "an example"}} {OBJECT}',
        f"{OBJECT}\n\n{OBJECT}",
        f"{OBJECT}\n{{",
    ],
)
def test_split_one_object_is_read_wherever_it_stands(text: str) -> None:
    each = split(COUNTED | {"text": text, "finish_reason": "length"}, KINDS)
    assert [answer["text"] for answer in each] == list(TEXTS.values())
    assert {answer["finish_reason"] for answer in each} == {"stop"}, "the object was whole"


def test_split_several_objects_are_none() -> None:
    text = OBJECT + json.dumps(TEXTS | {"reshuffle": "another"})
    assert {answer["text"] for answer in split(COUNTED | {"text": text}, KINDS)} == {text}


def test_split_object_that_was_cut_off_is_cut_off() -> None:
    text = json.dumps(TEXTS, indent=2)[:-20]
    for answer in split(COUNTED | {"text": text, "finish_reason": "length"}, KINDS):
        found = read_answer(answer["text"], "a dog", cut_off=answer["finish_reason"] == "length")
        assert isinstance(found, Unusable)
        assert found.reason is RejectReason.CUT_OFF


@pytest.mark.parametrize("value", [["a dog"], {"text": "a dog"}, 3, None, True])
def test_split_value_that_is_no_text_is_no_caption(value: object) -> None:
    (answer, *_) = split(COUNTED | {"text": json.dumps({"swap_nouns": value})}, KINDS)
    assert answer["text"] == json.dumps(value)


def test_json_schema_wants_every_kind_and_nothing_else() -> None:
    schema = json_schema(KINDS)
    assert schema["required"] == list(schema["properties"]) == KINDS
    assert schema["additionalProperties"] is False
