"""Rows of delimited text files, as spreadsheets and pandas write them, parsed by Python's csv module.

A quoted cell may span several lines. If a quote is never closed, only the line with the opening quote is
lost. Supported encodings are UTF-8 with or without a byte order mark and UTF-16 with one; bytes that are not
valid UTF-8 invalidate only their own row.
"""

from __future__ import annotations

import codecs
import csv
import posixpath
from collections.abc import Iterator
from typing import NamedTuple

from degla_ray.schema import RejectReason
from degla_ray.sources.base import Refusal


class Row(NamedTuple):
    """One row: `file:line` of its first line, that line's text, and its cells or why they are invalid."""

    where: str
    line: str
    cells: list[str] | Refusal


def read_rows(data: bytes, path: str, separator: str) -> Iterator[Row]:
    """Yield the header and each non-blank row after it.

    Args:
        data: the file's content.
        path: the file's name, for messages.
        separator: the character between cells.
    """
    name = posixpath.basename(path)
    lines = [f"{line}\n" for line in _decode(data).split("\n")]
    number = 0
    while number < len(lines):
        cells, used = _cells(lines, number, separator)
        row = Row(f"{name}:{number + 1}", lines[number].rstrip("\r\n"), cells)
        if number == 0 or isinstance(cells, Refusal) or any(cell.strip() for cell in cells):
            yield row
        number += used


def check_text(column: str, cell: str) -> Refusal | None:
    """Return the reason why a cell is not valid text, or None if it is."""
    try:
        cell.encode()
    except UnicodeEncodeError as error:
        found = f"{column} is not UTF-8 at its character {error.start}"
        return Refusal(RejectReason.MALFORMED_ROW, found)
    return None


def _decode(data: bytes) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # Excel's "Unicode text"
        return data.decode("utf-16", "replace")
    return data.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")


def _cells(lines: list[str], first: int, separator: str) -> tuple[list[str] | Refusal, int]:
    """Return the cells of the row that begins at line `first` (0-based), and its number of lines."""
    reader = csv.reader((lines[i] for i in range(first, len(lines))), delimiter=separator, strict=True)
    try:
        return next(reader), reader.line_num
    except csv.Error as error:
        return Refusal(RejectReason.MALFORMED_ROW, f"{error} in {lines[first][:80]!r}"), 1
