"""Lift Pillow's limit on an image's pixels for images that `prepare` has already checked.

`prepare` refuses images with more than `max_image_pixels`, so prepared images need no second limit. Other
images (of a benchmark, of a request) keep Pillow's, which refuses 179 million pixels and more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image


@contextmanager
def without_pillows_limit() -> Iterator[None]:
    """Lift Pillow's limit within a `with` block, for the whole process: use it in one thread at a time."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit
