"""The interface of a source of images and captions, and the rows it yields.

A source lists its rows on the driver without opening an image (`records`) and reads one image's bytes inside
a Ray task (`read_image`). To add a source: copy csv_captions.py, yield Record, Reject and RowsRead
(optionally Note), and register it in sources/__init__.py. The driver holds the records compressed, about 40
bytes a caption. What a source itself holds while it lists comes on top: WebDataset one tar file, Parquet with
embedded images one row group, any other all images and captions (0.5 to 1 kB a caption).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import pyarrow as pa

from degla_ray.masking import masked
from degla_ray.schema import GIVEN, GIVEN_KIND, REJECTS, RejectReason
from degla_ray.storage import Storage

STAGE = "prepare"
TEXT_CHARS = 500  # maximum length of a rejected row's stored text


class Unit(StrEnum):
    """Kind of a rejected row: image or caption; stored in the rejects' column `kind`."""

    IMAGE = "image"
    CAPTION = "caption"


class Caption(NamedTuple):
    """One valid caption; `sample_id` is unique within the source and stable across reruns.

    `given` holds the caption's negatives that the source supplies.
    """

    sample_id: str
    caption: str
    split: str
    given: tuple[str, ...] = ()


class Record(NamedTuple):
    """One image with at least one valid caption. `locator` is the argument of `Source.read_image`."""

    image_id: str
    locator: str
    captions: tuple[Caption, ...]


class Refusal(NamedTuple):
    """The reason why something cannot be used, with details."""

    reason: RejectReason
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Reject:
    """One rejected row.

    Attributes:
        unit: whether it counts as an image or as a caption.
        row_id: image_id, sample_id, or `file:line` if the row has no id.
        image_id: image that the row belongs to; empty if unknown.
        text: the caption or file name as found.
    """

    unit: Unit
    row_id: str
    reason: RejectReason
    detail: str
    text: str = ""
    image_id: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowsRead:
    """Number of rows read from a file, counted independently of the records and rejects."""

    images: int = 0
    captions: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """A console message about skipped data that does not count as a row."""

    text: str


class Source(ABC):
    """One dataset. Instances are sent to Ray tasks, so they hold settings and no listings.

    Attributes:
        spare: reject reasons of images that do not count toward `max_reject_fraction`, because those images
            were not requested.
    """

    spare: frozenset[RejectReason] = frozenset()

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return everything that determines the output: settings and hashes of the annotation files."""

    @abstractmethod
    def records(self) -> Iterator[Record | Reject | RowsRead | Note]:
        """Yield all rows without opening images, in an order that depends on the source alone.

        Raises:
            DataError: a file cannot be read or has the wrong format.
        """

    @abstractmethod
    def read_image(self, locator: str) -> bytes:
        """Return the bytes of one image.

        Raises:
            OSError: the image cannot be read.
        """

    def group_of(self, locator: str) -> tuple[str, int] | None:
        """Return the group that an image can only be read with, and the image's row in it; None: alone."""
        return None

    def read_group(self, group: str) -> Iterator[bytes]:
        """Yield the images of a group by row, b"" if there is none, until the end or the first error."""
        raise NotImplementedError

    def side_tables(self, records: list[Record]) -> dict[str, pa.Table]:
        """Return a shard's additional datasets by name, for the images that were kept."""
        return {}

    def write_extras(self, storage: Storage) -> None:  # noqa: B027 (most sources have none)
        """Write additional files next to the shards, once, before the folder is marked as finished."""


def check_caption(value: object) -> str | Refusal:
    """Return `value` as a caption stripped of outer white space, or the reason why it is not a caption."""
    if isinstance(value, dict):
        fields = ", ".join(map(str, value))
        return Refusal(RejectReason.NOT_A_STRING, f"the caption is an object with the fields {fields:.200}")
    if not isinstance(value, str):
        return Refusal(RejectReason.NOT_A_STRING, f"the caption is of type {type(value).__name__}")
    if not value.strip():
        return Refusal(RejectReason.EMPTY_CAPTION, "nothing but white space" if value else "empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        return Refusal(RejectReason.NOT_A_STRING, f"not Unicode text ({error.reason} at {error.start})")
    return value.strip()


def check_given(values: object, least: int = 0) -> tuple[str, ...] | Refusal:
    """Return `values` as a caption's negatives stripped of outer white space, or why they are not usable.

    Args:
        values: the value found where a list of strings is expected.
        least: minimum number of texts.
    """
    if not isinstance(values, list):
        return Refusal(RejectReason.MALFORMED_ROW, f"its negatives are no list but {type(values).__name__}")
    if len(values) < least:
        return Refusal(RejectReason.MALFORMED_ROW, f"{len(values)} negatives, fewer than {least}")
    texts = []
    for index, value in enumerate(values):
        text = check_caption(value)
        if isinstance(text, Refusal):
            return Refusal(RejectReason.MALFORMED_ROW, f"negative {index}: {text.reason} ({text.detail})")
        texts.append(text)
    return tuple(texts)


def given_table(records: Iterable[Record]) -> pa.Table:
    """Return the captions' supplied negatives in the schema GIVEN, for sources that have them."""
    rows = [(c.sample_id, GIVEN_KIND, text) for r in records for c in r.captions for text in c.given]
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    return pa.table([list(column) for column in columns], schema=GIVEN)


def rejects_table(rejects: Iterable[Reject]) -> pa.Table:
    """Return rejects in the schema REJECTS; characters that UTF-8 cannot encode are escaped."""
    rows = [
        {
            "stage": STAGE,
            "sample_id": _printable(r.row_id),
            "kind": r.unit.value,
            "text": _printable(masked(r.text[:TEXT_CHARS])),
            "reason": r.reason.value,
            "detail": _printable(masked(r.detail)),
        }
        for r in rejects
    ]
    return pa.Table.from_pylist(rows, schema=REJECTS)


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
