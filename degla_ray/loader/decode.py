"""Build a worker's batch from row numbers: fetch by address, decode, crop, tokenise. Does not import Ray.

Images stay uint8, a quarter of the bytes; the trainer converts them to float.
Parquet reads at least a row group of 16 images. The latest groups are cached (up to 256 MiB per process): a
data set that fits is read from disk once; of a larger one, up to 16 times the necessary bytes are read.

Shape suffixes: B a worker's rows, H W pixels, C channels, L tokens, K negatives.
"""

from __future__ import annotations

import io
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from degla_ray.errors import DataError
from degla_ray.loader.order import BatchOrder, Visits, draw_negatives, uniforms
from degla_ray.loader.samples import Samples
from degla_ray.pixel_limit import without_pillows_limit
from degla_ray.storage import Storage

CACHE_BYTES = 256 * 2**20
_TRIES = 10  # as torchvision's RandomResizedCrop
_UNIFORMS = 2 * _TRIES + 2
_RATIO_LOG = (math.log(3 / 4), math.log(4 / 3))


@dataclass(frozen=True, kw_only=True)
class BatchSpec:
    """Everything that determines a worker's batches, except the samples.

    Attributes:
        order: order of the global batches.
        rank: rank of the worker.
        world_size: number of workers.
        negatives: K; 0 for an objective without negatives.
        size: (height, width) of an image in pixels.
        interpolation: PIL's name, e.g. `bicubic`.
        crop_scale_min: smallest share of the image's area that a crop keeps.
        tokenizer: captions -> int64 tensor [.., L].
    """

    order: BatchOrder
    rank: int
    world_size: int
    negatives: int
    size: tuple[int, int]
    interpolation: str
    crop_scale_min: float
    tokenizer: Callable[[list[str]], Any]


class BatchReader:
    """Reads the local batch of any step; keeps files open and caches the latest row groups."""

    def __init__(self, samples: Samples, spec: BatchSpec) -> None:
        self.samples, self.spec = samples, spec
        self._reader = ImageReader(samples)

    def read(self, step: int) -> dict[str, NDArray[Any]]:
        """Return the local batch of a step as arrays by name.

        With hard-negative images, B is twice the worker's rows: first the rows, then a neighbour of each.

        Returns:
            images uint8 [B, H, W, C], tokens int32 [B, L], negatives int32 [B, K, L], mask bool [B, K].

        Raises:
            DataError: an image cannot be decoded; the error names its image_id.
        """
        spec = self.spec
        visits = spec.order.batch(step, spec.rank, spec.world_size)
        if self.samples.neighbour.shape[1]:
            visits = with_hard_negatives(visits, self.samples, spec.order.seed)
        tokens, negatives, mask_BK = self._text(visits)
        return {"images": self._images(visits), "tokens": tokens, "negatives": negatives, "mask": mask_BK}

    def _images(self, visits: Visits) -> NDArray[np.uint8]:
        spec = self.spec
        height, width = spec.size
        method = Image.Resampling[spec.interpolation.upper()]
        drawn = uniforms(spec.order.seed, "crop", visits, _UNIFORMS)
        out_BHWC = np.empty((len(visits.row_B), height, width, 3), dtype=np.uint8)
        for out, row, u in zip(out_BHWC, visits.row_B, drawn, strict=True):
            decoded = self._reader.open(int(self.samples.image[row]))
            left, top, w, h = crop_box(decoded.width, decoded.height, u, spec.crop_scale_min)
            with without_pillows_limit():  # which applies to crops too
                crop = decoded.crop((left, top, left + w, top + h))
            out[:] = np.asarray(crop.resize((width, height), method))
        return out_BHWC

    def _text(self, visits: Visits) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.bool_]]:
        samples, spec = self.samples, self.spec
        captions = samples.caption.take(pa.array(visits.row_B)).to_pylist()
        first_B = samples.first_negative[visits.row_B]
        count_B = samples.first_negative[visits.row_B + 1] - first_B
        index_BK, mask_BK = draw_negatives(spec.order.seed, visits, count_B, spec.negatives)
        chosen = samples.negative.take(pa.array((first_B[:, None] + index_BK)[mask_BK])).to_pylist()
        tokens_XL = np.asarray(spec.tokenizer(captions + chosen), dtype=np.int32)
        negatives_BKL = np.zeros((*mask_BK.shape, tokens_XL.shape[1]), np.int32)
        negatives_BKL[mask_BK] = tokens_XL[len(captions) :]
        return tokens_XL[: len(captions)], negatives_BKL, mask_BK


