"""Images in WebDataset tar shards, each with its class number, in CLIP_benchmark's format.

The shards' headers are scanned once, when batches are made, at about 25 µs per file on a local disk. Tasks
then read by byte offset, so shards must not be compressed.
"""

from __future__ import annotations

import functools
import json
import tarfile
from dataclasses import dataclass

import pyarrow as pa

from degla_ray.encoding.images import ImageBatch, StoredImage
from degla_ray.errors import DataError, one_line
from degla_ray.pixel_limit import check_file_bytes
from degla_ray.sources.tar_walk import MEMBER_NAME, members
from degla_ray.storage import Storage

SUFFIXES = ("webp", "png", "jpg", "jpeg")  # the first that a sample has counts, as in CLIP_benchmark


@dataclass(frozen=True, kw_only=True)
class TarSample:
    """Location of a sample's image in bytes, and the sample's class."""

    shard: str
    offset: int
    size: int
    label: int


@dataclass(frozen=True)
class TarImages:
    """Images in the tar shards of a folder, on any filesystem. An id is `SHARD.tar/KEY`."""

    uri: str

    @functools.cached_property
    def samples(self) -> dict[str, TarSample]:
        """Id -> sample, in the order of the shards.

        Raises:
            DataError: a broken shard or an incomplete sample.
        """
        storage = Storage(self.uri)
        return {
            f"{shard}/{key}": s for shard in tar_names(storage) for key, s in _walk(storage, shard).items()
        }

    def __reduce__(self) -> tuple[type[TarImages], tuple[str]]:
        return (TarImages, (self.uri,))  # without the samples: each batch carries its own locations

    def batches(self, wanted: set[str], size: int) -> tuple[list[ImageBatch], dict[str, str]]:
        by_shard: dict[str, list[tuple[str, TarSample]]] = {}
        for image_id, sample in self.samples.items():
            if image_id in wanted:
                by_shard.setdefault(sample.shard, []).append((image_id, sample))
        batches = []
        for shard, found in by_shard.items():
            for start in range(0, len(found), size):
                chunk = found[start : start + size]
                where = json.dumps([shard, [[sample.offset, sample.size] for _, sample in chunk]])
                batches.append(ImageBatch(ids=[image_id for image_id, _ in chunk], where=where))
        return batches, dict.fromkeys(sorted(wanted - self.samples.keys()), "not in the shards")

    def read(self, batch: ImageBatch) -> list[StoredImage | Exception]:
        shard, places = json.loads(batch.where)
        storage = Storage(self.uri)
        try:
            with storage.filesystem.open_input_file(storage.path(shard)) as file:
                found = [file.read_at(size, offset) for offset, size in places]
        except (OSError, pa.ArrowException) as error:
            return [error] * len(batch.ids)
        return [
            StoredImage(data=data)
            if len(data) == size
            else OSError(f"{len(data)} of {size} bytes in {shard}: it has been changed")
            for data, (_, size) in zip(found, places, strict=True)
        ]


def tar_names(storage: Storage) -> list[str]:
    """Return the names of the shards directly in a folder."""
    return [name for name in storage.names() if name.endswith(".tar")]


def _walk(storage: Storage, shard: str) -> dict[str, TarSample]:
    """Return a shard's samples by key.

    Raises:
        DataError: see `TarImages.samples`.
    """
    where = storage.path(shard)
    places: dict[str, dict[str, tuple[int, int]]] = {}
    labels: dict[str, bytes] = {}
    try:
        with storage.filesystem.open_input_file(where) as file:
            for member in members(file):
                match = MEMBER_NAME.fullmatch(member.name)
                if match is None or not member.isreg():
                    continue
                key, suffix = match[1], match[2].lower()
                own = places.setdefault(key, {})
                if suffix in own:
                    raise DataError(where, f"{member.name} twice", "each file once")
                if suffix in SUFFIXES:
                    check_file_bytes(member.size)
                own[suffix] = (member.offset_data, member.size)
                if suffix == "cls":
                    labels[key] = file.read_at(member.size, member.offset_data)
    except (tarfile.TarError, ValueError, OverflowError, OSError, pa.ArrowException) as error:
        raise DataError(where, one_line(error), "a whole, uncompressed tar file") from error
    samples = {}
    for key, own in places.items():
        image = next((own[suffix] for suffix in SUFFIXES if suffix in own), None)
        if image is None or key not in labels:
            found = f"sample {key!r} of {', '.join(sorted(own))}"
            expected = f"an image ({', '.join(SUFFIXES)}) and a cls"
            if "txt" in own:
                expected += "; captions for retrieval are read by `jobs/prepare.py --source webdataset`"
            raise DataError(where, found, expected)
        samples[key] = TarSample(
            shard=shard, offset=image[0], size=image[1], label=_label(where, key, labels[key])
        )
    if not samples:
        raise DataError(where, "no samples", f"images ({', '.join(SUFFIXES)}), each with a cls")
    return samples


def _label(where: str, key: str, content: bytes) -> int:
    try:
        return int(content)
    except ValueError:
        raise DataError(f"{where}, {key}.cls", f"{content[:20]!r}", "a class number") from None
