"""A folder of images and CSV files with an image and a caption in each row.

Flickr8k has this layout, and so has open_clip's training data (tab-separated `filepath` and `title`). If the
caption column is the last one, an unquoted caption may contain separators, as in Flickr8k's own files. Copy
this file to add a source.
"""

from __future__ import annotations

from collections.abc import Iterator

from degla_ray.config import CsvConfig
from degla_ray.errors import DataError
from degla_ray.schema import RejectReason
from degla_ray.sources.base import Note, Record, Refusal, Reject, RowsRead
from degla_ray.sources.delimited import Row, check_text, read_rows
from degla_ray.sources.listing import (
    AnnotatedFolder,
    NamedCaption,
    NamedImage,
    reject_caption,
    to_rows,
)

SEPARATORS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}


class CsvSource(AnnotatedFolder):
    """CSV captions; image_id is the path below the folder, sample_id `<image_id>#<i>` for its i-th row.

    Args:
        config: the settings.
        name: the config section that holds them.

    Raises:
        SettingError: a folder or file named in the settings does not exist.
    """

    def __init__(self, config: CsvConfig, name: str = "csv", follow_links: bool = False) -> None:
        super().__init__(config, f"{name}.captions", config.captions, "a caption file", follow_links)

    def records(self) -> Iterator[Record | Reject | RowsRead | Note]:
        images: dict[str, NamedImage] = {}
        for split, path in self._files.items():
            rows = 0
            for where, parsed in parse_csv(self._file(split), path, self._config):
                rows += 1
                if isinstance(parsed, Refusal):
                    yield reject_caption(NamedCaption("", "", split, where), parsed)
                    continue
                name, caption = parsed
                image_id = self._folder.relative(name) or name
                image = images.setdefault(image_id, NamedImage(image_id=image_id, names=(name,), where=where))
                sample_id = f"{image_id}#{len(image.captions)}"
                image.captions.append(NamedCaption(sample_id, caption, split, where))
            yield RowsRead(captions=rows)
        listing = self._folder.list()
        for name in listing.images():
            if name not in images:
                images[name] = NamedImage(image_id=name, names=(name,), where=self._config.images)
        yield RowsRead(images=len(images))
        yield from to_rows(images.values(), listing)


def parse_csv(data: bytes, path: str, config: CsvConfig) -> Iterator[tuple[str, tuple[str, str] | Refusal]]:
    """Yield `file:line` of each row after the header, with (image, caption) or the reason for refusing it.

    Raises:
        DataError: the header lacks one of the two columns.
    """
    rows = read_rows(data, path, config.separator)
    header = _header(next(rows), path, config)
    for row in rows:
        yield row.where, _parse(row, header, config)


def _header(row: Row, path: str, config: CsvConfig) -> list[str]:
    wanted = (config.image_column, config.caption_column)
    header = [] if isinstance(row.cells, Refusal) else [cell.strip().lower() for cell in row.cells]
    if all(header.count(column.lower()) == 1 for column in wanted):
        return header
    expected = (
        f"a header with the columns {wanted[0]!r} and {wanted[1]!r} separated by "
        f"{SEPARATORS.get(config.separator, repr(config.separator))} "
        "(settings image_column, caption_column, separator)"
    )
    raise DataError(f"{path}:1", f"the line {row.line[:80]!r}", expected)


def _parse(row: Row, header: list[str], config: CsvConfig) -> tuple[str, str] | Refusal:
    cells = row.cells
    caption_last = header[-1] == config.caption_column.lower()
    if caption_last and (isinstance(cells, Refusal) or len(cells) > len(header)):
        parts = row.line.split(config.separator, len(header) - 1)
        unclosed = parts[-1].strip().startswith('"') and parts[-1].count('"') % 2
        if len(parts) == len(header) and not unclosed and not any('"' in part for part in parts[:-1]):
            cells = parts
    if isinstance(cells, Refusal):
        return cells
    if len(cells) != len(header):
        found = f"{len(cells)} cells, {len(header)} in the header, in {row.line[:80]!r}"
        return Refusal(RejectReason.MALFORMED_ROW, found)
    image, caption = (
        cells[header.index(column.lower())].strip() for column in (config.image_column, config.caption_column)
    )
    for column, cell in ((config.image_column, image), (config.caption_column, caption)):
        if (why := check_text(column, cell)) is not None:
            return why
    if not image or not image.isprintable():
        return Refusal(RejectReason.MALFORMED_ROW, f"no usable {config.image_column} in {row.line[:80]!r}")
    return image, caption
