"""Whatever a server says is that row's answer or that row's error: the real client, a real HTTP server."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import date
from typing import Any

import pytest

from degla_ray.config import NegativesConfig, OpenAIConfig, VLLMConfig
from degla_ray.errors import SettingError
from degla_ray.negatives.llm.engines.openai_engine import OpenAIActor, OpenAIEngine
from degla_ray.negatives.llm.slots import Slot
from tests.openai_server import Reply, Server, completion, openai_server

GOOD = "A white cat chases a brown dog."
BATCH = {"key": ["k"], "kind": ["swap_nouns"], "caption": ["A brown dog chases a white cat."], "seed": [7]}
KEY = "sk-secret/1234+5678"


def ask(
    server: Server, *, timeout_s: float = 20.0, joint: bool = False, slot: str = "", **settings: Any
) -> dict[str, Any]:
    """The columns of one answer."""
    config = OpenAIConfig(base_url=server.url, model="small", **{"max_retries": 1, **settings})
    sampling = {"temperature": 0.7, "top_p": 0.95, "max_tokens": 64}
    heads = {"swap_nouns": [{"role": "system", "content": "Swap."}]}
    actor = OpenAIActor(server=config, heads=heads, joint=joint, sampling=sampling, timeout_s=timeout_s)
    batch = actor.answer({**BATCH, "applicable": [True], "slot": [slot]})
    actor.loop.call_soon_threadsafe(actor.loop.stop)
    return {
        name: batch[name][0] for name in ("text", "finish_reason", "error", "status", "completion_tokens")
    }


def said(reply: Reply, **settings: Any) -> dict[str, Any]:
    with openai_server(lambda request, server: reply) as server:
        return ask(server, **settings)


def test_complete_answer_comes_with_its_counts() -> None:
    assert said(completion(GOOD)) == {
        "text": GOOD,
        "finish_reason": "stop",
        "error": "",
        "status": 0,
        "completion_tokens": 12,
    }


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"not json",
        b"\xff\xfe\x00",
        b"<!DOCTYPE html><html><body>Welcome to nginx</body></html>",
        b'data: {"choices": []}\n\ndata: [DONE]\n\n',
        b"[" * 100_000,
        {"choices": []},
        {"choices": None},
        {"choices": {}},
        {"choices": [None]},
        {"choices": [{"text": "old API"}]},
        {"choices": [{"message": None}]},
        {"choices": [{"message": "text"}]},
        {"object": "list"},
    ],
)
@pytest.mark.parametrize("content_type", ["application/json", "text/html; charset=utf-16"])
def test_complete_status_200_that_is_no_completion_is_the_rows_error(body: Any, content_type: str) -> None:
    found = said(Reply(body=body, headers={"Content-Type": content_type}))
    assert found["error"] == "engine_error"
    assert found["text"].startswith("status 200, but no completion: ") or "Recursion" in found["text"]
    assert len(found["text"]) <= 300


@pytest.mark.parametrize(
    ("error", "text", "status"),
    [
        ({"message": "The model is overloaded", "code": 503}, "The model is overloaded", 503),
        ({"message": "No credits", "code": "none"}, "No credits", 0),
        ("out of memory", "out of memory", 0),
        ({"detail": {"error": "out of memory"}}, "out of memory", 0),
    ],
)
def test_complete_error_in_a_reply_with_status_200_is_the_rows_error(error, text, status) -> None:
    found = said(Reply(body={"error": error}))
    assert (found["error"], found["text"], found["status"]) == ("engine_error", text, status)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": None}, ""),
        ({}, ""),
        ({"content": 3}, ""),
        ({"content": [{"type": "text", "text": GOOD}]}, GOOD),
        (
            {"content": [{"type": "text", "text": "A white cat "}, None, {"text": "chases."}]},
            "A white cat chases.",
        ),
        (
            {"content": [{"type": "thinking", "thinking": [{"text": "Hm"}]}, {"type": "text", "text": GOOD}]},
            f"<think>Hm</think>{GOOD}",
        ),
        ({"content": None, "refusal": "I cannot do that."}, "I cannot do that."),
        ({"content": None, "reasoning_content": "Hm"}, "<think>Hm"),
        ({"content": "", "reasoning": "Hm"}, "<think>Hm"),
        ({"content": GOOD, "reasoning_content": "Hm"}, GOOD),
        ({"content": "half a \ud83d"}, "half a �"),
    ],
)
def test_complete_message_in_any_form_is_an_answer(message: dict[str, Any], text: str) -> None:
    found = said(Reply(body={"choices": [{"message": message}]}))
    assert (found["text"], found["error"]) == (text, "")
    found["text"].encode()  # a lone half of a character would raise


@pytest.mark.parametrize(
    "usage", [None, [], {"completion_tokens": None}, {"completion_tokens": -1}, {"completion_tokens": 2**40}]
)
def test_complete_counts_that_are_none_are_zero(usage: Any) -> None:
    found = said(Reply(body={"choices": [{"message": {"content": GOOD}}], "usage": usage}))
    assert (found["text"], found["completion_tokens"]) == (GOOD, 0)


@pytest.mark.parametrize(
    ("status", "body", "text"),
    [
        (
            400,
            {"error": {"message": "Unsupported parameter: 'max_tokens'"}},
            "Unsupported parameter: 'max_tokens'",
        ),
        (401, {"error": {"message": "Incorrect API key"}}, "Incorrect API key"),
        (404, {"detail": "Not Found"}, "Not Found"),
        (404, b"<html>\n<h1>404</h1>\n</html>", "<html> <h1>404</h1> </html>"),
        (422, {"detail": [{"msg": "field required"}]}, '[{"msg": "field required"}]'),
        (403, b"", "PermissionDeniedError without a word"),
        (500, {"error": "boom"}, "boom"),
    ],
)
def test_complete_status_and_sentence_of_a_refusal_are_kept(status: int, body: Any, text: str) -> None:
    found = said(Reply(body=body, status=status))
    assert (found["error"], found["status"], found["text"]) == ("engine_error", status, text)


def test_complete_rate_limit_is_waited_for_as_the_server_says() -> None:
    def answer(request: dict[str, Any], server: Server) -> Reply:
        if len(server.requests) == 1:
            return Reply(body={"error": {"message": "slow down"}}, status=429, headers={"Retry-After": "1"})
        return completion(GOOD)

    with openai_server(answer) as server:
        started = time.monotonic()
        assert ask(server)["text"] == GOOD
        assert time.monotonic() - started >= 1
        assert len(server.requests) == 2


def test_complete_nobody_at_the_port_is_the_rows_error() -> None:
    server = Server(url="http://127.0.0.1:9/v1", requests=[], over=asyncio.Event())  # type: ignore[arg-type]
    found = ask(server, max_retries=0)
    assert (found["error"], found["status"]) == ("engine_error", 0)
    assert "APIConnectionError" in found["text"]


def test_complete_hung_server_is_given_up_in_time_whatever_the_retries() -> None:
    def never(request: dict[str, Any], server: Server) -> Reply:
        server.over.wait(30)
        return completion(GOOD)

    with openai_server(never) as server:
        started = time.monotonic()
        found = ask(server, timeout_s=0.5, max_retries=5)
        assert 0.4 < time.monotonic() - started < 3
    assert (found["error"], found["text"]) == ("timeout", "no answer within 0.5 s")


def test_complete_server_that_sends_a_byte_at_a_time_is_given_up_in_time() -> None:
    started = time.monotonic()
    found = said(Reply(body=completion(GOOD).body, trickle_s=0.1), timeout_s=0.5)
    assert time.monotonic() - started < 3
    assert found["error"] == "timeout"


def test_complete_server_that_refuses_again_and_again_is_given_up_in_time() -> None:
    reply = Reply(body={"error": "busy"}, status=503, headers={"Retry-After": "1"})
    started = time.monotonic()
    assert said(reply, timeout_s=0.5, max_retries=100)["error"] == "timeout"
    assert time.monotonic() - started < 3


def test_complete_key_that_a_server_repeats_is_never_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    forms = [KEY, KEY.replace("/", "%2F").replace("+", "%2B"), f"Bearer {KEY}"]
    for form in forms:
        refused = said(Reply(body={"error": {"message": f"wrong key {form}!"}}, status=401))
        at_the_cut = said(Reply(body={"error": {"message": f"{'long ' * 57}{form}!"}}, status=401))
        answered = said(completion(f"My key is {form}."))
        assert refused["text"] in ("wrong key ***!", "wrong key Bearer ***!")
        for found in (refused, at_the_cut, answered):
            assert "sk-" not in json.dumps(found)
    with openai_server(lambda request, server: completion(GOOD)) as server:
        ask(server)
        assert server.requests[0]["key"] == KEY
        monkeypatch.setenv("OPENAI_API_KEY", "dog")
        assert ask(server)["text"] == GOOD, "no key, and a word of the answer"


def test_complete_request_has_no_stop_string_and_the_fields_that_are_asked_for() -> None:
    with openai_server(lambda request, server: completion(GOOD)) as server:
        ask(server)
        ask(
            server,
            extra_body={
                "max_completion_tokens": 500,
                "temperature": None,
                "top_p": 0.5,
                "chat_template_kwargs": {"enable_thinking": False},
            },
        )
        plain, other = server.requests
    assert "stop" not in plain
    assert (plain["max_tokens"], plain["temperature"], plain["seed"]) == (64, 0.7, 7)
    assert "max_tokens" not in other
    assert "temperature" not in other
    assert (other["max_completion_tokens"], other["top_p"]) == (500, 0.5)
    assert other["chat_template_kwargs"] == {"enable_thinking": False}


def test_complete_slot_is_asked_for_with_its_part_marked_and_its_options_as_the_schema() -> None:
    slot = Slot(before="A ", part="dog", after=" runs.", options=("cat", "horse"), count=2)
    with openai_server(lambda request, server: completion('{"answers": ["cat", "horse"]}')) as server:
        ask(server, slot=slot.to_json())
    (request,) = server.requests
    assert request["messages"][-1]["content"] == "A [dog] runs."
    answers = request["response_format"]["json_schema"]["schema"]["properties"]["answers"]
    assert (answers["items"]["enum"], answers["minItems"]) == (["cat", "horse"], 2)


@pytest.mark.parametrize("field", ["model", "messages", "stream", "n"])
def test_config_fields_that_are_ours_are_refused(field: str) -> None:
    with pytest.raises(SettingError, match=rf"openai\.extra_body: found \['{field}'\]"):
        OpenAIConfig(extra_body={field: 1})


@pytest.mark.parametrize("value", [date(2026, 1, 1), float("nan"), {1}])
def test_config_fields_that_no_request_can_hold_are_refused(value: Any) -> None:
    with pytest.raises(SettingError, match=r"openai\.extra_body"):
        OpenAIConfig(extra_body={"field": value})
    with pytest.raises(SettingError, match=r"vllm\.chat_template_kwargs"):
        VLLMConfig(chat_template_kwargs={"field": [value]})


def test_config_password_in_the_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(SettingError, match=r"openai\.base_url") as raised:
        OpenAIConfig(base_url="https://me:hunter2@example.org/v1")
    assert "hunter2" not in str(raised.value)


def test_check_settings_key_that_no_header_can_hold_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "“secret”")
    with openai_server(lambda request, server: completion(GOOD)) as server:
        config = NegativesConfig(
            prepared="", output="", engine="openai", openai=OpenAIConfig(base_url=server.url, model="small")
        )
        with pytest.raises(SettingError, match=r"openai\.key_variable") as raised:
            OpenAIEngine(config).check_settings()
    assert "secret" not in str(raised.value)
