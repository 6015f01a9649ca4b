"""WebDataset's tar shards: files of one name before the first dot are a sample.

The driver walks each shard's headers once, skipping over the pictures, and reads the captions; a task then
reads a picture by its byte offset, so shards must not be compressed. Walking takes about 25 µs a file on a
local disk. A shard that breaks off or has a broken header is used up to there, and the rest is one reject
that names it: what it would have held is not known.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa

from degla_ray.config import WebdatasetConfig
from degla_ray.errors import DataError, SettingError
from degla_ray.schema import RejectReason
from degla_ray.shards import canonical
from degla_ray.sources.base import Record, Refusal, Reject, RowsRead, Source, Unit
from degla_ray.sources.files import find_files, open_file
from degla_ray.sources.listing import Located, NamedCaption, NamedImage, reject_caption, to_rows

MEMBER_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)  # a hidden file is no part of a sample
_LINE_BREAK = re.compile(r"\r\n|\n|\r")
_MAX_CAPTION_BYTES = 1 << 20
_TAIL_BYTES = 1 << 20  # behind the end mark, where only zeros may stand


class _Place(NamedTuple):
    offset: int
    size: int


@dataclass(kw_only=True)
class _Sample:
    """A sample's files: all suffixes as found, where the pictures lie, and the caption file's bytes."""

    suffixes: list[str] = field(default_factory=list)
    pictures: dict[str, _Place] = field(default_factory=dict)
    caption: bytes | Refusal | None = None


@dataclass(kw_only=True)
class _Shard:
    """What was read of one tar file; `twice` are names that came again, `fault` why it is not whole."""

    samples: dict[str, _Sample] = field(default_factory=dict)
    twice: list[str] = field(default_factory=list)
    fault: Refusal | None = None


class WebdatasetSource(Source):
    """image_id is `<split>/<shard>/<key>`, as keys may begin anew in each shard; sample_id `<image_id>#<i>`.

    Raises:
        SettingError: a shard that the settings name is not there, or two of a split have one name.
    """

    def __init__(self, config: WebdatasetConfig) -> None:
        self._config = config
        self._shards = find_files(config.shards, "webdataset.shards", ".tar")
        for split, uris in self._shards.items():
            ((name, times),) = Counter(map(_stem, uris)).most_common(1)
            if times > 1:
                expected = "shards of different names: they are part of the ids"
                raise SettingError(f"webdataset.shards.{split}", f"{times} times {name}", expected)
        self._suffixes = tuple(suffix.lower().lstrip(".") for suffix in config.image_suffixes)
        self._caption_suffix = "txt" if config.json_field is None else "json"
        self._hashes: dict[str, str] = {}  # of shards read already: reading one twice takes as long

    def identity(self) -> dict[str, Any]:
        """Hashes the shards' tables of contents and the captions, not the pictures' bytes."""
        hashes = {}
        for split, uris in self._shards.items():
            for uri in uris:
                if uri not in self._hashes:
                    self._read(uri)
            names = "".join(f"{posixpath.basename(uri)} {self._hashes[uri]}\n" for uri in uris)
            hashes[split] = hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()
        return {"settings": canonical(self._config), "sha256": hashes}

    def records(self) -> Iterator[Record | Reject | RowsRead]:
        for split, uris in self._shards.items():
            for uri in uris:
                yield from self._shard_rows(split, uri)

    def read_image(self, locator: str) -> bytes:
        uri, offset, size = locator.rsplit(":", 2)
        with open_file(uri) as file:
            data: bytes = file.read_at(int(size), int(offset))
        if len(data) != int(size):
            raise OSError(f"{len(data)} bytes at {offset} of {uri}, expected {size}: it has been changed")
        return data

    def _shard_rows(self, split: str, uri: str) -> Iterator[Record | Reject | RowsRead]:
        shard = self._read(uri)
        base = posixpath.basename(uri)
        images = []
        for key, sample in shard.samples.items():
            where = f"{base}:{key}"
            if not key.isprintable():
                yield RowsRead(images=1, captions=sample.caption is not None)
                yield from _reject_sample(where, sample, f"a name that is no plain text ({key!r})")
                continue
            image_id = f"{split}/{_stem(uri)}/{key}"
            place = next((sample.pictures[s] for s in self._suffixes if s in sample.pictures), None)
            locator = f"{uri}:{place.offset}:{place.size}" if place else ""
            image = NamedImage(
                image_id=image_id, names=(locator,), where=f"{where} ({', '.join(sample.suffixes)})"
            )
            values = self._captions(sample.caption)
            if isinstance(values, Refusal):
                image.captions_lost = 1
                yield RowsRead(captions=1)
                yield reject_caption(NamedCaption(f"{image_id}#0", "", split, where), values, image_id)
            else:
                yield RowsRead(captions=len(values))
                image.captions = [
                    NamedCaption(f"{image_id}#{i}", value, split, where) for i, value in enumerate(values)
                ]
            images.append(image)
        yield RowsRead(images=len(images))
        yield from to_rows(images, Located())
        for name in shard.twice:
            yield from _reject_file(f"{base}:{name}", RejectReason.DUPLICATE_ID, "the same file again")
        if shard.fault is not None:
            yield from _reject_file(base, shard.fault.reason, f"the rest of the shard: {shard.fault.detail}")

    def _captions(self, data: bytes | Refusal | None) -> list[Any] | Refusal:
        """The captions of a sample as they stand in its file, unchecked."""
        if data is None:
            return []
        if isinstance(data, Refusal):
            return data
        field = self._config.json_field
        try:
            if field is None:
                return self._lines(data.removeprefix(b"\xef\xbb\xbf").decode())
            content = json.loads(data)
        except (ValueError, RecursionError) as error:  # not UTF-8, no JSON
            return Refusal(RejectReason.MALFORMED_ROW, f"{type(error).__name__}: {error}")
        if not isinstance(content, dict) or field not in content:
            found = sorted(content)[:8] if isinstance(content, dict) else type(content).__name__
            return Refusal(RejectReason.MALFORMED_ROW, f"no field {field!r} ({found})")
        value = content[field]
        return value if isinstance(value, list) else [value]

    def _lines(self, text: str) -> list[Any]:
        """The captions of a .txt: lines that are not blank, as CLIP_benchmark writes them; or all of it."""
        lines = [line for line in _LINE_BREAK.split(text) if line.strip()]
        return lines if self._config.caption_per_line and lines else [text]

    def _read(self, uri: str) -> _Shard:
        """Walks one shard.

        Raises:
            DataError: the file cannot be read; one that can, but is no whole tar file, gives a fault.
        """
        shard, digest = _Shard(), hashlib.sha256()
        try:
            with open_file(uri) as file:
                total = file.size()
                try:
                    for member in members(file):
                        digest.update(f"{member.name!r} {member.offset_data} {member.size}\n".encode())
                        self._add(shard, member, file, total, digest)
                except pa.ArrowException:  # some are ValueErrors, but of the file system
                    raise
                except (tarfile.TarError, ValueError, OverflowError) as error:
                    cut = not total or any(word in str(error) for word in ("unexpected end", "truncated"))
                    reason = RejectReason.TRUNCATED if cut else RejectReason.UNREADABLE
                    shard.fault = Refusal(
                        reason, f"{error} ({total} bytes; an uncompressed tar file is read)"
                    )
        except (pa.ArrowException, OSError) as error:
            raise DataError(uri, f"{type(error).__name__}: {error}", "a tar file that can be read") from error
        digest.update(repr(shard.fault).encode())
        self._hashes[uri] = digest.hexdigest()
        return shard

    def _add(
        self, shard: _Shard, member: tarfile.TarInfo, file: pa.NativeFile, total: int, digest: Any
    ) -> None:
        match = MEMBER_NAME.fullmatch(member.name)
        if match is None or member.isdir() or member.offset_data + member.size > total:
            return  # one that the file's end cuts is part of the shard's fault
        key, suffix = match[1], match[2].lower()
        sample = shard.samples.setdefault(key, _Sample())
        if not member.isreg() or member.issparse():
            sample.suffixes.append(f"{suffix}: no plain file")
            return
        if suffix in sample.suffixes and suffix in (*self._suffixes, self._caption_suffix):
            shard.twice.append(member.name)
            return
        sample.suffixes.append(suffix)
        if suffix in self._suffixes:
            sample.pictures[suffix] = _Place(member.offset_data, member.size)
        elif suffix == self._caption_suffix and member.size > _MAX_CAPTION_BYTES:
            sample.caption = Refusal(RejectReason.MALFORMED_ROW, f"a caption file of {member.size} bytes")
        elif suffix == self._caption_suffix:
            file.seek(member.offset_data)
            sample.caption = file.read(member.size)
            digest.update(sample.caption)


def _stem(uri: str) -> str:
    return posixpath.basename(uri).removesuffix(".tar")


def members(file: pa.NativeFile) -> Iterator[tarfile.TarInfo]:
    """All members in order.

    Raises:
        tarfile.TarError: after the last member there is something else than a tar file's end.
    """
    with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # it would hold on to all of them
            yield member
        # tarfile takes a broken or missing header for the end; `offset` is where it looked for one.
        file.seek(tar.offset)
        tail = file.read(_TAIL_BYTES)
        if len(tail) < tarfile.BLOCKSIZE:
            raise tarfile.ReadError(f"unexpected end of data: no end mark at byte {tar.offset}")
        if tail[: tarfile.BLOCKSIZE].strip(b"\0"):
            raise tarfile.ReadError(f"no header at byte {tar.offset}")
        if tail.strip(b"\0"):
            raise tarfile.ReadError(f"more data behind the end mark at byte {tar.offset}")


def _reject_sample(where: str, sample: _Sample, detail: str) -> Iterator[Reject]:
    why = Refusal(RejectReason.MALFORMED_ROW, detail)
    yield Reject(unit=Unit.IMAGE, row_id=where, reason=why.reason, detail=f"{where}: {detail}", text=where)
    if sample.caption is not None:
        yield reject_caption(NamedCaption("", "", "", where), why)


def _reject_file(row_id: str, reason: RejectReason, detail: str) -> Iterator[Reject | RowsRead]:
    yield RowsRead(images=1)
    yield Reject(unit=Unit.IMAGE, row_id=row_id, reason=reason, detail=f"{row_id}: {detail}", text=row_id)
