"""DeGLA's released data file: a JSON list of {"image_id": int, "original": str, "enhanced": [str, ...]}.

Its negatives (`enhanced`) are stored with the captions as the dataset `given`; `jobs/negatives.py --engine
given` turns them into a folder to train on. The driver reads the whole file into memory: about 1 GB for
414,000 captions with five negatives each. `jobs/export_degla_json.py` writes this format.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from degla_ray.config import DeglaJsonConfig
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
from degla_ray.sources.listing import (
    AnnotatedFolder,
    NamedCaption,
    NamedImage,
    load_json,
    reject_caption,
    to_rows,
)


class DeglaJsonSource(AnnotatedFolder):
    """DeGLA's data; image_id is the number as text, sample_id `<image_id>#<i>` for the image's i-th entry.

    Raises:
        SettingError: a folder or file named in the settings does not exist.
    """

    def __init__(self, config: DeglaJsonConfig, follow_links: bool = False) -> None:
        super().__init__(config, "degla_json.annotations", config.annotations, "a JSON file", follow_links)

    def records(self) -> Iterator[Record | Reject | RowsRead | Note]:
        images: dict[str, NamedImage] = {}
        for split, path in self._files.items():
            entries = load_json(self._file(split), path)
            if not isinstance(entries, list):
                raise DataError(path, f"JSON of type {type(entries).__name__}", "a list of entries")
            yield RowsRead(captions=len(entries))
            name = posixpath.basename(path)
            for index, entry in enumerate(entries):
                refused = self._add(entry, split, f"{name}[{index}]", images)
                if refused is not None:
                    yield refused
        yield RowsRead(images=len(images))
        yield from to_rows(images.values(), self._folder.list())

    def side_tables(self, records: list[Record]) -> dict[str, pa.Table]:
        return {"given": given_table(records)}

    def _add(self, entry: Any, split: str, where: str, images: dict[str, NamedImage]) -> Reject | None:
        """Add one caption to its image, or return a Reject that says why it cannot be used."""
        number = entry.get("image_id") if isinstance(entry, dict) else None
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            found = f"no image_id that is a whole number ({number!r:.40})"
            return reject_caption(
                NamedCaption("", entry, split, where), Refusal(RejectReason.MALFORMED_ROW, found)
            )
        image_id = str(number)
        if image_id not in images:
            names = file_names(self._config.pattern % number, "")
            images[image_id] = NamedImage(image_id=image_id, names=names, where=where)
        image = images[image_id]
        sample_id = f"{image_id}#{len(image.captions) + image.captions_lost}"
        given = check_given(entry.get("enhanced"), self._config.min_negatives)
        caption = NamedCaption(sample_id, entry.get("original"), split, where)
        if isinstance(given, Refusal):
            image.captions_lost += 1
            return reject_caption(caption, given, image_id)
        image.captions.append(caption._replace(given=given))
        return None
