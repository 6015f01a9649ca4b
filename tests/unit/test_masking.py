"""Secrets in URIs are hidden in everything that is shown or written."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from degla_ray.errors import DataError, SettingError
from degla_ray.identity import canonical, fingerprint
from degla_ray.masking import MaskedStream, masked
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


def test_masked_errors_and_streams_hide_them() -> None:
    for error in (
        SettingError("tracking.uri", "http://u:hunter2@h", "x"),
        DataError("s3://K:hunter2@b/x", "y", "z"),
    ):
        assert "hunter2" not in str(error)
    stream = io.StringIO()
    print("at http://u:hunter2@h/x", file=MaskedStream(stream))
    assert stream.getvalue() == "at http://***@h/x\n"
