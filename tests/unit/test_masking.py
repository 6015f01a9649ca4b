"""Secrets in URIs are hidden in everything that is shown or written."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from degla_ray.errors import DataError, SettingError, one_line
from degla_ray.identity import canonical, fingerprint
from degla_ray.masking import MASK, SECRET_VARIABLES, MaskedStream, masked
from degla_ray.negatives.llm.answers import QualityChecks
from degla_ray.schema import RejectReason
from degla_ray.sources.base import Reject, Unit, rejects_table
from degla_ray.storage import Storage


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://user:hunter2@host:5000/x", "http://***@host:5000/x"),
        ("https://ghp_token@host/x", "https://***@host/x"),
        ("postgresql://u:p@ss@db/mlflow", "postgresql://***@db/mlflow"),
        ("s3://KEY:SEC/RET+x@bucket/folder", "s3://***@bucket/folder"),
        (
            "s3://bucket/a?access_key=AK&region=eu&secret_key=SK",
            "s3://bucket/a?access_key=***&region=eu&secret_key=***",
        ),
        ("http://h/x?X-Amz-Signature=abc#top", "http://h/x?X-Amz-Signature=***#top"),
        ("postgresql://h/db?user=u&password=p%40", "postgresql://h/db?user=u&password=***"),
        ("one http://a:b@c and 'http://d:e@f'", "one http://***@c and 'http://***@f'"),
        ("{'api_key': 'sk-1', 'n': 'x'}", "{'api_key': '***', 'n': 'x'}"),
        ('{"client_secret": "a\\"b", "n": "x"}', '{"client_secret": "***", "n": "x"}'),
        ("Authorization: Bearer sk-1, x", "Authorization: Bearer ***, x"),
        ("AWS_SECRET_ACCESS_KEY=abc+/= is set", "AWS_SECRET_ACCESS_KEY=*** is set"),
        ("x-api-key: sk-1", "x-api-key: ***"),
        ("401: Bearer abcdefgh.ijk is wrong", "401: Bearer *** is wrong"),
    ],
)
def test_masked_hides_credentials(text: str, expected: str) -> None:
    assert masked(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "http://host:5000/a@b",
        "s3://bucket/2024@home/x?region=eu-west-1",
        "sqlite:////home/me@work/mlflow.db",
        "/a/b:c@d",
        "a photo of me@home: 3://",
        "s3://bucket/tokens=3/x",
        "openai.key_variable: found 'OPENAI_API_KEY'; expected a variable with a key",
        "a bearer of a secret, with the key: a photo",
        '{"max_tokens": 64, "unk_token": "<unk>", "tokenizer": "x", "password": 3}',
    ],
)
def test_masked_leaves_what_is_no_credential(text: str) -> None:
    assert masked(text) == text


def test_masked_json_stays_json_and_fingerprints_do_not_depend_on_secrets(tmp_path: Path) -> None:
    folder = Storage(str(tmp_path))
    uri = "http://u:\"p'w@host"
    folder.write_json({"uri": "s3://K:S@b/x", "odd": uri, "rest": [1]}, "a.json")
    assert json.loads((tmp_path / "a.json").read_text())["uri"] == "s3://***@b/x"
    assert fingerprint({"input": "s3://K:S@b/x"}) == fingerprint({"input": "s3://K:T@b/x"})
    assert canonical({"input": "s3://K:S@b/x"}) == {"input": "s3://***@b/x"}


def test_masked_values_under_a_secrets_name_are_hidden_in_json_and_fingerprints(tmp_path: Path) -> None:
    """Names in lower case stay readable, numbers stay numbers."""
    value = {"extra_body": {"api_key": "sk-1", "max_tokens": 64, "headers": [{"Authorization": 'Basic "x'}]}}
    hidden = {"extra_body": {"api_key": MASK, "max_tokens": 64, "headers": [{"Authorization": MASK}]}}
    Storage(str(tmp_path)).write_json(value, "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == hidden
    assert canonical(value) == hidden
    assert fingerprint(value) == fingerprint(hidden)


@pytest.mark.parametrize("variable", SECRET_VARIABLES)
def test_masked_value_of_a_variable_is_hidden_wherever_it_is_repeated(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, 'wJalr/"K7')
    for form in ('wJalr/"K7', r"wJalr/\"K7", "wJalr%2F%22K7"):
        assert masked(f"denied for {form}.") == "denied for ***."
    monkeypatch.setenv(variable, "a dog")
    assert masked("a dog runs") == "a dog runs"


def test_masked_rejects_and_foreign_errors_hide_them() -> None:
    uri = "s3://K:hunter2@bucket/a.parquet"
    reject = Reject(
        unit=Unit.IMAGE, row_id="1", reason=RejectReason.UNREADABLE, detail=f"no {uri}", text=f"{uri}:0:1"
    )
    assert "hunter2" not in str(rejects_table([reject]).to_pylist())
    assert one_line(OSError(f"denied: {uri}")) == "OSError: denied: s3://***@bucket/a.parquet"
    answer = dict.fromkeys(("caption", "kind", "text"), "") | {
        **{"applicable": True, "error": "engine_error", "status": 401, "last": False, "slot": ""},
        **{"caption": "a dog", "kind": "swap_nouns", "text": f"denied: {uri}"},
    }
    assert "hunter2" not in str(QualityChecks("vllm", "m").judge(answer))


def test_masked_errors_and_streams_hide_them() -> None:
    for error in (
        SettingError("tracking.uri", "http://u:hunter2@h", "x"),
        DataError("s3://K:hunter2@b/x", "y", "z"),
    ):
        assert "hunter2" not in str(error)
    stream = io.StringIO()
    print("at http://u:hunter2@h/x", file=MaskedStream(stream))
    assert stream.getvalue() == "at http://***@h/x\n"
