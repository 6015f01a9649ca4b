"""The captions of a prepared folder by shard, each with the other captions of its image.

One ordering by shard and one by image, made once on the driver, serve the lookups of every shard. The columns
are Arrow and numpy arrays, so that Ray's object store holds one copy per node, and all actors read it there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from degla_ray.negatives.plausibility import fold_of
from degla_ray.stage import shard_of


@dataclass(frozen=True, kw_only=True)
class ImageCaption:
    """A caption with its image's other captions, scene graph (JSON; None if unknown) and fold."""

    sample_id: str
    text: str
    siblings: tuple[str, ...]
    graph: str | None
    fold: int = 0


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Rows ordered by group; group g's rows are `row[first[g]:first[g + 1]]`, ascending."""

    row: NDArray[np.int64]
    first: NDArray[np.int64]

    @classmethod
    def of(cls, group_N: NDArray[np.int32], count: int) -> Groups:
        row = np.argsort(group_N, kind="stable")
        return cls(row=row, first=np.searchsorted(group_N[row], np.arange(count + 1)))

    def rows(self, group: int) -> NDArray[np.int64]:
        return self.row[self.first[group] : self.first[group + 1]]


@dataclass(frozen=True, kw_only=True)
class CaptionShards:
    """All captions, addressable by shard. N captions.

    Attributes:
        sample_id, image_id, caption: [N] large_string.
        image: [N] int32, number of each caption's image.
        graphs: image_id -> scene graph; empty if the images have none.
        by_shard, by_image: the rows of each shard and of each image.
    """

    sample_id: pa.LargeStringArray
    image_id: pa.LargeStringArray
    caption: pa.LargeStringArray
    image: NDArray[np.int32]
    graphs: Mapping[str, str]
    by_shard: Groups
    by_image: Groups

    @classmethod
    def of(
        cls, captions: pa.Table, graphs: Mapping[str, str], num_shards: int, by: str = "sample_id"
    ) -> CaptionShards:
        """Order the captions.

        Args:
            captions: all captions (sample_id, image_id, caption).
            graphs: image_id -> scene graph.
            num_shards: number of shards in the output.
            by: the column whose hash selects the shard.
        """
        shards = (shard_of(key, num_shards) for key in values(captions[by]))
        columns = {
            name: captions[name].cast(pa.large_string()).combine_chunks()
            for name in ("sample_id", "image_id", "caption")
        }
        images = columns["image_id"].dictionary_encode()
        image = images.indices.to_numpy()
        return cls(
            **columns,
            image=image,
            graphs=graphs,
            by_shard=Groups.of(np.fromiter(shards, np.int32, len(captions)), num_shards),
            by_image=Groups.of(image, len(images.dictionary)),
        )

    def rows(self, shard: int) -> NDArray[np.int64]:
        """Return the rows of a shard."""
        return self.by_shard.rows(shard)

    def windows(self, shards: Iterable[int], size: int) -> Iterator[list[int]]:
        """Yield shards in groups of at most `size` captions, or of one shard that alone has more."""
        window: list[int] = []
        held = 0
        for shard in shards:
            if window and held + len(self.rows(shard)) > size:
                yield window
                window, held = [], 0
            window.append(shard)
            held += len(self.rows(shard))
        if window:
            yield window

    def captions_of(self, shard: int) -> list[ImageCaption]:
        """Return the captions of a shard, sorted by sample_id."""
        rows = self.rows(shard)
        columns = (
            getattr(self, name).take(rows).to_pylist() for name in ("sample_id", "image_id", "caption")
        )
        found = sorted(zip(*columns, self.image[rows].tolist(), strict=True))
        texts = self._texts_of(np.unique(self.image[rows]))
        return [
            ImageCaption(
                sample_id=sample_id,
                text=text,
                siblings=tuple(sorted(texts[image] - {text})),
                graph=self.graphs.get(image_id),
                fold=fold_of(image_id),
            )
            for sample_id, image_id, text, image in found
        ]

    def _texts_of(self, images: NDArray[np.int32]) -> dict[int, set[str]]:
        """Return the distinct captions of some images."""
        if not len(images):
            return {}
        family = np.concatenate([self.by_image.rows(image) for image in images])
        texts: dict[int, set[str]] = {}
        captions = self.caption.take(family).to_pylist()
        for image, text in zip(self.image[family].tolist(), captions, strict=True):
            texts.setdefault(image, set()).add(text)
        return texts


def values(column: pa.ChunkedArray) -> Iterator[str]:
    """Yield the texts of a column; those of one chunk at a time are Python objects."""
    for chunk in column.iterchunks():
        yield from chunk.to_pylist()
