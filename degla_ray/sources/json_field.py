"""Find captions in JSON by the dotted name of a field, through objects and lists."""

from __future__ import annotations

from typing import Any

from degla_ray.schema import RejectReason
from degla_ray.sources.base import Refusal

_MISSING = object()


def captions_at(content: Any, name: str) -> list[Any] | Refusal:
    """Return the unchecked values of a field, with None for each list element that lacks it.

    Args:
        content: parsed JSON.
        name: e.g. `caption`; `meta.caption` for nested objects; `captions.text` if `captions` is a list of
            objects. A field whose literal name contains the dots takes precedence.
    """
    if isinstance(content, dict) and name in content:
        values = _walk(content[name], [])
    else:
        values = _walk(content, name.split("."))
    if values and all(value is _MISSING for value in values):
        found = ", ".join(sorted(content)[:8]) if isinstance(content, dict) else type(content).__name__
        return Refusal(RejectReason.MALFORMED_ROW, f"no field {name!r} ({found})")
    return [None if value is _MISSING else value for value in values]


def _walk(value: Any, names: list[str]) -> list[Any]:
    if isinstance(value, list):
        return [found for each in value for found in _walk(each, names)]
    if not names:
        return [value]
    return _walk(value[names[0]], names[1:]) if isinstance(value, dict) and names[0] in value else [_MISSING]
