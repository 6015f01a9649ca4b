"""The training samples in memory, addressable by row number; the images stay on disk.

Row r is the r-th caption of the split in the order of `sample_id`, independent of shards. Captions and
negatives are Arrow arrays, so one copy in Ray's object store serves every process of a node without
unpickling: 414k captions with ten negatives each take about 0.3 GB. Images are represented by their address
(part, row group, row in the group), found by reading the `image_id` column once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from degla_ray.config import DataConfig
from degla_ray.errors import DataError, SettingError
from degla_ray.schema import CAPTIONS, NEGATIVES, NEIGHBOURS
from degla_ray.stage import read_complete
from degla_ray.storage import Storage


@dataclass(frozen=True, kw_only=True)
class Samples:
    """All (image, caption) pairs of one split. N rows, I images, G negatives.

    Attributes:
        folder: URI of the prepared folder.
        parts: names of the parts of its dataset `images`.
        sample_id: [N] large_string, ascending.
        caption: [N] large_string.
        image: [N] int64, index into the images.
        image_id: [I] large_string.
        address: [I, 3] int32: part, row group, row in the row group.
        negative: [G] large_string; row r's negatives are `first_negative[r]:first_negative[r + 1]`.
        first_negative: [N + 1] int64.
        neighbour: [I, M] int64, each image's neighbours as indices into the images, -1 if missing; M = 0
            without hard-negative images.
        row_of: [N] int64, rows ordered by image; image i's rows are `first_row[i]:first_row[i + 1]`.
        first_row: [I + 1] int64.
        short_side: median short side of the images in pixels.
    """

    folder: str
    parts: tuple[str, ...]
    sample_id: pa.LargeStringArray
    caption: pa.LargeStringArray
    image: NDArray[np.int64]
    image_id: pa.LargeStringArray
    address: NDArray[np.int32]
    negative: pa.LargeStringArray
    first_negative: NDArray[np.int64]
    neighbour: NDArray[np.int64]
    row_of: NDArray[np.int64]
    first_row: NDArray[np.int64]
    short_side: int

    def __len__(self) -> int:
        return len(self.caption)


def load_samples(config: DataConfig, *, with_negatives: bool) -> Samples:
    """Load captions, negatives and the addresses of the images; the images themselves are not read.

    Raises:
        DataError: an input folder is missing, unfinished or of another stage, a caption's image is missing,
            or this split has no negatives.
        SettingError: the split does not exist.
    """
    storage, _ = read_complete(config.prepared, "prepare")
    captions = storage.read_dataset("captions", CAPTIONS)
    chosen = captions.filter(pc.equal(captions["split"], config.split)).sort_by("sample_id")
    if chosen.num_rows == 0:
        splits = ", ".join(sorted(pc.unique(captions["split"]).to_pylist()))
        raise SettingError("data.split", config.split, f"one of {splits}")
    images = _read_images(storage)
    image_row = pc.index_in(_large(chosen["image_id"]), value_set=images.image_id)
    if image_row.null_count:
        row = chosen.slice(pc.index(image_row.is_null(), True).as_py(), 1).to_pylist()[0]
        raise DataError(
            config.prepared,
            f"no image {row['image_id']!r} (caption {row['sample_id']!r})",
            "an image for every caption: run `jobs/prepare.py` again into a new folder",
        )
    sample_id = _large(chosen["sample_id"])
    negative, first_negative = _negatives(config, sample_id) if with_negatives else _none(len(sample_id))
    image = image_row.to_numpy(zero_copy_only=False).astype(np.int64)
    return Samples(
        folder=storage.uri,
        parts=images.parts,
        sample_id=sample_id,
        caption=_large(chosen["caption"]),
        image=image,
        image_id=images.image_id,
        address=images.address,
        negative=negative,
        first_negative=first_negative,
        neighbour=_neighbours(config, images.image_id, image),
        row_of=np.argsort(image, kind="stable"),
        first_row=np.searchsorted(np.sort(image), np.arange(len(images.image_id) + 1)).astype(np.int64),
        short_side=images.short_side,
    )


@dataclass(frozen=True, kw_only=True)
class _Images:
    image_id: pa.LargeStringArray
    address: NDArray[np.int32]
    parts: tuple[str, ...]
    short_side: int


def _read_images(storage: Storage) -> _Images:
    """Read ids, addresses and sizes of the images, but not their bytes."""
    parts = tuple(p for p in storage.names("images") if p.endswith(".parquet"))
    ids, addresses, short_sides = [], [], []
    for number, part in enumerate(parts):
        with storage.open_parquet("images", part) as file:
            table = file.read(columns=["image_id", "width", "height"])
            ids.append(_large(table["image_id"]))
            short_sides.append(pc.min_element_wise(table["width"], table["height"]).to_numpy())
            for group in range(file.num_row_groups):
                row = np.arange(file.metadata.row_group(group).num_rows, dtype=np.int32)
                addresses.append(np.stack([np.full_like(row, number), np.full_like(row, group), row], axis=1))
    if not any(map(len, addresses)):
        raise DataError(storage.path("images"), "no images", "a folder that `jobs/prepare.py` finished")
    return _Images(
        image_id=pa.concat_arrays(ids),
        address=np.concatenate(addresses),
        parts=parts,
        short_side=int(np.median(np.concatenate(short_sides))),
    )


def _negatives(
    config: DataConfig, sample_id: pa.LargeStringArray
) -> tuple[pa.LargeStringArray, NDArray[np.int64]]:
    """Return each row's negatives, in an order that does not depend on the shards."""
    assert config.negatives is not None  # TrainConfig requires it for objectives with negatives
    storage, _ = read_complete(config.negatives, "negatives")
    table = storage.read_dataset("negatives", NEGATIVES, ["sample_id", "kind", "negative"])
    table = table.append_column("row", pc.index_in(_large(table["sample_id"]), value_set=sample_id))
    table = table.filter(pc.is_valid(table["row"]))  # those of other splits
    if table.num_rows == 0:
        raise DataError(
            config.negatives,
            f"no negatives for split {config.split!r} of {config.prepared}",
            "negatives made from this prepared folder",
        )
    table = table.sort_by([(name, "ascending") for name in ("row", "kind", "negative")])
    row = table["row"].to_numpy()
    first = np.searchsorted(row, np.arange(len(sample_id) + 1)).astype(np.int64)
    return _large(table["negative"]), first


