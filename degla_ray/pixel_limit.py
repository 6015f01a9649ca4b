"""The limit on an image's pixels: ours for prepared images, Pillow's for all others.

`prepare` refuses what has more than `max_image_pixels`, so what it kept is opened without a further limit.
Files that it has not seen (a benchmark's, a request's) keep Pillow's, which refuses 179 million pixels and
more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image


@contextmanager
def without_pillows_limit() -> Iterator[None]:
    """Lift Pillow's limit for opening and for cropping; process-wide, so for one thread at a time."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit
