"""Image sources: Parquet parts, files in a folder, or a dataset's own format.

A source is sent to the tasks that read from it, so it holds paths but no open files. The feature cache
identifies an image by the bytes that its source returns, so an image that two benchmarks store in two places
is encoded once.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
from collections import defaultdict
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow.fs
from PIL import Image

from degla_ray.errors import DataError
from degla_ray.pixel_limit import open_image, without_pillows_limit
from degla_ray.schema import IMAGES
from degla_ray.sources.listing import normalise
from degla_ray.storage import Storage

NOT_IN_DATASET = "not in the images dataset"


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """An image as read from its source.

    Attributes:
        data: an image file's bytes.
        box: region to show, as (x, y, width, height) in pixels; None shows the whole image.
        prepared: whether `prepare` has limited its pixels, so that Pillow's own limit does not apply.
    """

    data: bytes
    box: tuple[int, int, int, int] | None = None
    prepared: bool = False

    @property
    def content(self) -> bytes:
        """Bytes that identify the image, including its box."""
        return self.data + (b"" if self.box is None else repr(self.box).encode())

    def open(self) -> Image.Image:
        """Return the image, decoded and cropped to its box.

        Raises:
            ValueError: no bytes, or a box outside the image.
            OSError: not an image, or a broken one.
            DecompressionBombError: more pixels than Pillow opens, in an image that is not prepared.
        """
        if not self.data:
            raise ValueError("no bytes")
        with without_pillows_limit() if self.prepared else nullcontext():
            image = open_image(self.data)
        if self.box is None:
            return image
        x, y, width, height = self.box
        if width < 1 or height < 1 or x >= image.width or y >= image.height:
            raise ValueError(f"box {self.box} outside {image.width} x {image.height} pixels")
        return image.convert("RGB").crop((x, y, x + width, y + height))


@dataclass(frozen=True, kw_only=True)
class ImageBatch:
    """Images of one source that are cheap to read together.

    Attributes:
        ids: ids of the images.
        where: location of the images, in a form that the source's `read` understands.
    """

    ids: list[str]
    where: str = ""


class ImageSource(Protocol):
    """A collection of images by id. Picklable and small."""

    def batches(self, wanted: set[str], size: int) -> tuple[list[ImageBatch], dict[str, str]]:
        """Return batches of at most `size` wanted images, and image id -> reason for each image known to be
        missing.

        The order of the batches depends on nothing but the arguments and the source's files.
        """

    def read(self, batch: ImageBatch) -> list[StoredImage | Exception]:
        """Return the images of a batch; an exception in place of each image that cannot be read."""


@dataclass(frozen=True)
class ParquetImages:
    """The dataset `images` of a folder written by `prepare`."""

    uri: str

    def batches(self, wanted: set[str], size: int) -> tuple[list[ImageBatch], dict[str, str]]:
        storage = Storage(self.uri)
        parts = [name for name in storage.names("images") if name.endswith(".parquet")]
        if not parts:
            raise DataError(
                storage.path("images"), "no Parquet parts", f"a dataset with columns {IMAGES.names}"
            )
        batches: list[ImageBatch] = []
        unseen = set(wanted)
        for part in parts:
            with storage.open_parquet("images", part) as file:
                if not {"image", "image_id"} <= set(file.schema_arrow.names):
                    raise DataError(storage.path("images", part), "other columns", f"columns {IMAGES.names}")
                ids = file.read(columns=["image_id"])["image_id"].to_pylist()
            found = []
            for row, image_id in enumerate(ids):
                if image_id in unseen:
                    unseen.discard(image_id)  # later rows of the same id are ignored
                    found.append((row, image_id))
            for start in range(0, len(found), size):
                chunk = found[start : start + size]
                where = json.dumps([part, [row for row, _ in chunk]])
                batches.append(ImageBatch(ids=[image_id for _, image_id in chunk], where=where))
        return batches, dict.fromkeys(sorted(unseen), NOT_IN_DATASET)

    def read(self, batch: ImageBatch) -> list[StoredImage | Exception]:
        """Read only the row groups that contain the batch; its rows are in ascending order."""
        part, rows = json.loads(batch.where)
        by_group: dict[int, list[int]] = defaultdict(list)
        found: list[bytes | None] = []
        with Storage(self.uri).open_parquet("images", part) as file:
            ends = np.cumsum([file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)])
            for row in rows:
                group = int(np.searchsorted(ends, row, side="right"))
                by_group[group].append(int(row - (ends[group - 1] if group else 0)))
            for group in sorted(by_group):
                column = file.read_row_group(group, columns=["image"])["image"]
                found += column.take(by_group[group]).to_pylist()
        return [StoredImage(data=data or b"", prepared=True) for data in found]


@dataclass(frozen=True)
class FileImages:
    """Files in a folder on any filesystem. An id is a relative path, with `#x,y,width,height` for a region.

    Ids come from annotation files; a path that leaves the folder is not read.
    """

    uri: str

    def batches(self, wanted: set[str], size: int) -> tuple[list[ImageBatch], dict[str, str]]:
        ordered = sorted(wanted)
        return [ImageBatch(ids=ordered[i : i + size]) for i in range(0, len(ordered), size)], {}

    def read(self, batch: ImageBatch) -> list[StoredImage | Exception]:
        storage = Storage(self.uri)
        found: list[StoredImage | Exception] = []
        for image_id in batch.ids:
            path, _, box = image_id.partition("#")
            try:
                inside = normalise(path)
                if inside is None:
                    raise ValueError(f"{path!r} does not stay in the image folder")
                found.append(StoredImage(data=storage.read_image(inside), box=_box(box)))
            except (OSError, ValueError, pyarrow.lib.ArrowException) as error:
                absent = isinstance(error, FileNotFoundError)
                found.append(FileNotFoundError(f"no such file: {storage.path(path)}") if absent else error)
        return found


def boxed(path: str, x: int, y: int, width: int, height: int) -> str:
    """Return the id of a region of an image of `FileImages`."""
    return f"{path}#{x},{y},{width},{height}"


def unboxed(image_id: str) -> str:
    """Return the id or key of the whole image, given that of a region made by `boxed`."""
    return re.sub(r"#\d+,\d+,\d+,\d+$", "", image_id)


def _box(text: str) -> tuple[int, int, int, int] | None:
    if not text:
        return None
    x, y, width, height = (int(number) for number in text.split(","))
    return x, y, width, height


def source_spec(source: ImageSource) -> dict[str, Any]:
    """Return a source as JSON, from which `source_from_spec` restores it."""
    assert dataclasses.is_dataclass(source)  # every source is one
    assert not isinstance(source, type)
    return {"kind": f"{type(source).__module__}:{type(source).__name__}", **dataclasses.asdict(source)}


def source_from_spec(spec: Mapping[str, Any]) -> ImageSource:
    """Return the source that a `source_spec` describes."""
    fields = dict(spec)
    module, _, name = fields.pop("kind").partition(":")
    if not module.startswith(("degla_ray.encoding.", "degla_ray.evaluation.")):
        raise DataError(
            "summary.json, sources", f"kind {module}:{name}", "a class of degla_ray.encoding or .evaluation"
        )
    source: ImageSource = getattr(importlib.import_module(module), name)(**fields)
    return source
