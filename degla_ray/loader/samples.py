"""The training samples in memory, addressable by row number; the images stay on disk.

Row r is the r-th caption of the split in the order of `sample_id`, independent of shards. Captions and
negatives are Arrow arrays, so one copy in Ray's object store serves every process of a node without
unpickling: 414k captions with ten negatives each take about 0.3 GB. Images are represented by their address
in the parts of the dataset `images` (24 bytes an image), which `prepare` wrote as `image_index`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from degla_ray.config import DataConfig
from degla_ray.errors import DataError, SettingError
from degla_ray.schema import CAPTIONS, IMAGE_INDEX, NEGATIVES, NEIGHBOURS
from degla_ray.stage import read_complete
from degla_ray.storage import Storage


@dataclass(frozen=True, kw_only=True)
class Texts:
    """The tokens of U texts, without padding.

    Attributes:
        token: [sum of the lengths] int32 token ids, text after text.
        first_U: [U + 1] int64; text u is `token[first_U[u]:first_U[u + 1]]`.
        context: the model's context length, in tokens.
        padding: id of the padding token.
    """

    token: NDArray[np.int32]
    first_U: NDArray[np.int64]
    context: int
    padding: int

    @classmethod
    def of(cls, tokens_UL: NDArray[np.integer], padding: int) -> Texts:
        """Return texts that a tokenizer padded; L is the context length."""
        U, L = tokens_UL.shape
        from_end_U = (tokens_UL != padding)[:, ::-1].argmax(axis=1) if U else np.zeros(0, np.int64)
        length_U = L - from_end_U
        real_UL = np.arange(L) < length_U[:, None]
        first_U = np.concatenate([[0], np.cumsum(length_U)]).astype(np.int64)
        return cls(token=tokens_UL[real_UL].astype(np.int32), first_U=first_U, context=L, padding=padding)

    @classmethod
    def joined(cls, texts: Sequence[Texts]) -> Texts:
        """Return all texts of a model's tokenizer as one."""
        length_U = np.concatenate([np.diff(t.first_U) for t in texts])
        return cls(
            token=np.concatenate([t.token for t in texts]),
            first_U=np.concatenate([[0], np.cumsum(length_U)]).astype(np.int64),
            context=texts[0].context,
            padding=texts[0].padding,
        )

    def take(self, which_X: NDArray[np.int64]) -> Texts:
        """Return the chosen texts."""
        length_X = np.diff(self.first_U)[which_X]
        first_X = np.concatenate([[0], np.cumsum(length_X)]).astype(np.int64)
        place = np.arange(first_X[-1]) + np.repeat(self.first_U[which_X] - first_X[:-1], length_X)
        return Texts(token=self.token[place], first_U=first_X, context=self.context, padding=self.padding)

    def padded(self) -> NDArray[np.int32]:
        """Return tokens_UL, padded to the longest text."""
        length_U = np.diff(self.first_U)
        tokens_UL = np.full((len(length_U), int(length_U.max(initial=1))), self.padding, np.int32)
        tokens_UL[np.arange(tokens_UL.shape[1]) < length_U[:, None]] = self.token
        return tokens_UL


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
        part_I: [I] int32, index of the image's part.
        offset_I: [I] int64, first byte of the image in its part.
        length_I: [I] int64, number of bytes.
        crc32_I: [I] int64, checksum of the bytes.
        negative: [G] large_string; row r's negatives are `first_negative[r]:first_negative[r + 1]`.
        first_negative: [N + 1] int64.
        neighbour: [I, M] int64, each image's neighbours as indices into the images, -1 if missing; M = 0
            without hard-negative images.
        row_of: [N] int64, rows ordered by image; image i's rows are `first_row[i]:first_row[i + 1]`.
        first_row: [I + 1] int64.
        short_side: median short side of the images in pixels.
        texts: tokens of the N captions and then of the G negatives; None before `tokens.tokenise_all`.
    """

    folder: str
    parts: tuple[str, ...]
    sample_id: pa.LargeStringArray
    caption: pa.LargeStringArray
    image: NDArray[np.int64]
    image_id: pa.LargeStringArray
    part_I: NDArray[np.int32]
    offset_I: NDArray[np.int64]
    length_I: NDArray[np.int64]
    crc32_I: NDArray[np.int64]
    negative: pa.LargeStringArray
    first_negative: NDArray[np.int64]
    neighbour: NDArray[np.int64]
    row_of: NDArray[np.int64]
    first_row: NDArray[np.int64]
    short_side: int
    texts: Texts | None = None

    def __len__(self) -> int:
        return len(self.caption)

    @property
    def part_rows(self) -> tuple[int, ...]:
        """Return the rows of each part; rows are in the order of the parts only with `block_rows`."""
        return tuple(np.bincount(self.part_I[self.image], minlength=len(self.parts)).tolist())


def load_samples(config: DataConfig, *, with_negatives: bool) -> Samples:
    """Load captions, negatives and the addresses of the images; the images themselves are not read.

    Raises:
        DataError: an input folder is missing, unfinished or of another stage, a caption's image is missing,
            or this split has no negatives.
        SettingError: the split does not exist.
    """
    storage, _ = read_complete(config.prepared, "prepare")
    chosen = _captions(storage, config.split)
    parts, part_I, index = _read_index(storage)
    image_id = _large(index["image_id"])
    image_row = pc.index_in(_large(chosen["image_id"]), value_set=image_id)
    if image_row.null_count:
        row = chosen.slice(pc.index(image_row.is_null(), True).as_py(), 1).to_pylist()[0]
        raise DataError(
            config.prepared,
            f"no image {row['image_id']!r} (caption {row['sample_id']!r})",
            "an image for every caption: run `jobs/prepare.py` again into a new folder",
        )
    image = image_row.to_numpy(zero_copy_only=False).astype(np.int64)
    if config.block_rows:  # rows part by part, whose images are then read together
        stored = np.lexsort((np.arange(len(image)), index["offset"].to_numpy()[image], part_I[image]))
        chosen, image = chosen.take(stored), image[stored]
    sample_id = _large(chosen["sample_id"])
    negative, first_negative = _negatives(config, sample_id) if with_negatives else _none(len(sample_id))
    return Samples(
        folder=storage.uri,
        parts=parts,
        sample_id=sample_id,
        caption=_large(chosen["caption"]),
        image=image,
        image_id=image_id,
        part_I=part_I,
        **{f"{name}_I": index[name].to_numpy() for name in ("offset", "length", "crc32")},
        negative=negative,
        first_negative=first_negative,
        neighbour=_neighbours(config, image_id, image),
        row_of=np.argsort(image, kind="stable"),
        first_row=np.searchsorted(np.sort(image), np.arange(len(image_id) + 1)).astype(np.int64),
        short_side=int(np.median(np.minimum(index["width"].to_numpy(), index["height"].to_numpy()))),
    )


def _captions(storage: Storage, split: str) -> pa.Table:
    """Return the captions of a split, ordered by sample_id."""
    captions = storage.read_dataset("captions", CAPTIONS)
    chosen = captions.filter(pc.equal(captions["split"], split)).drop_columns("split")
    if chosen.num_rows == 0:
        splits = ", ".join(sorted(pc.unique(captions["split"]).to_pylist()))
        raise SettingError("data.split", split, f"one of {splits}")
    del captions  # a second copy of all text
    return chosen.sort_by("sample_id")


def _read_index(storage: Storage) -> tuple[tuple[str, ...], NDArray[np.int32], pa.Table]:
    """Return the names of the parts of `images`, the part of each image, and the index of all images."""
    parts = tuple(p for p in storage.names("images") if p.endswith(".parquet"))
    if parts != tuple(storage.names("image_index")):
        found = "not one part for each of `images`"
        raise DataError(storage.path("image_index"), found, "a folder that this version prepared")
    tables = []
    for part in parts:
        with storage.open_parquet("image_index", part) as file:
            tables.append(file.read().cast(IMAGE_INDEX))
    rows = [table.num_rows for table in tables]
    if not sum(rows):
        raise DataError(storage.path("images"), "no images", "a folder that `jobs/prepare.py` finished")
    return parts, np.repeat(np.arange(len(parts), dtype=np.int32), rows), pa.concat_tables(tables)


def _negatives(
    config: DataConfig, sample_id: pa.LargeStringArray
) -> tuple[pa.LargeStringArray, NDArray[np.int64]]:
    """Return each row's negatives, in an order that does not depend on the shards."""
    assert config.negatives is not None  # TrainConfig requires it for objectives with negatives
    storage, _ = read_complete(config.negatives, "negatives")
    table = storage.read_dataset("negatives", NEGATIVES, ["sample_id", "kind", "negative"])
    table = table.append_column("row", pc.index_in(_large(table["sample_id"]), value_set=sample_id))
    table = table.filter(pc.is_valid(table["row"]))  # those of other splits
    of_kinds = ""
    if config.kinds is not None:
        table = table.filter(pc.is_in(table["kind"], pa.array([str(kind) for kind in config.kinds])))
        of_kinds = f" of kind {' or '.join(config.kinds)}"
    if table.num_rows == 0:
        raise DataError(
            config.negatives,
            f"no negatives{of_kinds} for split {config.split!r} of {config.prepared}",
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
    chunks = column.cast(pa.large_string()).chunks
    return chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks or [pa.array([], pa.large_string())])
