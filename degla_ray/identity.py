"""Convert a configuration to its canonical form, and compute its fingerprint."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any

from degla_ray.masking import MASK, is_secret, masked


def canonical(value: Any) -> Any:
    """Return `value` as JSON types in a canonical form, for hashing.

    Equal numbers have one form (1.0 becomes 1), so equal configs have equal canonical forms. Secrets are
    masked: they do not affect results, and canonical forms are written to files.

    Raises:
        TypeError: the value has no canonical form (an object, a function, NaN).
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: canonical(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return canonical(value.value)
    if isinstance(value, Mapping):
        if not all(isinstance(k, str) for k in value):
            raise TypeError(f"keys {list(value)!r} are not all text")
        return {
            k: MASK if is_secret(k) and isinstance(value[k], str) else canonical(value[k])
            for k in sorted(value)
        }
    if isinstance(value, list | tuple):
        return [canonical(v) for v in value]
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{value} has no canonical form")
        return int(value) if value.is_integer() else float(value)
    if isinstance(value, str):
        return masked(value)
    if value is None or isinstance(value, bool | int):
        return value
    raise TypeError(f"{type(value).__name__} {value!r} has no canonical form")


def fingerprint(value: Any) -> str:
    """Return 16 hex digits that identify a config; equal configs give equal fingerprints."""
    text = json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten a nested config to {dotted name: leaf}, for diffs and MLflow params."""
    if isinstance(value, Mapping) and value:
        return {k: v for name, sub in value.items() for k, v in flatten(sub, f"{prefix}{name}.").items()}
    return {prefix[:-1]: value}
