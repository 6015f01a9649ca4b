"""Write one shard of `prepare` inside a Ray task.

A task reads, checks and writes its images in groups of ROW_GROUP_ROWS, so it holds about 16 images in memory
regardless of the shard's size. It returns a receipt of counts, never the data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from degla_ray.schema import CAPTIONS, IMAGES, RejectReason
from degla_ray.sources.base import Record, Refusal, Reject, Source, Unit, rejects_table
from degla_ray.sources.images import CheckedImage, check_and_convert
from degla_ray.sources.write_images import write_images
from degla_ray.stage import StageFolder
from degla_ray.storage import ROW_GROUP_ROWS

Progress = Callable[[int], None]  # called with the number of images finished since the last call
IMAGES_OF_SPLIT = "images_out."
"""Start of the counts of images by split: `images_out.train`."""


class ImageReader(Protocol):
    """What reads an image by its locator, as `Source.read_image` does."""

    def read_image(self, locator: str) -> bytes: ...


@dataclass(frozen=True, kw_only=True)
class PrepareTask:
    """Settings of a task: everything that it needs apart from its rows.

    Attributes:
        reader: where images are read: the source, or its unpacked groups.
        max_pixels: maximum pixels of an image, checked before decoding.
        short_side: short side in pixels to scale down to; None keeps the size.
    """

    folder: StageFolder
    source: Source
    reader: ImageReader
    max_pixels: int
    short_side: int | None


@dataclass(kw_only=True)
class ShardResult:
    """A shard's counts under their manifest names, and one example of each reject reason."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add_rejects(self, rejects: Iterable[Reject]) -> None:
        for reject in rejects:
            self.counts[f"{reject.unit}s_rejected"] += 1
            self.counts[f"rejected.{reject.unit}.{reject.reason}"] += 1
            self.examples.setdefault(reject.reason.value, f"{reject.row_id}: {reject.detail}")


def write_shard(
    task: PrepareTask, shard: int, records: list[Record], rejects: list[Reject], progress: Progress
) -> ShardResult:
    """Write the Parquet parts of one shard and, last, its receipt.

    Args:
        records: the images of this shard.
        rejects: rows that the driver rejected and that are stored in this shard.

    Returns:
        Counts of the rows that this task wrote and rejected. `rejects` are only in the receipt.
    """
    assert len({r.image_id for r in records}) == len(records), "a source repeats an image_id"
    kept: list[Record] = []
    lost: list[Reject] = []
    folder = task.folder
    images = _images(task, records, kept, lost, progress)
    write_images(folder, shard, images)
    captions = [
        (c.sample_id, record.image_id, c.caption, c.split) for record in kept for c in record.captions
    ]
    folder.write_part("captions", shard, _table(captions, CAPTIONS))
    for name, table in task.source.side_tables(kept).items():
        folder.write_part(name, shard, table)
    folder.write_part("rejects", shard, rejects_table([*rejects, *lost]))
    result = ShardResult()
    result.counts.update(images_out=len(kept), captions_out=len(captions))
    result.counts.update(IMAGES_OF_SPLIT + record.captions[0].split for record in kept)
    result.add_rejects(lost)
    receipt = ShardResult(counts=Counter(result.counts))
    receipt.add_rejects(rejects)
    folder.write_receipt(shard, receipt.counts)
    return result


def _images(
    task: PrepareTask, records: list[Record], kept: list[Record], lost: list[Reject], progress: Progress
) -> Iterator[pa.Table]:
    """Yield row groups of valid images; append to `kept` and `lost` along the way."""
    for start in range(0, len(records), ROW_GROUP_ROWS):
        group = records[start : start + ROW_GROUP_ROWS]
        rows: list[tuple[Any, ...]] = []
        for record in group:
            checked = read_checked(task.reader, record.locator, task.max_pixels, task.short_side)
            if isinstance(checked, Refusal):
                lost.extend(_lose(record, checked))
            else:
                kept.append(record)
                rows.append((record.image_id, *checked))
        progress(len(group))
        if rows:
            yield _table(rows, IMAGES)


def read_checked(
    reader: ImageReader, locator: str, max_pixels: int, short_side: int | None
) -> CheckedImage | Refusal:
    """Read one image and return it in the form that is stored, or the reason for refusing it."""
    try:
        data = reader.read_image(locator)
    except FileNotFoundError as error:
        return Refusal(RejectReason.MISSING_IMAGE, str(error))
    except (OSError, ValueError) as error:  # no permission, disk error, or a name the filesystem cannot hold
        return Refusal(RejectReason.UNREADABLE, f"{type(error).__name__}: {error}")
    return check_and_convert(data, max_pixels, short_side)


def _lose(record: Record, why: Refusal) -> Iterator[Reject]:
    image_id = record.image_id
    yield Reject(
        unit=Unit.IMAGE,
        row_id=image_id,
        reason=why.reason,
        detail=why.detail,
        text=record.locator,
        image_id=image_id,
    )
    for caption in record.captions:
        yield Reject(
            unit=Unit.CAPTION,
            row_id=caption.sample_id,
            reason=RejectReason.CAPTION_WITHOUT_IMAGE,
            detail=f"image {image_id!r} was rejected: {why.reason}",
            text=caption.caption,
            image_id=image_id,
        )


def _table(rows: list[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else ([] for _ in schema)
    return pa.table([pa.array(c, type=f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)
