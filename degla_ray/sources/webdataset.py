"""WebDataset's tar shards; files with the same key form a sample (see webdataset_shard.py).

The driver walks each shard's headers once, skipping the images, and reads the captions. A task then reads an
image by its byte offset, so shards must not be compressed. The walk takes about 25 µs per file on a local
disk. Everything readable in a damaged shard is used. The number of lost images is estimated from the unread
bytes or the split's intact shards; each is rejected, so that it counts toward the limit.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
import statistics
from collections import Counter
from collections.abc import Iterator
from typing import Any

from degla_ray.config import WebdatasetConfig
from degla_ray.errors import SettingError
from degla_ray.identity import canonical
from degla_ray.pixel_limit import check_file_bytes
from degla_ray.schema import RejectReason
from degla_ray.sources.base import Note, Record, Refusal, Reject, RowsRead, Source, Unit
from degla_ray.sources.files import find_files, open_file, some
from degla_ray.sources.json_field import captions_at
from degla_ray.sources.listing import Located, NamedCaption, NamedImage, reject_caption, to_rows
from degla_ray.sources.webdataset_shard import Lost, Sample, Shard, read_shard

_LINE_BREAK = re.compile(r"\r\n|\n|\r")


class WebdatasetSource(Source):
    """Tar shards; image_id is `<split>/<shard>/<key>`, as shards may reuse keys; sample_id `<image_id>#<i>`.

    Raises:
        SettingError: a shard named in the settings does not exist, or two shards of a split share a name.
    """

    spare = frozenset({RejectReason.FURTHER_IMAGE})

    def __init__(self, config: WebdatasetConfig) -> None:
        self._config = config
        self._shards, self._not_taken = find_files(config.shards, "webdataset.shards", ".tar")
        for split, uris in self._shards.items():
            ((name, times),) = Counter(map(_stem, uris)).most_common(1)
            if times > 1:
                expected = "shards of different names: they are part of the ids"
                raise SettingError(f"webdataset.shards.{split}", f"{times} times {name}", expected)
        self._suffixes = tuple(suffix.lower().lstrip(".") for suffix in config.image_suffixes)
        default = "txt" if config.json_field is None else "json"
        self._caption_suffix = (config.caption_suffix or default).lower().lstrip(".")
        self._hashes: dict[str, str] = {}  # hashes of shards read so far, since reading a shard again is slow

    def identity(self) -> dict[str, Any]:
        """Return the settings and hashes of the shards' contents lists and captions, without image bytes."""
        hashes = {}
        for split, uris in self._shards.items():
            for uri in uris:
                if uri not in self._hashes:
                    self._read(uri)
            names = "".join(f"{posixpath.basename(uri)} {self._hashes[uri]}\n" for uri in uris)
            hashes[split] = hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()
        return {"settings": canonical(self._config), "sha256": hashes}

    def records(self) -> Iterator[Record | Reject | RowsRead | Note]:
        strays: list[str] = []
        for split, uris in self._shards.items():
            whole: list[int] = []
            damaged: list[tuple[str, Shard]] = []
            for uri in uris:
                shard = self._read(uri)
                strays += shard.strays
                yield from self._shard_rows(split, uri, shard)
                if shard.lost:
                    damaged.append((uri, shard))
                else:
                    whole.append(len(shard.samples))
                    if not shard.samples:
                        yield Note(text=f"{uri} holds no sample")
            usual = round(statistics.median(whole)) if whole else None
            for uri, shard in damaged:
                for lost in shard.lost:
                    yield from _lost_rows(uri, shard, lost, usual)
        if self._not_taken:
            yield Note(text=f"not looked at, for they are no .tar files: {some(self._not_taken)}")
        if strays:
            yield Note(text=f"inside the shards, of no sample: {some(strays)}")

    def read_image(self, locator: str) -> bytes:
        uri, offset, size = locator.rsplit(":", 2)
        check_file_bytes(int(size))
        with open_file(uri) as file:
            data: bytes = file.read_at(int(size), int(offset))
        if len(data) != int(size):
            raise OSError(f"{len(data)} bytes at {offset} of {uri}, expected {size}: it has been changed")
        return data

    def _shard_rows(self, split: str, uri: str, shard: Shard) -> Iterator[Record | Reject | RowsRead | Note]:
        base = posixpath.basename(uri)
        images = []
        for key, sample in shard.samples.items():
            where = f"{base}:{key}"
            if not key.isprintable():
                yield RowsRead(images=1, captions=sample.caption is not None)
                yield from _reject_sample(where, sample, f"a name that is no plain text ({key!r})")
                continue
            image_id = f"{split}/{_stem(uri)}/{key}"
            yield from self._further_images(image_id, where, sample)
            place = next((sample.images[s] for s in self._suffixes if s in sample.images), None)
            image = NamedImage(
                image_id=image_id,
                names=(f"{uri}:{place.offset}:{place.size}" if place else "",),
                where=f"{where} ({', '.join(sample.files)}{sample.damage and '; '}{sample.damage})",
            )
            if sample.caption is None and place is not None:
                yield RowsRead(images=1)
                detail = f"{image.where}: no {self._caption_suffix} file (webdataset.caption_suffix)"
                yield _reject(Unit.IMAGE, image_id, RejectReason.IMAGE_WITHOUT_CAPTION, detail)
                continue
            values = [] if sample.caption is None else self._captions(sample.caption)
            if isinstance(values, Refusal):
                image.captions_lost = 1
                yield RowsRead(captions=1)
                row = NamedCaption(f"{image_id}#0", "", split, where)
                yield reject_caption(row, values, image_id)
            else:
                yield RowsRead(captions=len(values))
                ids = [f"{image_id}#{i}" for i in range(len(values))]
                image.captions = [NamedCaption(i, v, split, where) for i, v in zip(ids, values, strict=True)]
            images.append(image)
        yield RowsRead(images=len(images))
        detail = f"no image with a suffix of webdataset.image_suffixes ({', '.join(self._suffixes)})"
        yield from to_rows(images, Located(detail))
        for name, unit in shard.twice:
            yield RowsRead(images=unit is Unit.IMAGE, captions=unit is Unit.CAPTION)
            yield _reject(
                unit, f"{base}:{name}", RejectReason.DUPLICATE_ID, f"{base}:{name}: the same file again"
            )

    def _further_images(self, image_id: str, where: str, sample: Sample) -> Iterator[Reject | RowsRead]:
        """Reject the additional images of a sample."""
        own = [suffix for suffix in self._suffixes if suffix in sample.images]
        further = [*own[1:], *sample.further]
        if own:
            reason, detail = RejectReason.FURTHER_IMAGE, f"{own[0]} is the image of the sample"
        else:
            # The sample is rejected because it has no image; that reject counts for the first of these.
            reason, detail = RejectReason.MISSING_IMAGE, "its suffix is not among webdataset.image_suffixes"
            further = further[1:]
        for suffix in further:
            yield RowsRead(images=1)
            yield _reject(Unit.IMAGE, f"{image_id}.{suffix}", reason, f"{where}.{suffix}: {detail}")

    def _captions(self, data: bytes | Refusal) -> list[Any] | Refusal:
        """Return a sample's captions as stored in its file, unchecked."""
        if isinstance(data, Refusal):
            return data
        try:
            if self._config.json_field is None:
                return self._lines(data.removeprefix(b"\xef\xbb\xbf").decode())
            return captions_at(json.loads(data), self._config.json_field)
        except (ValueError, RecursionError) as error:  # invalid UTF-8 or JSON
            return Refusal(RejectReason.MALFORMED_ROW, f"{type(error).__name__}: {error}")

    def _lines(self, text: str) -> list[Any]:
        """Return the captions of a text file: its non-blank lines, or the whole text."""
        lines = [line for line in _LINE_BREAK.split(text) if line.strip()]
        return lines if self._config.caption_per_line and lines else [text]

    def _read(self, uri: str) -> Shard:
        shard = read_shard(uri, self._suffixes, self._caption_suffix)
        self._hashes[uri] = shard.digest
        return shard


