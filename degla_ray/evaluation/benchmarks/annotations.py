"""Read published annotation files and validate their items; an error names the file, the item and the
field."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from degla_ray.errors import DataError
from degla_ray.storage import Storage

AnnotatedItem = tuple[str, dict[str, Any]]  # item id, record
_IN_WORDS = {str: "text that is not empty", int: "a whole number", list: "a list", dict: "an object"}


def read_items(
    storage: Storage, *parts: str, fields: Mapping[str, type], id_field: str | None = None
) -> list[AnnotatedItem]:
    """Read the items of a JSON file that contains an object (item id -> record) or a list of records.

    Args:
        storage, parts: location of the file.
        fields: required fields of a record: name -> str (non-empty), int, list or dict. Other fields are
            ignored.
        id_field: name of the required field that identifies a record; None takes the record's key, or its
            position in a list.

    Raises:
        DataError: missing file, broken JSON, no items, a record that lacks a field, or a duplicate id.
    """
    where, content = storage.path(*parts), read_annotation(storage, *parts)
    if isinstance(content, dict):
        return _checked(where, content.items(), fields, id_field)
    if isinstance(content, list):
        return _checked(where, ((str(i), record) for i, record in enumerate(content)), fields, id_field)
    raise DataError(where, f"a {type(content).__name__}", "an object or a list of items")


def read_lines(
    storage: Storage, *parts: str, fields: Mapping[str, type], id_field: str
) -> list[AnnotatedItem]:
    """Read the items of a file with one JSON record per line, skipping empty lines; see `read_items`."""
    where = storage.path(*parts)
    items = []
    for number, line in enumerate(_text(storage, *parts).split("\n"), start=1):
        if line.strip():
            try:
                items.append((f"line {number}", json.loads(line)))
            except json.JSONDecodeError as error:
                raise DataError(f"{where}, line {number}", f"broken JSON ({error})", "a record") from error
    return _checked(where, items, fields, id_field)


def read_annotation(storage: Storage, *parts: str) -> Any:
    """Return the content of a JSON file.

    Raises:
        DataError: missing file or broken JSON.
    """
    try:
        return json.loads(_text(storage, *parts))
    except json.JSONDecodeError as error:
        raise DataError(storage.path(*parts), f"broken JSON ({error})", "a JSON file") from error


def _text(storage: Storage, *parts: str) -> str:
    where = storage.path(*parts)
    try:
        return storage.read_bytes(*parts).decode()
    except FileNotFoundError as error:
        raise DataError(where, "no such file", "the benchmark's annotation file") from error
    except UnicodeDecodeError as error:
        raise DataError(where, f"a byte that is not UTF-8 at {error.start}", "a JSON file") from error


def _checked(
    where: str, items: Iterable[tuple[str, Any]], fields: Mapping[str, type], id_field: str | None
) -> list[AnnotatedItem]:
    found: dict[str, dict[str, Any]] = {}
    for name, record in items:
        here = f"{where}, item {name!r}"
        if not isinstance(record, dict):
            raise DataError(here, f"{record!r:.80}", f"an object with {', '.join(fields)}")
        for field, kind in fields.items():
            value = record.get(field)
            empty = isinstance(value, str) and not value.strip()
            if type(value) is not kind or empty:
                what = f"{field} {value!r:.80}" if field in record else f"no {field!r}"
                raise DataError(here, what, f"{field}: {_IN_WORDS[kind]}")
        item_id = name if id_field is None else str(record[id_field])
        if item_id in found:
            raise DataError(here, f"{id_field} {item_id!r} a second time", "each item once")
        found[item_id] = record
    if not found:
        raise DataError(where, "no items", "at least one")
    return list(found.items())
