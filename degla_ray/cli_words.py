"""Read a command line and its YAML files into the words that the parser takes.

Before parsing, the content of a YAML file takes the place of its name, a setting's old name is replaced by
the new one, and the words after a list setting become one list. The sections that a user names
(`fine_tune.LABEL`, `pretrain`) are collected, because the parser has an option for each of their settings.
"""

from __future__ import annotations

import json
import re
import sys
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from degla_ray.config.renamed import RENAMED
from degla_ray.config.sections import group_class, is_labelled, is_optional
from degla_ray.errors import DeglaError, SettingError

Word = str | dict[str, Any]
"""A word of the command line, or settings as nested in a YAML file."""

CLASS_PATH = "class_path"
"""Key by which jsonargparse would import a class."""
_LABELS = "labels, each with its settings, such as {degla: {max_steps: 9}}"


def read(words: Sequence[str], config_class: type) -> list[Word]:
    """Return the words with the content of YAML files, and of groups given as mappings, in their place.

    Raises:
        DeglaError: a file that cannot be read or holds no settings.
    """
    found: list[Word] = []
    waiting, option = list(words), ""
    while waiting:
        word = waiting.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        hint = _hint(config_class, name)
        is_group = group_class(hint) is not None
        if not word.startswith("--") or not (name == "config" or is_group):
            option = name if word.startswith("--") else option
            _without_classes(_nested(option, value if word.startswith("--") else word))
            found.append(word)
            continue
        if not equals:
            if not waiting or waiting[0].startswith("--"):
                found.append(word)  # the parser tells that its value is missing
                continue
            value = waiting.pop(0)
        if name == "config":
            found.append(settings_only(_file(value), config_class))
            continue
        content = yaml.safe_load(value) if value == "null" or value.startswith("{") else value
        content = _of_group(content, hint, name)
        found.append(_nested(name, content))
    return found


def _nested(name: str, value: Any) -> dict[str, Any]:
    """Return a setting under its dotted name as a YAML file has it."""
    for part in reversed(name.split(".")):
        value = {part: value}
    return typing.cast("dict[str, Any]", value)


def settings_only(content: Mapping[Any, Any], config_class: type, path: str = "") -> dict[str, Any]:
    """Return settings as nested in a YAML file, with the content of files that it names for groups.

    The parser takes a text or a `class_path` in place of a group for a class, and imports it before it is
    refused. Neither reaches the parser.

    Args:
        content: the settings.
        config_class: dataclass that they are for; unknown names are left to the parser.
        path: dotted name of the group, for messages.

    Raises:
        SettingError: a group is given as something other than its settings; names it.
    """
    hints = typing.get_type_hints(config_class)
    return {
        key: _of_group(value, hints.get(str(key)), f"{path}.{key}".removeprefix("."))
        for key, value in content.items()
    }


def _of_group(value: Any, hint: Any, name: str) -> Any:
    """Return the value of a setting, or of a group as `settings_only` does."""
    group = group_class(hint)
    if group is None or value is None:
        return _without_classes(value, name)
    if isinstance(value, str) and Path(value).is_file():
        value = _file(value)
    if isinstance(value, Mapping) and is_labelled(hint):
        inner = typing.get_args(hint)[1]
        return {label: _of_group(each, inner, f"{name}.{label}") for label, each in value.items()}
    if isinstance(value, Mapping):
        return settings_only(_without_classes(value, name), group, name)
    expected = "settings in braces, or a YAML file of them"
    if is_labelled(hint):
        expected = _LABELS
    elif "name" in typing.get_type_hints(group):
        expected += f"; did you mean --{name}.name {value}?"
    raise SettingError(name, value, expected)


def _without_classes(value: Any, name: str = "") -> Any:
    """Return the value of a setting, which names no class at any depth."""
    parsed = _parsed(value) if isinstance(value, str) else value
    if isinstance(parsed, Mapping):
        for key, inner in parsed.items():
            here = f"{name}.{key}".removeprefix(".")
            if key == CLASS_PATH:
                raise SettingError(here, inner, "settings only: a config names no classes")
            _without_classes(inner, here)
    for number, inner in enumerate(parsed if isinstance(parsed, list) else ()):
        _without_classes(inner, f"{name}[{number}]")
    return value