def _stem(uri: str) -> str:
    name = posixpath.basename(uri)
    return name[:-4] if name.lower().endswith(".tar") else name


def _lost_rows(uri: str, shard: Shard, lost: Lost, usual: int | None) -> Iterator[Reject | RowsRead | Note]:
    """Reject the samples of an unreadable part, using an estimate of their number."""
    base = posixpath.basename(uri)
    number = shard.images_lost(lost, usual)
    told = f"{base}: {lost.told(shard.size)}"
    if number:
        told += f", in which about {number} samples are lost"
    yield Note(text=told)
    yield RowsRead(images=number, captions=number)
    reason = RejectReason.TRUNCATED if lost.gap.cut_off else RejectReason.UNREADABLE
    for index in range(number):
        row_id = f"{base}:{lost.gap.start}#{index}"
        yield _reject(Unit.IMAGE, row_id, reason, told)
        yield _reject(Unit.CAPTION, row_id, RejectReason.CAPTION_WITHOUT_IMAGE, told)


def _reject_sample(where: str, sample: Sample, detail: str) -> Iterator[Reject]:
    why = Refusal(RejectReason.MALFORMED_ROW, detail)
    yield _reject(Unit.IMAGE, where, why.reason, f"{where}: {detail}")
    if sample.caption is not None:
        yield reject_caption(NamedCaption("", "", "", where), why)


def _reject(unit: Unit, row_id: str, reason: RejectReason, detail: str) -> Reject:
    return Reject(unit=unit, row_id=row_id, reason=reason, detail=detail, text=row_id)
