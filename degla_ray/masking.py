"""Mask secrets in settings and foreign texts wherever one is shown or written.

A URI may carry a password (`https://USER:PASSWORD@HOST`, `s3://KEY:SECRET@BUCKET`, `?api_key=…`), a free-form
setting a key (`openai.extra_body: {api_key: …}`), and a server's error may repeat either. Everything that is
written as JSON, hashed, logged to MLflow or printed, and every reject, goes through this file; only a URI
that is opened keeps its secret. Prefer environment variables for passwords: their values are masked too.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, TextIO
from urllib.parse import quote

MASK = "***"
SECRET_VARIABLES = (
    *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_STORAGE_ACCOUNT_KEY", "DATABRICKS_TOKEN"),
    *("HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "OPENAI_API_KEY", "RAY_AUTH_TOKEN"),
)
"""Environment variables whose values are masked in every text."""
SHORTEST = 8
"""Characters; a shorter value ("none", "EMPTY") is no secret and may be a word of a caption."""
_USERINFO = re.compile(
    r"""://(?: [^\s/'"]*@                          # everything before the last @ of the host part
          | [^\s/@:'"]*:(?!\d{1,5}/)[^\s@'"]*@ )    # also a secret with an unescaped /
    """,
    re.VERBOSE,
)
_QUERY = re.compile(
    r"""([?&;][^=&\s'"]{0,40}(?:secret|passw|pwd|token|access_?key|api_?key|signature|credential)"""
    r"""[^=&\s'"]{0,40}=)[^&\s#'"]+""",
    re.IGNORECASE,
)
_NAME = (
    r"[\w-]{0,40}(?:api[_-]?key|access[_-]?key|secret|passw(?:or)?d|passphrase|auth[_-]?token|authorization)"
    r"(?:[_-]\w{1,20})?"
)
_IS_NAME = re.compile(rf"{_NAME}|token|credentials?", re.IGNORECASE)
_QUOTED = re.compile(rf"""(["'](?:{_NAME})["']\s*:\s*)(["'])(?:\\.|(?!\2)[^\\])*\2""", re.IGNORECASE)
_PLAIN = re.compile(
    rf"""(?<![\w"'-])((?:{_NAME})\s*[=:]\s*(?:(?:Bearer|Basic)\s+)?)[^\s'",;)}}&*\\]+""", re.IGNORECASE
)
_BEARER = re.compile(r"\b(Bearer\s+)[\w.~+/=-]{8,}")
_HINT = re.compile(r"key|secret|passw|passphrase|auth|bearer", re.IGNORECASE)


def masked(text: str) -> str:
    """Return `text` with secrets replaced by `***`.

    Masked are the credentials of every URI in it, values after a name such as `api_key` or `Authorization`,
    and the values of SECRET_VARIABLES.
    """
    for variable in SECRET_VARIABLES:
        text = without(text, os.environ.get(variable, ""))
    if "://" in text:
        text = _QUERY.sub(rf"\1{MASK}", _USERINFO.sub(f"://{MASK}@", text))
    if _HINT.search(text):
        text = _BEARER.sub(rf"\1{MASK}", _PLAIN.sub(rf"\1{MASK}", _QUOTED.sub(rf"\1\2{MASK}\2", text)))
    return text


def without(text: str, secret: str) -> str:
    """Return the text with every occurrence of a secret masked, also as JSON or a URL writes it."""
    if len(secret) >= SHORTEST:
        for form in {secret, json.dumps(secret)[1:-1], quote(secret, safe="")}:
            text = text.replace(form, MASK)
    return text


def is_secret(name: str) -> bool:
    """Return whether a free-form setting of this name holds a secret."""
    return _IS_NAME.fullmatch(name) is not None


def masked_values(value: Any) -> Any:
    """Return a JSON value with the secrets in its texts, and every text under a secret's name, masked."""
    if isinstance(value, Mapping):
        return {
            masked(str(key)): MASK if is_secret(str(key)) and isinstance(inner, str) else masked_values(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [masked_values(inner) for inner in value]
    return masked(value) if isinstance(value, str) else value


class MaskedStream:
    """A text stream that masks secrets in written text and otherwise acts as the wrapped stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(masked(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)
