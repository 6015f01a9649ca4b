"""An answer for several kinds, taken apart."""

from __future__ import annotations

import json

from degla_ray.negatives.vllm_actor import BLANK, json_schema, split

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


def test_json_schema_wants_every_kind_and_nothing_else() -> None:
    schema = json_schema(KINDS)
    assert schema["required"] == list(schema["properties"]) == KINDS
    assert schema["additionalProperties"] is False
