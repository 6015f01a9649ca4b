"""Format a job's `--help`: the settings to set first, then a list of groups.

`--help` fits a screen; `--help GROUP` shows the settings of one group and `--help all` shows every one.
"""

from __future__ import annotations

import argparse
import textwrap
import typing
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Any

GENERAL = "general"
"""Name of the group of settings without a dot in their names."""
ALL = "all"
_INDENT, _WIDTH = 34, 100
_OURS = ("help", "config", "print_config", "print_shtab")


class HelpAction(argparse.Action):
    """Option that prints help and exits: `--help`, `--help GROUP` or `--help all`."""

    def __init__(self, option_strings: Sequence[str], dest: str, first: Sequence[str] = (), **kwargs: Any):
        super().__init__(option_strings, dest, nargs="?", default=argparse.SUPPRESS, help=kwargs.get("help"))
        self._first = tuple(first)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        groups = _groups(parser)
        if values not in (None, ALL) and not any(_within(group, values) for group in groups):
            parser.error(f"--help: found {values!r}; expected {ALL}, or one of {', '.join(groups)}")
        print("\n".join(_help(parser, groups, self._first, values)))
        parser.exit()


def settings(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Return every setting of a parser by its dotted name, without the groups' headings."""
    return {
        action.dest: action
        for action in parser._actions
        if action.dest not in _OURS and type(action).__name__ != "_ActionConfigLoad"
    }


def _groups(parser: argparse.ArgumentParser) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in settings(parser):
        group = name.rpartition(".")[0] or GENERAL
        groups.setdefault(group, []).append(name)
    return groups


def _within(group: str, asked: str | None) -> bool:
    return group == asked or group.startswith(f"{asked}.")


def _help(
    parser: argparse.ArgumentParser, groups: dict[str, list[str]], first: Sequence[str], asked: str | None
) -> Iterator[str]:
    known = settings(parser)
    yield f"usage: {parser.prog} [--config FILE.yaml] [--SETTING VALUE ...]"
    yield ""
    yield str(parser.description)
    if asked is None and first:
        yield ""
        yield "Set first:"
        for name in first:
            yield from _lines(known[name])
        yield ""
        yield f"All settings by group (--help GROUP shows one, --help {ALL} shows every one):"
        for group, names in groups.items():
            yield from _two_columns(group, f"{len(names)}: {', '.join(n.rpartition('.')[2] for n in names)}")
    else:
        for group, names in groups.items():
            if asked in (None, ALL) or _within(group, asked):
                yield ""
                yield f"{group}:"
                for name in names:
                    yield from _lines(known[name])
    yield ""
    if any(".LABEL." in name for name in known):
        yield "LABEL is a name of your choice; settings with the same one belong together."
    yield "--config FILE.yaml reads settings from a file; later options override it."
    yield "--print_config prints every setting with its value and ends."


def _lines(action: argparse.Action) -> Iterator[str]:
    hint = getattr(action, "_typehint", str)
    # jsonargparse clears `action.required` during parsing, so the type decides
    required = action.default is None and type(None) not in typing.get_args(hint)
    note = "required" if required else f"default: {_value(action.default)}"
    return _two_columns(f"--{action.dest} {_type(hint)}", f"{action.help} ({note})")


def _type(hint: Any) -> str:
    arguments = [a for a in typing.get_args(hint) if a is not type(None)]
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return "|".join(str(a) for a in arguments)
    if origin is list:
        return f"{_type(arguments[0])} ..."
    if origin is dict:
        return "{NAME: VALUE}"
    if arguments:  # a union with None, or of several types
        return "|".join(_type(a) for a in arguments)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "|".join(str(member.value) for member in hint)
    if hint is bool:
        return "true|false"
    return {str: "TEXT", int: "N", float: "NUMBER"}.get(hint, "VALUE")


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value) if value != "" else "''"


def _two_columns(left: str, right: str) -> Iterator[str]:
    lines = textwrap.wrap(" ".join(right.split()), _WIDTH - _INDENT, break_on_hyphens=False) or [""]
    if len(left) + 4 > _INDENT:
        yield f"  {left}"
    else:
        yield f"  {left:<{_INDENT - 2}}{lines.pop(0)}"
    for line in lines:
        yield " " * _INDENT + line