def with_hard_negatives(visits: Visits, samples: Samples, seed: int) -> Visits:
    """Append one visit for each visit: a random caption of a random neighbour of its image."""
    which_B, caption_B = uniforms(seed, "neighbour", visits, 2).T
    neighbours_BM = samples.neighbour[samples.image[visits.row_B]]
    image_B = neighbours_BM[np.arange(len(which_B)), (which_B * neighbours_BM.shape[1]).astype(np.int64)]
    first_B, end_B = samples.first_row[image_B], samples.first_row[image_B + 1]
    row_B = samples.row_of[first_B + (caption_B * (end_B - first_B)).astype(np.int64)]
    return Visits(
        epoch_B=np.concatenate([visits.epoch_B, visits.epoch_B]), row_B=np.concatenate([visits.row_B, row_B])
    )


class ImageReader:
    """Reads images by number; caches at most `cache_bytes` of encoded images."""

    def __init__(self, samples: Samples, cache_bytes: int = CACHE_BYTES) -> None:
        self.samples, self.cache_bytes = samples, cache_bytes
        self._storage = Storage(samples.folder)
        self._files: dict[int, Any] = {}
        self._groups: OrderedDict[tuple[int, int], pa.ChunkedArray] = OrderedDict()
        self._bytes = 0

    def open(self, number: int) -> Image.Image:
        """Return the image as RGB.

        Raises:
            DataError: the image cannot be decoded.
        """
        part, group, row = (int(x) for x in self.samples.address[number])
        data = self._group(part, group)[row].as_py()
        try:
            with without_pillows_limit(), Image.open(io.BytesIO(data)) as image:
                return image.convert("RGB")
        except Exception as error:  # a broken file can raise anything
            name = self.samples.image_id[number].as_py()
            where = self._storage.path("images", self.samples.parts[part])
            raise DataError(
                f"image {name!r} in {where}", f"{type(error).__name__}: {error}", "an image that decodes"
            ) from error

    def _group(self, part: int, group: int) -> pa.ChunkedArray:
        key = (part, group)
        if key in self._groups:
            self._groups.move_to_end(key)
            return self._groups[key]
        if part not in self._files:
            self._files[part] = self._storage.open_parquet("images", self.samples.parts[part])
        column = self._files[part].read_row_group(group, columns=["image"])["image"]
        self._groups[key] = column
        self._bytes += column.nbytes
        while self._bytes > self.cache_bytes and len(self._groups) > 1:
            self._bytes -= self._groups.popitem(last=False)[1].nbytes
        return column


def crop_box(
    width: int, height: int, uniform_U: NDArray[np.float64], scale_min: float
) -> tuple[int, int, int, int]:
    """Return RandomResizedCrop's rectangle (left, top, width, height), by torchvision's procedure.

    Args:
        width: width of the image in pixels.
        height: height of the image in pixels.
        uniform_U: 22 numbers in [0, 1) that determine the rectangle.
        scale_min: smallest share of the area; the largest is 1. The aspect ratio is 3/4 to 4/3.
    """
    for scale_u, ratio_u in uniform_U[: 2 * _TRIES].reshape(_TRIES, 2):
        area = width * height * (scale_min + (1.0 - scale_min) * scale_u)
        ratio = math.exp(_RATIO_LOG[0] + (_RATIO_LOG[1] - _RATIO_LOG[0]) * ratio_u)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = int(uniform_U[-2] * (height - h + 1))
            left = int(uniform_U[-1] * (width - w + 1))
            return left, top, w, h
    # Fallback: the largest centre crop with an allowed aspect ratio.
    ratio = width / height
    w = round(height * 4 / 3) if ratio > 4 / 3 else width
    h = round(width / (3 / 4)) if ratio < 3 / 4 else height
    return (width - w) // 2, (height - h) // 2, w, h
