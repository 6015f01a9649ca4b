"""Bounds on image files from anywhere: the formats opened, the bytes read and the pixels decoded.

`prepare` refuses images with more than `max_image_pixels`, so Pillow's own limit is lifted to MAX_PIXELS for
prepared images. Other images (of a benchmark, of a request) keep Pillow's, which refuses 179 million pixels
and more. Settings import this file, so Pillow is imported where it is used.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

# Only formats that Pillow decodes itself: EPS, for example, would run Ghostscript on an untrusted file.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
MAX_FILE_BYTES = 2**30
"""Bytes of an image file. Pillow's limit on pixels has 0.5 GB as uncompressed RGB."""
MAX_PIXELS = 2**30
"""Pixels of a prepared image, 3 GiB as RGB; the largest `max_image_pixels`."""


def open_image(data: bytes | bytearray) -> Image.Image:
    """Return an image that is not decoded yet.

    Raises:
        PIL.UnidentifiedImageError: none of FORMATS.
        PIL.Image.DecompressionBombError: more pixels than the limit.
    """
    from PIL import Image

    return Image.open(io.BytesIO(data), formats=_available())


def check_file_bytes(size: int) -> None:
    """Raise OSError if an image file of `size` bytes is too large to be read."""
    if size > MAX_FILE_BYTES:
        raise OSError(f"an image file of {size} bytes; expected at most {MAX_FILE_BYTES}")


@contextmanager
def without_pillows_limit() -> Iterator[None]:
    """Raise Pillow's limit to MAX_PIXELS within a `with` block.

    It holds for the whole process: use it in one thread at a time.
    """
    from PIL import Image

    # Pillow warns above its limit and refuses above twice the limit.
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MAX_PIXELS
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


@functools.cache
def _available() -> tuple[str, ...]:
    """Return those of FORMATS that this Pillow was built with."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)
