"""open_clip models: find, build, load, encode, average, export.

The names below are imported on first use, so that resolving a model's name (`source.py`, `files.py`) does not
import torch, which takes seconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from degla_ray.model import deferred_imports

if TYPE_CHECKING:
    from degla_ray.model.build import load
    from degla_ray.model.encode import encode_image, encode_text
    from degla_ray.model.loaded import LoadedModel
    from degla_ray.model.teacher import Teacher

__all__ = ["LoadedModel", "Teacher", "encode_image", "encode_text", "load"]

_MODULES = {
    "LoadedModel": "loaded",
    "Teacher": "teacher",
    "encode_image": "encode",
    "encode_text": "encode",
    "load": "build",
}

deferred_imports.install()


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
