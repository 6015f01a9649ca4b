"""NegCLIP's training files: tab-separated title, filepath and neg_caption, as pandas writes them.

`neg_caption` holds a Python list as text; it is parsed as a literal and never evaluated. The negatives are
stored with the captions as the dataset `given`. The column neg_image (neighbours, as row numbers of the same
file) is not read: `jobs/neighbours.py` finds neighbours for any set of images.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
import warnings
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from degla_ray.config import NegclipTsvConfig
from degla_ray.errors import DataError
from degla_ray.schema import RejectReason
from degla_ray.sources.base import (
    Note,
    Record,
    Refusal,
    Reject,
    RowsRead,
    check_given,
    given_table,
)
from degla_ray.sources.coco import file_names
from degla_ray.sources.delimited import check_text, read_rows
from degla_ray.sources.listing import (
    AnnotatedFolder,
    NamedCaption,
    NamedImage,
    reject_caption,
    to_rows,
)

COLUMNS = ("title", "filepath", "neg_caption")
_ADJACENT = re.compile(r"""['"]\s*[rRbBuUfF]{0,2}['"]""")  # also inside a text; only then tokens are counted


class NegclipTsvSource(AnnotatedFolder):
    """NegCLIP's data; image_id is `filepath`, sample_id `<image_id>#<i>` for the i-th row of the image.

    Raises:
        SettingError: a folder or file named in the settings does not exist.
    """

    def __init__(self, config: NegclipTsvConfig, follow_links: bool = False) -> None:
        super().__init__(config, "negclip_tsv.annotations", config.annotations, "a TSV file", follow_links)

    def records(self) -> Iterator[Record | Reject | RowsRead | Note]:
        images: dict[str, NamedImage] = {}
        for split, path in self._files.items():
            rows = 0
            for where, row in parse_tsv(self._file(split), path):
                rows += 1
                refused = self._add(row, split, where, images)
                if refused is not None:
                    yield refused
            yield RowsRead(captions=rows)
        yield RowsRead(images=len(images))
        yield from to_rows(images.values(), self._folder.list())

    def side_tables(self, records: list[Record]) -> dict[str, pa.Table]:
        return {"given": given_table(records)}

    def _add(
        self, row: dict[str, str] | Refusal, split: str, where: str, images: dict[str, NamedImage]
    ) -> Reject | None:
        """Add one caption to its image, or return a Reject that says why it cannot be used."""
        if isinstance(row, Refusal):
            return reject_caption(NamedCaption("", "", split, where), row)
        path = row["filepath"].strip()
        if not path or not path.isprintable():
            why = Refusal(RejectReason.MALFORMED_ROW, f"no usable filepath ({path[:80]!r})")
            return reject_caption(NamedCaption("", row["title"], split, where), why)
        image_id = self._folder.relative(path) or path
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


def parse_tsv(data: bytes, path: str) -> Iterator[tuple[str, dict[str, str] | Refusal]]:
    """Yield `file:line` of each row after the header, with its cells by column or the reason for refusing it.

    Raises:
        DataError: the header lacks one of COLUMNS.
    """
    rows = read_rows(data, path, "\t")
    first = next(rows)
    header = first.cells
    if isinstance(header, Refusal) or any(header.count(column) != 1 for column in COLUMNS):
        found = f"the line {first.line[:80]!r}"
        raise DataError(f"{path}:1", found, f"tab-separated columns, among them {', '.join(COLUMNS)}")
    for row in rows:
        cells = row.cells
        yield row.where, cells if isinstance(cells, Refusal) else _row(header, cells)


def _row(header: list[str], cells: list[str]) -> dict[str, str] | Refusal:
    if len(cells) != len(header):
        found = f"{len(cells)} cells, {len(header)} in the header"
        return Refusal(RejectReason.MALFORMED_ROW, found)
    row = {column: cells[header.index(column)] for column in COLUMNS}
    for column, cell in row.items():
        if (why := check_text(column, cell)) is not None:
            return why
    return row


def _negatives(row: dict[str, str]) -> tuple[str, ...] | Refusal:
    texts = _literal(row["neg_caption"])
    if isinstance(texts, Refusal):
        return Refusal(texts.reason, f"neg_caption: {texts.detail}")
    if isinstance(texts, list) and _ADJACENT.search(row["neg_caption"]):
        strings = _strings(row["neg_caption"])
        if strings != len(texts):
            found = f"neg_caption: {strings} texts in a list of {len(texts)}; a comma is missing between two"
            return Refusal(RejectReason.MALFORMED_ROW, found)
    return check_given(texts)


def _strings(cell: str) -> int:
    """Return the number of string tokens in a valid Python literal."""
    tokens = tokenize.generate_tokens(io.StringIO(cell.strip()).readline)
    return sum(token.type == tokenize.STRING for token in tokens)


def _literal(cell: str) -> Any:
    try:
        with warnings.catch_warnings():  # Python warns about "\ " and the like, valid in a row's text
            warnings.simplefilter("ignore")
            return ast.literal_eval(cell.strip())
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        return Refusal(
            RejectReason.MALFORMED_ROW, f"{cell[:80]!r} is no Python list ({type(error).__name__})"
        )
