"""Building a worker's batch from row numbers: fetch by address, decode, crop, tokenise. Does not import Ray.

Images are passed on as uint8 and converted to float by the trainer, which transfers a quarter of the bytes.
Each image is read exactly (`image_files.py`), and a large JPEG is decoded at the size that is needed.

Shape suffixes: B a worker's rows, H W pixels, C channels, L tokens, K negatives.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from degla_ray.errors import DataError
from degla_ray.loader.image_files import CacheSpec, ImageFiles
from degla_ray.loader.order import BatchOrder, Visits, draw_negatives, uniforms
from degla_ray.loader.samples import Samples
from degla_ray.pixel_limit import without_pillows_limit

Box = tuple[int, int, int, int]
"""(left, top, width, height) in pixels."""
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
        cache: local copies of remote parts.
    """

    order: BatchOrder
    rank: int
    world_size: int
    negatives: int
    size: tuple[int, int]
    interpolation: str
    crop_scale_min: float
    tokenizer: Callable[[list[str]], Any]
    cache: CacheSpec


class BatchReader:
    """A reader of the local batch of any step."""

    def __init__(self, samples: Samples, spec: BatchSpec) -> None:
        self.samples, self.spec = samples, spec
        self._files = ImageFiles(samples, spec.cache)

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
        images_B = self.samples.image[visits.row_B]
        out_BHWC = np.empty((len(images_B), height, width, 3), dtype=np.uint8)
        for out, number, data, u in zip(out_BHWC, images_B, self._files.read(images_B), drawn, strict=True):
            try:
                out[:] = cropped(
                    data, partial(crop_box, uniform_U=u, scale_min=spec.crop_scale_min), spec.size, method
                )
            except Exception as error:  # decoders raise whatever a broken file leads them to
                raise DataError(
                    self._files.describe(int(number)),
                    f"{type(error).__name__}: {error}",
                    "an image that decodes",
                ) from error
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
    """Append to the visits one for each: a random caption of a random neighbour of its image."""
    which_B, caption_B = uniforms(seed, "neighbour", visits, 2).T
    neighbours_BM = samples.neighbour[samples.image[visits.row_B]]
    image_B = neighbours_BM[np.arange(len(which_B)), (which_B * neighbours_BM.shape[1]).astype(np.int64)]
    first_B, end_B = samples.first_row[image_B], samples.first_row[image_B + 1]
    row_B = samples.row_of[first_B + (caption_B * (end_B - first_B)).astype(np.int64)]
    return Visits(
        epoch_B=np.concatenate([visits.epoch_B, visits.epoch_B]), row_B=np.concatenate([visits.row_B, row_B])
    )


def cropped(
    data: bytes,
    box_of: Callable[[int, int], Box],
    size: tuple[int, int],
    interpolation: int,
) -> Image.Image:
    """Return an encoded image as RGB, cropped and resized.

    A JPEG that is at least twice as large as needed is decoded at a half, quarter or eighth of its size, by
    an inverse DCT of fewer coefficients. Against a full decode, pixels of 20 photographs of 780
    to 1,282 pixels, reduced to 224, differ by 0.7 of 255 on average.

    Args:
        data: an image file's bytes.
        box_of: (width, height) of the image -> (left, top, width, height) of the crop, in pixels.
        size: (height, width) of the result.
        interpolation: PIL's resampling filter.

    Raises:
        Exception: whatever a broken file leads the decoder to.
    """
    height, width = size
    with without_pillows_limit(), Image.open(io.BytesIO(data)) as image:
        full_width, full_height = image.size
        left, top, w, h = box_of(full_width, full_height)
        shrink = max(1.0, min(w / width, h / height))
        image.draft("RGB", (int(full_width / shrink), int(full_height / shrink)))
        decoded = image.convert("RGB")
        x, y = decoded.width / full_width, decoded.height / full_height
        box = (left * x, top * y, (left + w) * x, (top + h) * y)  # not rounded: half a pixel would show
        return decoded.resize((width, height), interpolation, box=box)


def crop_box(width: int, height: int, uniform_U: NDArray[np.float64], scale_min: float) -> Box:
    """Return RandomResizedCrop's rectangle (left, top, width, height), by torchvision's procedure.

    Args:
        width: width of the image in pixels.
        height: height of the image in pixels.
        uniform_U: 22 numbers in [0, 1) that determine the rectangle.
        scale_min: smallest share of the area; the largest is 1. The aspect ratio is between 3/4 and 4/3.
    """
    for scale_u, ratio_u in uniform_U[: 2 * _TRIES].reshape(_TRIES, 2):
        area = width * height * (scale_min + (1.0 - scale_min) * scale_u)
        ratio = math.exp(_RATIO_LOG[0] + (_RATIO_LOG[1] - _RATIO_LOG[0]) * ratio_u)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = int(uniform_U[-2] * (height - h + 1))
            left = int(uniform_U[-1] * (width - w + 1))
            return left, top, w, h
    # fallback: a centre crop, as large as the bounds of the ratio allow
    ratio = width / height
    w = round(height * 4 / 3) if ratio > 4 / 3 else width
    h = round(width / (3 / 4)) if ratio < 3 / 4 else height
    return (width - w) // 2, (height - h) // 2, w, h