def _parsed(text: str) -> Any:
    """Return a text as the parser reads a value: as YAML, or as it is."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _hint(config_class: type, name: str) -> Any:
    """Return the type of a setting or group by its dotted name; None if there is none of that name."""
    hint: Any = config_class
    for part in name.split("."):
        group = group_class(hint)
        if group is None:
            return None
        hint = group if is_labelled(hint) else typing.get_type_hints(group).get(part)
    return hint


def _file(path: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DeglaError(f"--config: found {path!r}; expected a YAML file ({error.strerror})") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).replace('in "<unicode string>", ', "").split())
        raise DeglaError(f"--config: {path}: {reason}") from error
    if not isinstance(content, dict):
        raise DeglaError(f"--config: {path}: the file holds no settings; expected lines such as `seed: 42`")
    return content


def sections(words: Sequence[Word], config_class: type) -> list[str]:
    """Return the optional and labelled sections that the words name: `pretrain`, `fine_tune.LABEL`.

    Raises:
        SettingError: a label is invalid.
    """
    found: dict[str, None] = {}
    for name, hint in typing.get_type_hints(config_class).items():
        named = (_labels(word, name) for word in words)
        if is_labelled(hint):
            for label in (label for labels in named for label in labels):
                _require_label(name, label, hint)
                found[f"{name}.{label}"] = None
        elif is_optional(hint) and any(map(bool, (_mentions(word, name) for word in words))):
            found[name] = None
    return list(found)


def _mentions(word: Word, name: str) -> bool:
    if isinstance(word, dict):
        return word.get(name) is not None
    return word.startswith(f"--{name}.")


def _labels(word: Word, name: str) -> list[str]:
    if isinstance(word, dict):
        content = word.get(name) or {}
        if not isinstance(content, dict):
            raise SettingError(name, content, _LABELS)
        return [str(label) for label in content]
    label = re.match(rf"--{name}\.([^.=]+)", word)
    return [label[1]] if label else []


def _require_label(name: str, label: str, hint: Any) -> None:
    settings = typing.get_type_hints(typing.cast(type, group_class(hint)))
    if label in settings:
        raise SettingError(name, label, f"a label before the setting, such as {name}.LABEL.{label}")
    if not re.fullmatch(r"[\w-]+", label):
        raise SettingError(name, label, "a label of letters, digits, - and _")


def renamed(words: Sequence[Word], known: Collection[str]) -> list[Word]:
    """Replace old names of settings by the new ones and print a line for each.

    Args:
        words: as `read` returns them.
        known: dotted names of all settings.

    Raises:
        DeglaError: a setting is given by both names.
    """
    given = {path for word in words for path in _paths(word, known)}
    changed = {path: new for path in sorted(given) if (new := _new_name(path, known)) != path}
    taken = given - changed.keys()
    for old, new in changed.items():
        if new in taken:
            raise DeglaError(f"{old}: given a second time as {new}; expected only {new}, its present name")
        taken.add(new)
        print(f"note: {old} is now called {new}", file=sys.stderr)
    return [_with_names(word, changed, known) for word in words]


def _new_name(path: str, known: Collection[str]) -> str:
    for old, new in RENAMED.items():
        if path not in known and (path == old or path.endswith(f".{old}")):
            candidate = path.removesuffix(old) + new
            if candidate in known:
                return candidate
    return path


def _paths(word: Word, known: Collection[str]) -> list[str]:
    if isinstance(word, dict):
        return [".".join(path) for path, _ in _leaves(word, (), known)]
    return [word[2:].partition("=")[0]] if word.startswith("--") else []


def _with_names(word: Word, changed: Mapping[str, str], known: Collection[str]) -> Word:
    if isinstance(word, str):
        name, equals, value = word.partition("=")
        return f"--{changed.get(name[2:], name[2:])}{equals}{value}" if name.startswith("--") else word
    settings: dict[str, Any] = {}
    for path, value in _leaves(word, (), known):
        dotted = ".".join(path)
        *groups, last = changed[dotted].split(".") if dotted in changed else path
        inner = settings
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = value
    return settings


def _leaves(
    content: Mapping[Any, Any], path: tuple[str, ...], known: Collection[str]
) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in content.items():
        here = (*path, str(key))
        if isinstance(value, dict) and value and ".".join(here) not in known:
            yield from _leaves(value, here, known)
        else:
            yield here, value


def joined(words: Sequence[Word], hints: Mapping[str, Any]) -> list[str]:
    """Return words of text alone: lists as one word each, settings of a file as the parser's `--config`.

    Args:
        words: as `renamed` returns them.
        hints: type of each setting by its dotted name; `--evaluations a b` becomes `["a", "b"]` if it is a
            list.
    """
    result: list[str] = []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if isinstance(word, dict):
            text = yaml.safe_dump(word, default_flow_style=True, width=sys.maxsize)
            result.append(f"--config={text}")
            continue
        result.append(word)
        hint = hints.get(word.removeprefix("--")) if word.startswith("--") else None
        among = typing.get_args(hint) if types.NoneType in typing.get_args(hint) else (hint,)
        of_items = next((t for t in among if typing.get_origin(t) is list), None)
        if of_items is None:
            continue
        items: list[str] = []
        while waiting and isinstance(waiting[0], str) and not waiting[0].startswith("--"):
            items.append(str(waiting.pop(0)))
        if items and not items[0].startswith("["):
            of_text = typing.get_args(of_items)[0] is str
            result.append(json.dumps([item if of_text else yaml.safe_load(item) for item in items]))
        else:
            result += items
    return result
