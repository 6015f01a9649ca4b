"""Resize and crop images for evaluation as open_clip's transform does, up to its uint8 pixels.

Pillow alone does it, so the tasks that decode import neither torch nor open_clip (5 s and 400 MB each). The
rest of the transform (division by 255, mean and std) runs where the pixels are encoded, which makes a batch a
quarter of the bytes on its way there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps


def resized(image: Image.Image, preprocess_cfg: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Return the pixels that open_clip's transform for evaluation would normalise: uint8 [H, W, 3].

    Args:
        image: an image in any of Pillow's modes.
        preprocess_cfg: open_clip's preprocess config; see `LoadedModel`.
    """
    height, width = _pair(preprocess_cfg["size"])
    method = Image.Resampling[preprocess_cfg["interpolation"].upper()]
    mode = preprocess_cfg["resize_mode"]
    if mode == "squash":
        image = _resize(image, width, height, method)
    elif mode == "longest":
        image = _keep_ratio(image, max(image.width / width, image.height / height), method)
        image = _center(image, width, height, int(preprocess_cfg.get("fill_color", 0)))
    elif height == width:
        image = _center(_shortest(image, height, method), width, height, 0)
    else:  # here open_clip resizes bicubically, whatever the config says
        ratio = min(image.width / width, image.height / height)
        image = _center(_keep_ratio(image, ratio, Image.Resampling.BICUBIC), width, height, 0)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _pair(size: Any) -> tuple[int, int]:
    return (int(size), int(size)) if isinstance(size, int | float) else (int(size[0]), int(size[1]))


def _resize(image: Image.Image, width: int, height: int, method: Image.Resampling) -> Image.Image:
    return image if image.size == (width, height) else image.resize((width, height), method)


def _shortest(image: Image.Image, size: int, method: Image.Resampling) -> Image.Image:
    """Resize the shortest edge; the longer one is rounded down, as torchvision does."""
    if image.width <= image.height:
        return _resize(image, size, int(size * image.height / image.width), method)
    return _resize(image, int(size * image.width / image.height), size, method)


def _keep_ratio(image: Image.Image, ratio: float, method: Image.Resampling) -> Image.Image:
    """Divide both edges by `ratio`, rounded to the nearest pixel, as timm does."""
    return _resize(image, round(image.width / ratio), round(image.height / ratio), method)


def _center(image: Image.Image, width: int, height: int, fill: int) -> Image.Image:
    """Return the central `width` x `height` pixels, after padding the edges that are shorter."""
    across, down = max(0, width - image.width), max(0, height - image.height)
    if across or down:
        border = (across // 2, down // 2, (across + 1) // 2, (down + 1) // 2)
        bands = len(image.getbands())
        palette = image.getpalette() if image.mode == "P" else None
        image = ImageOps.expand(image, border, fill if bands == 1 else (fill,) * bands)
        if palette is not None:
            image.putpalette(palette)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))
