"""FeatureTable of distinct images and texts, by the names that those who need them use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np


def image_key(source: str, image_id: str) -> str:
    """Name of an image over all of a call's image sources, whose ids may collide."""
    return f"{source}:{image_id}"


@dataclass(frozen=True, kw_only=True)
class FeatureTable:
    """L2-normalised float32 features of a call's distinct images and texts."""

    img_ND: np.ndarray
    """One row an image that could be read."""
    txt_MD: np.ndarray
    """One row a distinct text."""
    image_row: Mapping[str, int]
    """`image_key` -> row of img_ND; an image that could not be read is not in it."""
    text_row: Mapping[str, int]
    """Text -> row of txt_MD."""

    def images(self, keys: Iterable[str]) -> np.ndarray:
        return self.img_ND[[self.image_row[key] for key in keys]]

    def texts(self, texts: Iterable[str]) -> np.ndarray:
        return self.txt_MD[[self.text_row[text] for text in texts]]
