"""What a source of images and captions has to offer, and the rows it speaks in.

A source lists its rows on the driver without touching an image (`records`) and reads one image's
bytes inside a Ray task (`read_image`). To add a source: copy csv_captions.py, yield Record, Reject and
RowsRead (and Note), and name it in sources/__init__.py. The listing is held in memory on the driver: about
0.5 kB an image with five captions, so 60 MB for COCO; negatives that come with them are held too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import pyarrow as pa

from degla_ray.schema import GIVEN, GIVEN_KIND, REJECTS, RejectReason
from degla_ray.storage import Storage

STAGE = "prepare"
TEXT_CHARS = 500  # of a rejected row's text that are kept


class Unit(StrEnum):
    """What a rejected row was; stands in the rejects' column `kind`."""

    IMAGE = "image"
    CAPTION = "caption"


class Caption(NamedTuple):
    """One good caption; `sample_id` is unique in the source and stable across reruns.

    `given` holds negatives that the source has for it.
    """

    sample_id: str
    caption: str
    split: str
    given: tuple[str, ...] = ()


class Record(NamedTuple):
    """One image with at least one good caption. `locator` is what `Source.read_image` takes."""

    image_id: str
    locator: str
    captions: tuple[Caption, ...]


class Refusal(NamedTuple):
    """Why something cannot be used."""

    reason: RejectReason
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Reject:
    """One row that is left out.

    Attributes:
        unit: whether it counts as an image or as a caption.
        row_id: image_id, sample_id, or `file:line` where the row has no id.
        image_id: the image it belongs to; empty where there is none.
        text: the caption or file name as it was found.
    """

    unit: Unit
    row_id: str
    reason: RejectReason
    detail: str
    text: str = ""
    image_id: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowsRead:
    """So many rows were read from a file, counted apart from what became of them."""

    images: int = 0
    captions: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """A sentence for the console on what was left aside though it is no row."""

    text: str


class Source(ABC):
    """One data set. Instances travel to Ray tasks: hold settings, not listings.

    Attributes:
        spare: reasons of image rejects that do not count toward `max_reject_fraction`, since nobody asked
            for those images.
    """

    spare: frozenset[RejectReason] = frozenset()

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Everything that decides the output: settings and the hashes of the annotation files."""

    @abstractmethod
    def records(self) -> Iterator[Record | Reject | RowsRead | Note]:
        """All rows, cheaply and in an order that depends on the source alone.

        Raises:
            DataError: a file cannot be read as what it should be.
        """

    @abstractmethod
    def read_image(self, locator: str) -> bytes:
        """The bytes of one image.

        Raises:
            OSError: it cannot be read.
        """

    def side_tables(self, records: list[Record]) -> dict[str, pa.Table]:
        """Further datasets of a shard, by name, for the images that were kept."""
        return {}

    def write_extras(self, storage: Storage) -> None:  # noqa: B027 (most sources have none)
        """Anything that lies beside the shards, written once before the folder is finished."""


def check_caption(value: object) -> str | Refusal:
    """`value` as a caption without outer white space, or why it is none."""
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
    """`values` as a caption's own negatives without outer white space, or why they are none.

    Args:
        values: what stands where a list of texts should.
        least: texts that there must be.
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
    """The captions' own negatives in the schema GIVEN: a side table of sources that have some."""
    rows = [(c.sample_id, GIVEN_KIND, text) for r in records for c in r.captions for text in c.given]
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    return pa.table([list(column) for column in columns], schema=GIVEN)


def rejects_table(rejects: Iterable[Reject]) -> pa.Table:
    """Rejects in the schema REJECTS; text that UTF-8 cannot hold is written with escapes."""
    rows = [
        {
            "stage": STAGE,
            "sample_id": _printable(r.row_id),
            "kind": r.unit.value,
            "text": _printable(r.text[:TEXT_CHARS]),
            "reason": r.reason.value,
            "detail": _printable(r.detail),
        }
        for r in rejects
    ]
    return pa.Table.from_pylist(rows, schema=REJECTS)


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
