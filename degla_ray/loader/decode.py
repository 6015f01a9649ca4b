"""A worker's batch from row numbers: read by address, decode, crop, pack the texts. No Ray, no torch.

Images are passed on as uint8 and converted to float by the trainer, which transfers a quarter of the bytes.
Each image is read exactly (`image_files.py`), and a large JPEG is decoded at the size that is needed.

Shape suffixes: B a worker's rows, b those of a micro-batch, H W pixels, C channels, L tokens, K negatives, X
texts of a micro-batch: b captions, then b * K negatives.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from degla_ray.errors import DataError
from degla_ray.loader.image_files import CacheSpec, ImageFiles
from degla_ray.loader.order import BatchOrder, Visits, draw_negatives, uniforms
from degla_ray.loader.samples import Samples, Texts
from degla_ray.model.packing import PackedText, TextEnd, pack
from degla_ray.pixel_limit import open_image, without_pillows_limit

Box = tuple[int, int, int, int]
"""(left, top, width, height) in pixels."""
STEPS_AHEAD = 64
"""Steps of a decoder that are fetched ahead at most; looking up the images of one takes a millisecond."""
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
        cache: local copies of remote parts.
        micro_batch_size: rows of a micro-batch, at most; None for all of the worker's rows.
        text_end: where the model's texts end; None for a tower that takes padded texts.
        token_multiple: number of which the packed tokens of a micro-batch are a multiple.
    """

    order: BatchOrder
    rank: int
    world_size: int
    negatives: int
    size: tuple[int, int]
    interpolation: str
    crop_scale_min: float
    cache: CacheSpec
    micro_batch_size: int | None = None
    text_end: TextEnd | None = None
    token_multiple: int = 1


@dataclass(frozen=True, kw_only=True)
class HostBatch:
    """A worker's share of a global batch, as arrays.

    Attributes:
        images_BHWC: uint8.
        texts: captions and negatives of each micro-batch: PackedText, or int32 tokens_XL padded to the
            context length for a tower that takes padded texts. An absent negative is its caption, or the
            caption's first token if packed.
        mask_BK: bool; True for negatives that exist.
    """

    images_BHWC: NDArray[np.uint8]
    texts: tuple[PackedText | NDArray[np.int32], ...]
    mask_BK: NDArray[np.bool_]


class BatchReader:
    """A reader of the local batch of any step; it fetches remote images before the step that needs them."""

    def __init__(self, samples: Samples, spec: BatchSpec) -> None:
        self.samples, self.spec = samples, spec
        self._files = ImageFiles(samples, spec.cache)
        self._expected = -1  # last step whose images are fetched or on their way

    def read(self, step: int, following: range = range(0)) -> HostBatch:
        """Return the local batch of a step.

        With hard-negative images, B is twice the worker's rows: first the rows, then a neighbour of each.

        Args:
            step: number of the global batch.
            following: the steps that will be asked for next.

        Raises:
            DataError: an image cannot be decoded; the error names its image_id.
        """
        spec = self.spec
        visits = self._visits(step)
        files_B = self._files.read(self.samples.image[visits.row_B].tolist())
        self._expect(following)
        first_B = self.samples.first_negative[visits.row_B]
        count_B = self.samples.first_negative[visits.row_B + 1] - first_B
        index_BK, mask_BK = draw_negatives(spec.order.seed, visits, count_B, spec.negatives)
        count = -(-len(mask_BK) // (spec.micro_batch_size or len(mask_BK)))
        of_all = (visits.row_B, first_B[:, None] + index_BK, mask_BK)
        parts = zip(*(np.array_split(a, count) for a in of_all), strict=True)
        return HostBatch(
            images_BHWC=self._images(visits, files_B),
            texts=tuple(self._texts(row_b, negative_bK, mask_bK) for row_b, negative_bK, mask_bK in parts),
            mask_BK=mask_BK,
        )

    def _visits(self, step: int) -> Visits:
        spec = self.spec
        visits = spec.order.batch(step, spec.rank, spec.world_size)
        if self.samples.neighbour.shape[1]:
            visits = with_hard_negatives(visits, self.samples, spec.order.seed)
        return visits

    def _expect(self, following: range) -> None:
        """Start to fetch the images of the next steps, as far as there is room."""
        for step in following[:STEPS_AHEAD]:
            if step <= self._expected:
                continue
            if not self._files.expect(self.samples.image[self._visits(step).row_B].tolist()):
                break
            self._expected = step

    def _images(self, visits: Visits, files_B: list[bytes]) -> NDArray[np.uint8]:
        spec = self.spec
        height, width = spec.size
        method = Image.Resampling[spec.interpolation.upper()]
        drawn = uniforms(spec.order.seed, "crop", visits, _UNIFORMS)
        images_B = self.samples.image[visits.row_B]
        out_BHWC = np.empty((len(images_B), height, width, 3), dtype=np.uint8)
        for out, number, data, u in zip(out_BHWC, images_B, files_B, drawn, strict=True):
            box_of = partial(crop_box, uniform_U=u, scale_min=spec.crop_scale_min)
            try:
                out[:] = np.asarray(cropped(data, box_of, spec.size, method))
            except Exception as error:  # a broken file can raise anything
                found = f"{type(error).__name__}: {error}"
                raise DataError(self._files.describe(number), found, "an image that decodes") from error
        return out_BHWC

    def _texts(
        self, row_b: NDArray[np.int64], negative_bK: NDArray[np.int64], mask_bK: NDArray[np.bool_]
    ) -> PackedText | NDArray[np.int32]:
        """Return a micro-batch's captions and negatives; `negative_bK` counts all negatives of the split."""
        texts = self.samples.texts
        assert texts is not None, "the texts are tokenised before training"
        caption_bK = np.broadcast_to(row_b[:, None], negative_bK.shape)
        which_bK = np.where(mask_bK, len(self.samples) + negative_bK, caption_bK)
        chosen = texts.take(np.concatenate([row_b, which_bK.reshape(-1)]))
        return tower_input(chosen, mask_bK, self.spec.text_end, self.spec.token_multiple)


def tower_input(
    texts: Texts, mask_bK: NDArray[np.bool_], end: TextEnd | None, token_multiple: int = 1
) -> PackedText | NDArray[np.int32]:
    """Return a micro-batch's texts as a tower takes them.

    Args:
        texts: b captions, then b * K negatives, with any text in place of an absent negative.
        mask_bK: which negatives exist; of an absent one only the first token is computed, if packed.
        end: where the model's texts end; None for a tower that takes padded texts.
        token_multiple: number of which the packed tokens are a multiple.
    """
    tokens_XL = texts.padded()
    if end is None:
        missing = texts.context - tokens_XL.shape[1]
        return np.pad(tokens_XL, ((0, 0), (0, missing)), constant_values=texts.padding)
    last_X = end.find(tokens_XL)
    last_X[len(mask_bK) :][~mask_bK.reshape(-1)] = 0
    return pack(tokens_XL, last_X, token_multiple)


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
    with without_pillows_limit(), open_image(data) as image:
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
