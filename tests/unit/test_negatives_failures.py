"""What engines said instead of answers: when asking stops, and what is printed of it."""

from __future__ import annotations

from typing import Any

import pytest

from degla_ray.config import NegativesConfig
from degla_ray.errors import DeglaError
from degla_ray.negatives.llm.failures import Refusals, Refused, remedy, require_accepted, tell

UNKNOWN_KEY = {"state": "error", "reason": "engine_error", "detail": "HTTP 401", "text": "wrong key"}


def row(**columns: Any) -> dict[str, Any]:
    return {"state": "ok", "engine": "openai", "reason": "", "detail": "", "text": "a dog"} | columns


def test_refusals_all_alike_stop_with_the_servers_sentence_and_what_helps() -> None:
    refusals = Refusals("openai", block=20)
    assert refusals.passed([row(**UNKNOWN_KEY)] * 19) == []
    with pytest.raises(Refused, match=r"all of 20 requests with HTTP 401: wrong key; .*openai\.key_variable"):
        refusals.passed([row(**UNKNOWN_KEY)])


@pytest.mark.parametrize(
    "other",
    [
        row(),
        row(state="rejected", reason="markup"),
        row(**UNKNOWN_KEY | {"detail": "HTTP 404"}),
        row(**UNKNOWN_KEY | {"detail": "HTTP 500"}),
        row(**UNKNOWN_KEY | {"detail": ""}),
        row(state="error", reason="timeout"),
    ],
)
def test_refusals_anything_else_between_them_lets_all_pass(other: dict[str, Any]) -> None:
    refusals = Refusals("openai", block=20)
    refused = [row(**UNKNOWN_KEY)] * 3
    assert refusals.passed(refused) == []
    assert refusals.passed([other]) == [*refused, other]
    assert refusals.passed(refused) == []
    assert refusals.release() == refused
    refusals.stop()


def test_refusals_few_that_a_server_will_not_read_do_not_stop_small_blocks() -> None:
    refusals = Refusals("openai", block=1)
    refused = row(**UNKNOWN_KEY | {"detail": "HTTP 400"})
    assert [refusals.passed([refused]) for _ in range(15)] == [[]] * 15
    assert len(refusals.passed([row()])) == 16


@pytest.mark.parametrize("detail", ["HTTP 500", "", "check veto"])
def test_refusals_errors_that_may_pass_do_not_stop(detail: str) -> None:
    refusals = Refusals("openai", block=1)
    errors = [row(**UNKNOWN_KEY | {"detail": detail})] * 50
    assert refusals.passed(errors) == errors


def test_refusals_what_rules_filled_in_and_what_was_not_asked_is_no_answer() -> None:
    rows = [row(**UNKNOWN_KEY), row(engine="rules"), row(state="not_applicable")] * 16
    with pytest.raises(Refused, match="all of 16 requests"):
        Refusals("openai", block=1).passed(rows)


@pytest.mark.parametrize(
    ("reason", "detail", "said", "helps"),
    [
        (
            "engine_error",
            "HTTP 400",
            "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
            "--openai.extra_body '{max_completion_tokens: 64}'",
        ),
        ("engine_error", "HTTP 400", "Unsupported parameter: 'seed'", "'{seed: null}'"),
        ("engine_error", "HTTP 422", "`response_format` is not supported", "'{response_format: null}'"),
        ("engine_error", "HTTP 400", "'max_completion_tokens' is too large: 4000", "generation.max_tokens"),
        ("engine_error", "HTTP 400", "This model's maximum context length is 512", "generation.shots"),
        ("engine_error", "HTTP 401", "who?", "openai.key_variable"),
        ("engine_error", "HTTP 404", "no such model", "openai.model"),
        ("engine_error", "HTTP 429", "slow down", "--generation.retry_failed true"),
        ("engine_error", "HTTP 503", "busy", "--generation.retry_failed true"),
        ("engine_error", "", "status 200, but no completion: <html>", "openai.base_url"),
        ("engine_error", "", "APIConnectionError: Connection error.", "--generation.retry_failed true"),
        ("timeout", "", "no answer within 3 s", "generation.timeout_s"),
        ("reasoning_only", "a thought and no answer", "<think>", "generation.max_tokens"),
    ],
)
def test_remedy_names_the_setting_that_helps(reason: str, detail: str, said: str, helps: str) -> None:
    assert helps in remedy(reason, detail, said)


@pytest.mark.parametrize("detail", ["HTTP 400", "HTTP 404"])
def test_remedy_does_not_send_the_same_again_where_that_cannot_help(detail: str) -> None:
    assert "retry_failed" not in remedy("engine_error", detail, "no")


def test_tell_prints_each_cause_with_its_commonest_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["request 1 failed", "busy", "busy"]
    rows = [row(state="error", reason="engine_error", detail="HTTP 500", text=text) for text in texts]
    rows += [row(state="error", reason="timeout", text="no answer within 3 s"), row()]
    commonest = tell(rows)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0] == f"failed: {commonest}"
    assert lines[0].startswith("failed: 3 engine_error (HTTP 500), e.g. 'busy': ")
    assert lines[1].startswith("failed: 1 timeout, e.g. 'no answer within 3 s': ")


def test_tell_without_failures_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert tell([row(), row(state="rejected", reason="markup")]) == ""
    assert capsys.readouterr().out == ""


def test_require_accepted_nothing_of_what_was_asked_is_an_error() -> None:
    config = NegativesConfig(prepared="", output="out", engine="openai")
    counts = {"attempts.swap_nouns.rejected": 3, "rows.swap_nouns": 0, "rejects.swap_nouns.markup": 3}
    with pytest.raises(DeglaError, match="nothing was accepted of 3 answers: markup 3"):
        require_accepted(config, counts, "")
    with pytest.raises(DeglaError, match="nothing was accepted of 3 answers: 3 timeout"):
        require_accepted(config, counts, "3 timeout")
    require_accepted(config, counts | {"rows.reshuffle": 1}, "")
    require_accepted(config, {"rows.swap_nouns": 0, "attempts.swap_nouns.not_applicable": 3}, "")
