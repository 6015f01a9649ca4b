"""The list of all settings is committed, so that a new one, a new default or a renamed one is a decision.

After such a decision: `python tests/unit/test_config_settings.py > tests/unit/settings.txt`.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

from docstring_parser import parse_from_object

from degla_ray import config
from degla_ray.config.sections import group_class, is_labelled

LIST = Path(__file__).with_name("settings.txt")


def _settings(config_class: Any, prefix: str) -> Iterator[str]:
    hints = get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        hint, name = hints[field.name], f"{prefix}.{field.name}"
        group = group_class(hint)
        if group is not None:
            yield from _settings(group, f"{name}.LABEL" if is_labelled(hint) else name)
            continue
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        shown = "required" if default is dataclasses.MISSING else repr(default)
        kind = (
            hint.__name__
            if isinstance(hint, type) and not isinstance(hint, types.GenericAlias)
            else str(hint)
        )
        yield f"{name}: {kind.replace('typing.', '')} = {shown}"


def _all_settings() -> str:
    lines = [line for job, each in sorted(config.JOBS.items()) for line in _settings(each, job)]
    return "\n".join(lines) + "\n"


def test_settings_list_is_the_committed_one() -> None:
    assert _all_settings().splitlines() == LIST.read_text().splitlines(), f"see the docstring of {__file__}"


def test_settings_every_one_has_a_docstring_and_every_class_is_frozen() -> None:
    classes = [
        value
        for value in vars(config).values()
        if isinstance(value, type) and dataclasses.is_dataclass(value)
    ]
    assert len(classes) >= 10
    for each in classes:
        assert each.__dataclass_params__.frozen, each
        shown = [param for base in each.__mro__[:-1] for param in parse_from_object(base).params]
        documented = {param.arg_name for param in shown if param.description}
        hints = get_type_hints(each)  # a class of settings stands for itself, with its own docstring
        plain = [
            field.name
            for field in dataclasses.fields(each)
            if not dataclasses.is_dataclass(hints[field.name])
        ]
        missing = [name for name in plain if name not in documented]
        assert not missing, f"{each.__name__}: no docstring under {missing}"


if __name__ == "__main__":
    print(_all_settings(), end="")
