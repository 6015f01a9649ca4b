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

LIST = Path(__file__).with_name("settings.txt")


def _job_configs() -> dict[str, type]:
    """Each job's config class by the job's name: the classes that no other class holds."""
    classes = {
        value
        for name, value in vars(config).items()
        if name.endswith("Config") and dataclasses.is_dataclass(value)
    }
    held = {hint for each in classes for hint in get_type_hints(each).values()} - {config.TrainConfig}
    roots = {each.__name__.removesuffix("Config").lower(): each for each in classes - held}
    return dict(sorted(roots.items()))


def _settings(config_class: Any, prefix: str) -> Iterator[str]:
    hints = get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        hint, name = hints[field.name], f"{prefix}.{field.name}"
        if dataclasses.is_dataclass(hint):
            yield from _settings(hint, name)
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
    lines = [line for job, each in _job_configs().items() for line in _settings(each, job)]
    return "\n".join(lines) + "\n"


def test_settings_list_is_the_committed_one() -> None:
    assert _all_settings().splitlines() == LIST.read_text().splitlines(), f"see the docstring of {__file__}"


def test_settings_every_job_is_listed() -> None:
    assert {"prepare", "negatives", "train", "evaluate", "compare", "tune", "chain"} <= _job_configs().keys()


def test_settings_every_one_has_a_docstring_and_every_class_is_frozen() -> None:
    classes = [
        value
        for value in vars(config).values()
        if isinstance(value, type) and dataclasses.is_dataclass(value)
    ]
    assert len(classes) >= 10
    for each in classes:
        assert each.__dataclass_params__.frozen, each
        documented = {param.arg_name for param in parse_from_object(each).params if param.description}
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
