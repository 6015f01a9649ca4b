"""NegCLIP's training files: tab-separated title, filepath, neg_caption and neg_image, as pandas writes them.

`neg_caption` and `neg_image` hold Python lists as text; they are parsed as literals, never evaluated. The
negatives go beside the captions as the dataset `given`. The neighbours (row numbers of the same file) are
checked and not kept: `jobs/neighbours.py` finds them for any set of pictures.
"""

from __future__ import annotations

import ast
import csv
import posixpath
import warnings
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from degla_ray.config import NegclipTsvConfig
from degla_ray.errors import DataError
from degla_ray.schema import RejectReason
from degla_ray.sources.base import (
    Record,
    Refusal,
    Reject,
    RowsRead,
    check_given,
    given_table,
)
from degla_ray.sources.coco import file_names
from degla_ray.sources.listing import (
    AnnotatedFolder,
    NamedCaption,
    NamedImage,
    normalise,
    reject_caption,
    to_rows,
)

COLUMNS = ("title", "filepath", "neg_caption", "neg_image")


class NegclipTsvSource(AnnotatedFolder):
    """image_id is `filepath`; sample_id is `<image_id>#<i>`, the i-th row that names the picture.

    Raises:
        SettingError: a folder or file that the settings name is not there.
    """

    def __init__(self, config: NegclipTsvConfig) -> None:
        super().__init__(config, "negclip_tsv.annotations", config.annotations, "a TSV file")

    def records(self) -> Iterator[Record | Reject | RowsRead]:
        images: dict[str, NamedImage] = {}
        for split, path in self._files.items():
            rows = 0
            for where, row in parse_tsv(self._file(split), path):
                rows += 1
                refused = _add(row, split, where, images)
                if refused is not None:
                    yield refused
            yield RowsRead(captions=rows)
        yield RowsRead(images=len(images))
        yield from to_rows(images.values(), self._folder.list())

    def side_tables(self, records: list[Record]) -> dict[str, pa.Table]:
        return {"given": given_table(records)}


def parse_tsv(data: bytes, path: str) -> Iterator[tuple[str, dict[str, str] | Refusal]]:
    """Each row after the header: `file:line` of its first line, and its cells by column or why not.

    A quoted cell may go on over several lines. Where a quote is never closed, only the line that it opens
    in is lost.

    Raises:
        DataError: the header lacks one of COLUMNS.
    """
    name = posixpath.basename(path)
    # Bytes that are not UTF-8 stay recognisable, so that they spoil their own row only.
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    lines = [f"{line}\n" for line in text.split("\n")]
    header = _cells(lines, 0)[0]
    if isinstance(header, Refusal) or any(header.count(column) != 1 for column in COLUMNS):
        found = f"the line {text.partition(chr(10))[0][:80]!r}"
        raise DataError(f"{path}:1", found, f"tab-separated columns, among them {', '.join(COLUMNS)}")
    number = 1
    while number < len(lines):
        cells, used = _cells(lines, number)
        where = f"{name}:{number + 1}"
        number += used
        if isinstance(cells, Refusal):
            yield where, cells
        elif any(cell.strip() for cell in cells):
            yield where, _row(header, cells)


def _cells(lines: list[str], first: int) -> tuple[list[str] | Refusal, int]:
    """The cells of the row that begins in line `first` (from 0), and how many lines it takes."""
    reader = csv.reader((lines[i] for i in range(first, len(lines))), delimiter="\t", strict=True)
    try:
        return next(reader), reader.line_num
    except csv.Error as error:
        return Refusal(RejectReason.MALFORMED_ROW, f"{error} in {lines[first][:80]!r}"), 1


def _row(header: list[str], cells: list[str]) -> dict[str, str] | Refusal:
    if len(cells) != len(header):
        found = f"{len(cells)} cells, {len(header)} in the header"
        return Refusal(RejectReason.MALFORMED_ROW, found)
    row = {column: cells[header.index(column)] for column in COLUMNS}
    for column, cell in row.items():
        try:
            cell.encode()
        except UnicodeEncodeError as error:
            return Refusal(
                RejectReason.MALFORMED_ROW, f"{column} is not UTF-8 at its character {error.start}"
            )
    return row


def _add(
    row: dict[str, str] | Refusal, split: str, where: str, images: dict[str, NamedImage]
) -> Reject | None:
    """Enters one caption under its picture, or says why it cannot be used."""
    if isinstance(row, Refusal):
        return reject_caption(NamedCaption("", "", split, where), row)
    path = row["filepath"].strip()
    if not path or not path.isprintable():
        why = Refusal(RejectReason.MALFORMED_ROW, f"no usable filepath ({path[:80]!r})")
        return reject_caption(NamedCaption("", row["title"], split, where), why)
    image_id = normalise(path) or path
    image = images.setdefault(
        image_id, NamedImage(image_id=image_id, names=file_names(path, ""), where=where)
    )
    sample_id = f"{image_id}#{len(image.captions) + image.captions_lost}"
    caption = NamedCaption(sample_id, row["title"], split, where)
    given = _negatives(row)
    if isinstance(given, Refusal):
        image.captions_lost += 1
        return reject_caption(caption, given, image_id)
    image.captions.append(caption._replace(given=given))
    return None


def _negatives(row: dict[str, str]) -> tuple[str, ...] | Refusal:
    texts, neighbours = (_literal(row[column]) for column in ("neg_caption", "neg_image"))
    if isinstance(texts, Refusal):
        return Refusal(texts.reason, f"neg_caption: {texts.detail}")
    if isinstance(neighbours, Refusal):
        return Refusal(neighbours.reason, f"neg_image: {neighbours.detail}")
    if not isinstance(neighbours, list) or any(type(number) is not int for number in neighbours):
        return Refusal(
            RejectReason.MALFORMED_ROW, f"neg_image is no list of row numbers ({neighbours!r:.80})"
        )
    return check_given(texts)


def _literal(cell: str) -> Any:
    try:
        with warnings.catch_warnings():  # Python warns of "\ " and the like, which is the row's text
            warnings.simplefilter("ignore")
            return ast.literal_eval(cell.strip())
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        return Refusal(
            RejectReason.MALFORMED_ROW, f"{cell[:80]!r} is no Python list ({type(error).__name__})"
        )
