"""Rows of a file of separated columns, as spreadsheets and pandas write them, read by Python's csv.

A quoted cell may go on over several lines. Where a quote is never closed, only the line that it opens in is
lost. UTF-8 with or without a mark, and UTF-16 with one, are read; bytes that are not UTF-8 spoil their own
row only.
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
    """One row: `file:line` of its first line, that line, and its cells or why there are none."""

    where: str
    line: str
    cells: list[str] | Refusal


def read_rows(data: bytes, path: str, separator: str) -> Iterator[Row]:
    """Yield the header, and each row after it that is not blank.

    Args:
        data: the file.
        path: its name, for messages.
        separator: one character between cells.
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
    """Return why a cell is no text; None if it is one."""
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
    """Return the cells of the row that begins in line `first` (from 0), and how many lines it takes."""
    reader = csv.reader((lines[i] for i in range(first, len(lines))), delimiter=separator, strict=True)
    try:
        return next(reader), reader.line_num
    except csv.Error as error:
        return Refusal(RejectReason.MALFORMED_ROW, f"{error} in {lines[first][:80]!r}"), 1
