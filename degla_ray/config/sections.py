"""Derive a section of one job's settings from another job's class, as `chain` needs them.

A section has the settings of a stage (`TrainConfig`) except those that the chain decides, such as folders.
It is made from the stage's class, so that a new setting of a stage is one of the chain too.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from docstring_parser import parse_from_object

from degla_ray.errors import SettingError

T = TypeVar("T")
StageT = TypeVar("StageT")


def without(stage: type, *settings: str) -> Callable[[type[T]], type[T]]:
    """Return a decorator that fills an empty class with the fields of `stage`, except dotted `settings`."""

    def fill(empty: type[T]) -> type[T]:
        return _derived(stage, settings, empty.__name__, empty.__module__, str(empty.__doc__))

    return fill


def _derived(stage: type, settings: Iterable[str], name: str, module: str, summary: str) -> type[Any]:
    helps = {
        each.arg_name: each.description or ""
        for owner in reversed(stage.__mro__[:-1])  # inherited fields have their docstrings in its bases
        for each in parse_from_object(owner).params
    }
    hints = typing.get_type_hints(stage)
    left_out: dict[str, list[str]] = {setting.partition(".")[0]: [] for setting in settings}
    for setting in settings:
        left_out[setting.partition(".")[0]].append(setting.partition(".")[2])
    fields, lines = [], []
    for field in dataclasses.fields(stage):
        hint = hints[field.name]
        default: dict[str, Any] = {"default": field.default}
        if field.default_factory is not dataclasses.MISSING:
            default = {"default_factory": field.default_factory}
        if "" in left_out.get(field.name, ()):
            continue
        if field.name in left_out:
            hint = _derived(hint, left_out[field.name], f"{name}_{field.name}", module, str(hint.__doc__))
            required = any(
                f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
                for f in dataclasses.fields(hint)
            )
            default = {} if required else {"default_factory": hint}
        fields.append((field.name, hint, dataclasses.field(**default)))
        if field.name in helps:
            lines.append(f"    {field.name}: {' '.join(helps[field.name].split())}")
    document = "\n".join([summary, "", "Args:", *lines])
    namespace = {"__doc__": document, "__module__": module}
    return dataclasses.make_dataclass(name, fields, frozen=True, kw_only=True, namespace=namespace)


def complete(stage: type[StageT], section: object, path: str, **decided: Any) -> StageT:
    """Return a stage's config from a section and the settings that the section leaves out.

    Args:
        stage: class of the config.
        section: an instance of a class that `without` derived from `stage`.
        path: dotted name of the section, for messages.
        decided: the settings that are left out; a mapping for those of a group.

    Raises:
        SettingError: an impossible combination, named with `path` before it.
    """
    hints = typing.get_type_hints(stage)
    values = {field.name: getattr(section, field.name) for field in dataclasses.fields(section)}  # type: ignore[arg-type]
    for name, value in decided.items():
        grouped = isinstance(value, Mapping) and name in values
        values[name] = complete(hints[name], values[name], f"{path}.{name}", **value) if grouped else value
    try:
        return stage(**values)
    except SettingError as error:
        raise error.below(path, stage) from None


def group_class(hint: Any) -> type | None:
    """Return the settings class of a group: of `C`, `C | None` or, for labelled groups, `dict[str, C]`."""
    inner = [each for each in typing.get_args(hint) if each is not types.NoneType]
    found = inner[-1] if is_labelled(hint) or is_optional(hint) else hint
    return found if dataclasses.is_dataclass(found) else None  # type: ignore[return-value]


def is_labelled(hint: Any) -> bool:
    """Return whether a type is a mapping from labels that the user chooses to groups of settings."""
    return typing.get_origin(hint) is dict and dataclasses.is_dataclass(typing.get_args(hint)[1])


def is_optional(hint: Any) -> bool:
    """Return whether a type is a group of settings or None."""
    inner = typing.get_args(hint)
    return types.NoneType in inner and any(dataclasses.is_dataclass(each) for each in inner)
