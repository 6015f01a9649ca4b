"""Flickr8k and whatever is laid out like it: a folder of pictures, CSV files `image,caption`.

Only the first comma of a line splits, so captions may hold commas whether they are quoted or not;
a byte-order mark and Windows line ends are taken. A caption lies on one line: a quoted caption that
goes on in the next line is rejected as malformed. Copy this file to add a source.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator

from degla_ray.config import Flickr8kConfig
from degla_ray.errors import DataError
from degla_ray.schema import RejectReason
from degla_ray.sources.base import Record, Refusal, Reject, RowsRead
from degla_ray.sources.listing import (
    AnnotatedFolder,
    NamedCaption,
    NamedImage,
    normalise,
    reject_caption,
    to_rows,
)

HEADER = ("image", "caption")
_QUOTED = re.compile(r'"((?:[^"]|"")*)"')


class Flickr8kSource(AnnotatedFolder):
    """image_id is the file name; sample_id is `<image_id>#<i>`, the i-th row that names the image.

    Raises:
        SettingError: a folder or file that the settings name is not there.
    """

    def __init__(self, config: Flickr8kConfig) -> None:
        super().__init__(config, "flickr8k.captions", config.captions, "a caption file")

    def records(self) -> Iterator[Record | Reject | RowsRead]:
        images: dict[str, NamedImage] = {}
        for split, path in self._files.items():
            rows = 0
            for where, parsed in parse_csv(self._file(split), path):
                rows += 1
                if isinstance(parsed, Refusal):
                    yield reject_caption(NamedCaption("", "", split, where), parsed)
                    continue
                name, caption = parsed
                image_id = normalise(name) or name
                image = images.setdefault(image_id, NamedImage(image_id=image_id, names=(name,), where=where))
                sample_id = f"{image_id}#{len(image.captions)}"
                image.captions.append(NamedCaption(sample_id, caption, split, where))
            yield RowsRead(captions=rows)
        listing = self._folder.list()
        for name in listing.pictures():
            if name not in images:
                images[name] = NamedImage(image_id=name, names=(name,), where=self._config.images)
        yield RowsRead(images=len(images))
        yield from to_rows(images.values(), listing)


def parse_csv(data: bytes, path: str) -> Iterator[tuple[str, tuple[str, str] | Refusal]]:
    """Each line after the header that is not blank: `file:line` and (image, caption) or why not.

    Raises:
        DataError: the header is not `image,caption`.
    """
    name = posixpath.basename(path)
    header, *lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    found = header.decode("utf-8", "backslashreplace").strip()
    if tuple(cell.strip().strip('"').lower() for cell in found.split(",")) != HEADER:
        raise DataError(f"{path}:1", f"the line {found[:80]!r}", f"the header {','.join(HEADER)!r}")
    for number, line in enumerate(lines, start=2):
        if line.strip():
            yield f"{name}:{number}", _parse_line(line)


def _parse_line(line: bytes) -> tuple[str, str] | Refusal:
    try:
        text = line.decode().strip()
    except UnicodeDecodeError as error:
        return Refusal(RejectReason.MALFORMED_ROW, f"not UTF-8 at byte {error.start} of the line")
    image, comma, caption = text.partition(",")
    image, caption = image.strip(), caption.strip()
    if not comma:
        return Refusal(RejectReason.MALFORMED_ROW, f"no comma in {text[:80]!r}")
    if quoted := _QUOTED.fullmatch(image):
        image = quoted[1].replace('""', '"')
    if not image:
        return Refusal(RejectReason.MALFORMED_ROW, f"no image name in {text[:80]!r}")
    if quoted := _QUOTED.fullmatch(caption):
        caption = quoted[1].replace('""', '"')
    elif caption.startswith('"') and caption.count('"') % 2:
        return Refusal(RejectReason.MALFORMED_ROW, f"a quote is not closed in {text[:80]!r}")
    return image, caption
