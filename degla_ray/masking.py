"""Mask secrets in settings wherever a setting is shown or written.

A URI may carry a password (`https://USER:PASSWORD@HOST`, `s3://KEY:SECRET@BUCKET`, `?api_key=…`). Everything
that is written as JSON, hashed, logged to MLflow or printed goes through `masked`; only a URI that is opened
keeps its secret. Prefer the store's environment variables for passwords.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TextIO

MASK = "***"
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


def masked(text: str) -> str:
    """Return `text` with the credentials of every URI in it replaced by `***`."""
    if "://" not in text:
        return text
    return _QUERY.sub(rf"\1{MASK}", _USERINFO.sub(f"://{MASK}@", text))


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
