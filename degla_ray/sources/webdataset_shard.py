"""Read one tar shard as samples: group its files by key and record what could not be read.

A file whose name ends in a configured suffix belongs to the key before that suffix, so keys may contain dots
(`IMG.0001.jpg`). Any other file, and an image without a caption of its own (`KEY.seg.png`), belongs to the
sample whose key is a prefix of its name.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from tarfile import BLOCKSIZE
from typing import NamedTuple

import pyarrow as pa

from degla_ray.errors import DataError
from degla_ray.schema import RejectReason
from degla_ray.sources.base import Refusal, Unit
from degla_ray.sources.files import open_file
from degla_ray.sources.tar_walk import MEMBER_NAME, Gap, compression, walk

_MAX_CAPTION_BYTES = 1 << 20
_HERE = re.compile(r"(?:\./+)+")


class Place(NamedTuple):
    offset: int
    size: int


@dataclass(kw_only=True)
class Sample:
    """The files of one key.

    Attributes:
        files: suffixes as found.
        images: images by suffix, one of `image_suffixes`.
        further: longer suffixes of additional images of the sample, e.g. `seg.png`.
        caption: the caption file's bytes, or the reason for rejecting them.
        damage: description of adjacent unreadable data that may have held one of the sample's files.
    """

    files: list[str] = field(default_factory=list)
    images: dict[str, Place] = field(default_factory=dict)
    further: list[str] = field(default_factory=list)
    caption: bytes | Refusal | None = None
    damage: str = ""

    @property
    def whole(self) -> bool:
        return bool(self.images) and self.caption is not None


@dataclass(kw_only=True)
class Lost:
    """An unreadable part of a shard, with the keys of the members before and after it."""

    gap: Gap
    near: list[str] = field(default_factory=list)

    def told(self, size: int) -> str:
        unread = self.gap.end - self.gap.start
        return f"{self.gap.why}; {unread} of {size} bytes unread"


@dataclass(kw_only=True)
class Shard:
    """The contents of one tar file.

    Attributes:
        twice: names of repeated files, each with its unit (image or caption).
        strays: names of files that belong to no sample.
        size: size of the file in bytes.
        bytes_read: bytes of its readable members, including headers and padding.
        digest: hash of the table of contents and the captions.
    """

    samples: dict[str, Sample] = field(default_factory=dict)
    twice: list[tuple[str, Unit]] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    lost: list[Lost] = field(default_factory=list)
    size: int = 0
    bytes_read: int = 0
    digest: str = ""

    def images_lost(self, lost: Lost, usual: int | None) -> int:
        """Return an estimate of the images in an unreadable part, excluding incomplete samples next to it.

        Args:
            lost: one of `self.lost`.
            usual: images in an intact shard; None assumes that a shard cut off early lost half of its images.
        """
        held = len(self.samples)
        share = (lost.gap.end - lost.gap.start) / max(1, self.bytes_read)
        number = max(1, round(held * share))
        if lost.gap.cut_off:
            number = max(number, held if usual is None else usual - held)
        return max(0, number - sum(bool(self.samples[key].damage) for key in lost.near))


def read_shard(uri: str, image_suffixes: Sequence[str], caption_suffix: str) -> Shard:
    """Walk one shard and read its captions.

    Args:
        uri: the tar file.
        image_suffixes: lower case, without a leading dot; may contain dots.
        caption_suffix: in the same form.

    Raises:
        DataError: the file cannot be opened, or is compressed.
    """
    shard, digest = Shard(), hashlib.sha256()
    reader = _ShardReader(shard, tuple(image_suffixes), caption_suffix)
    key: str | None = None
    try:
        with open_file(uri) as file:
            if (kind := compression(file)) is not None:
                expected = "an uncompressed tar file: images are read by their byte offset"
                raise DataError(uri, f"a file compressed by {kind}", expected)
            shard.size = file.size()
            for each in walk(file):
                if isinstance(each, Gap):
                    shard.lost.append(Lost(gap=each, near=[] if key is None else [key]))
                    continue
                shard.bytes_read += each.offset_data - each.offset + -(-each.size // BLOCKSIZE) * BLOCKSIZE
                digest.update(f"{each.name!r} {each.offset_data} {each.size}\n".encode())
                added = reader.add(each, file)
                if added is None:
                    continue
                if shard.lost and shard.lost[-1].gap.end == each.offset:
                    shard.lost[-1].near.append(added)
                key = added
                if (caption := reader.caption_read) is not None:
                    digest.update(caption)
    except (pa.ArrowException, OSError) as error:
        raise DataError(uri, f"{type(error).__name__}: {error}", "a tar file that can be read") from error
    digest.update(repr([lost.gap for lost in shard.lost]).encode())
    shard.digest = digest.hexdigest()
    reader.gather()
    for lost in shard.lost:
        lost.near = [key for key in dict.fromkeys(lost.near) if key in shard.samples]
        for key in lost.near:
            if not shard.samples[key].whole:
                shard.samples[key].damage = lost.told(shard.size)
    return shard


class _ShardReader:
    """A collector of members into samples; `gather` then assigns members with unknown suffixes."""

    def __init__(self, shard: Shard, images: tuple[str, ...], caption: str) -> None:
        self._shard, self._images, self._caption = shard, images, caption
        self._suffixes = sorted({*images, caption}, key=len, reverse=True)
        self._unknown: list[str] = []
        self.caption_read: bytes | None = None

    def add(self, member: tarfile.TarInfo, file: pa.NativeFile) -> str | None:
        """Add one member; return its key, or None if the key is not known yet."""
        self.caption_read = None
        if member.isdir():
            return None
        name = _HERE.sub("", member.name, count=1) if member.name.startswith("./") else member.name
        key, suffix = self._split(name)
        if not key:
            self._unknown.append(name)
            return None
        sample = self._shard.samples.setdefault(key, Sample())
        if not member.isreg() or member.issparse():
            sample.files.append(f"{suffix}: no plain file")
        elif suffix in sample.files:
            unit = Unit.CAPTION if suffix == self._caption else Unit.IMAGE
            self._shard.twice.append((name, unit))
        else:
            sample.files.append(suffix)
            self._enter(sample, suffix, member, file)
        return key

    def _enter(self, sample: Sample, suffix: str, member: tarfile.TarInfo, file: pa.NativeFile) -> None:
        if suffix != self._caption:
            sample.images[suffix] = Place(member.offset_data, member.size)
        elif member.size > _MAX_CAPTION_BYTES:
            sample.caption = Refusal(RejectReason.MALFORMED_ROW, f"a caption file of {member.size} bytes")
        else:
            sample.caption = self.caption_read = file.read_at(member.size, member.offset_data)

    def gather(self) -> None:
        samples = self._shard.samples
        for name in self._unknown:
            match = MEMBER_NAME.fullmatch(name)
            if match is None:
                self._shard.strays.append(name)
                continue
            key = next((parent for parent in _parents(name) if parent in samples), match[1])
            samples.setdefault(key, Sample()).files.append(name[len(key) + 1 :])
        for key in sorted(samples, key=lambda key: -key.count(".")):  # innermost first
            sample = samples[key]
            parent = next((parent for parent in _parents(key) if parent in samples), None)
            if sample.caption is None and parent is not None:
                rest = key[len(parent) + 1 :]
                samples[parent].files += [f"{rest}.{suffix}" for suffix in sample.files]
                images = [*sample.images, *sample.further]
                samples[parent].further += [f"{rest}.{suffix}" for suffix in images]
                del samples[key]

    def _split(self, name: str) -> tuple[str, str]:
        """Return key and suffix if the file has a known suffix, else two empty strings."""
        folder, slash, base = name.rpartition("/")
        for suffix in self._suffixes:
            stem = base[: -len(suffix) - 1]
            if stem and not stem.startswith(".") and base.lower().endswith(f".{suffix}"):
                return f"{folder}{slash}{stem}", suffix
        return "", ""


def _parents(name: str) -> Iterator[str]:
    """Yield the prefixes before each dot in the name's last part, longest first."""
    folder, slash, base = name.rpartition("/")
    while "." in base[1:]:
        base = base.rpartition(".")[0]
        yield f"{folder}{slash}{base}"
