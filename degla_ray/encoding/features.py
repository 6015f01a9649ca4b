"""Features of distinct images and texts, looked up by image key or by text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np


def image_key(source: str, image_id: str) -> str:
    """Return an image's name, unique across image sources, whose own ids may collide."""
    return f"{source}:{image_id}"


@dataclass(frozen=True, kw_only=True)
class FeatureTable:
    """L2-normalised float32 features of the distinct images and texts of a run."""

    img_ND: np.ndarray
    """One row per image that could be read."""
    txt_MD: np.ndarray
    """One row per distinct text."""
    image_row: Mapping[str, int]
    """`image_key` -> row of img_ND; unreadable images are absent."""
    text_row: Mapping[str, int]
    """Text -> row of txt_MD."""

    def images(self, keys: Iterable[str]) -> np.ndarray:
        return self.img_ND[[self.image_row[key] for key in keys]]

    def texts(self, texts: Iterable[str]) -> np.ndarray:
        return self.txt_MD[[self.text_row[text] for text in texts]]