def _neighbours(
    config: DataConfig, image_id: pa.LargeStringArray, image: NDArray[np.int64]
) -> NDArray[np.int64]:
    if config.neighbours is None:
        return np.empty((len(image_id), 0), dtype=np.int64)
    storage, _ = read_complete(config.neighbours, "neighbours")
    table = storage.read_dataset("neighbours", NEIGHBOURS)
    row = pc.index_in(_large(table["image_id"]), value_set=image_id)
    lists = table["neighbours"].combine_chunks()
    found = pc.index_in(_large(pa.chunked_array([lists.flatten()])), value_set=image_id)
    missing = set(np.unique(image)) - set(row.drop_null().to_numpy())
    if row.null_count or found.null_count or missing:
        raise DataError(
            config.neighbours,
            f"images other than those of split {config.split!r} of {config.prepared}",
            "neighbours made from this prepared folder and split",
        )
    neighbour = np.full((len(image_id), len(lists[0])), -1, dtype=np.int64)
    neighbour[row.to_numpy()] = found.to_numpy().reshape(len(table), -1)
    return neighbour


def _none(rows: int) -> tuple[pa.LargeStringArray, NDArray[np.int64]]:
    return pa.array([], pa.large_string()), np.zeros(rows + 1, np.int64)


def _large(column: pa.ChunkedArray) -> pa.LargeStringArray:
    """Return one contiguous array with 64-bit offsets: a `string` array is limited to 2 GB of text."""
    return pa.concat_arrays(column.cast(pa.large_string()).chunks or [pa.array([], pa.large_string())])
