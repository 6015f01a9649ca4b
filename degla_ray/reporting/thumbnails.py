"""Thumbnails for a report as data URIs, read from the image sources of the evaluations.

A thumbnail of 240 pixels adds 5 to 15 KB to a page; no image is read twice.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

from degla_ray.encoding.images import StoredImage, source_from_spec

SIZE = 240  # pixels of the longer side
BATCH = 16  # images read together
QUALITY = 80


def thumbnails(keys: Iterable[str], sources: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return `SOURCE:ID` -> data URI of a JPEG; images that can no longer be read are absent.

    Args:
        keys: keys of the images.
        sources: per evaluation, source name -> spec; the first source that can read an image is used.
    """
    missing, found = set(keys), dict[str, str]()
    for known in sources:
        wanted: dict[str, set[str]] = {}
        for key in missing - found.keys():
            name, _, image_id = key.partition(":")
            if name in known:
                wanted.setdefault(name, set()).add(image_id)
        for name, ids in wanted.items():
            for image_id, stored in _images(known[name], ids):
                uri = _data_uri(stored)
                if uri is not None:
                    found[f"{name}:{image_id}"] = uri
    return found


def _images(spec: Mapping[str, Any], ids: set[str]) -> Iterator[tuple[str, StoredImage]]:
    """Yield the images of a source that can be read; the report shows the others by their keys."""
    try:
        source = source_from_spec(spec)
        batches, _ = source.batches(ids, BATCH)
    except Exception:  # a deleted folder, a dataset of another format, a filesystem without access
        return
    for batch in batches:
        try:
            read = source.read(batch)
        except Exception:
            continue
        for image_id, stored in zip(batch.ids, read, strict=True):
            if isinstance(stored, StoredImage):
                yield image_id, stored


def _data_uri(stored: StoredImage) -> str | None:
    try:
        image = stored.open()
        image.thumbnail((SIZE, SIZE))
        file = io.BytesIO()
        image.convert("RGB").save(file, format="JPEG", quality=QUALITY)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
