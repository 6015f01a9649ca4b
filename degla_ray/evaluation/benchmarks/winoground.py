"""Winoground, and test sets in its format: two captions of the same words and two images.

Source: Thrush et al. 2022. The dataset is gated; `winoground/examples.jsonl` is its original file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from degla_ray.encoding.features import FeatureTable, image_key
from degla_ray.evaluation.benchmarks.annotations import read_lines
from degla_ray.evaluation.benchmarks.base import Scored, ScoredItems, Shown, dot_NK, scores_table
from degla_ray.storage import Storage

WINOGROUND = "winoground"
CHANCE = {"text": 1 / 4, "image": 1 / 4, "group": 1 / 6}


class Winoground:
    """One benchmark of two captions and two images per item, scored strictly (a tie is wrong).

    Subset `text`: each image is closer to its own caption; `image`: each caption is closer to its own image;
    `group`: both.

    Args:
        name: benchmark name.
        items: two images and two texts each, in the same order; each item_id once.
    """

    protocol = "strict"
    averages: Mapping[str, Sequence[str]] = {}
    subsets = tuple(CHANCE)

    def __init__(self, name: str, items: Sequence[Shown]) -> None:
        self.name, self._items = name, list(items)

    def image_keys(self) -> set[str]:
        return {key for item in self._items for key in item.images}

    def texts(self) -> set[str]:
        return {text for item in self._items for text in item.texts}

    def chance(self, subset: str) -> float | None:
        return CHANCE[subset]

    def score(self, features: FeatureTable) -> Scored:
        """Return the table of decisions.

        `candidate_scores` is the similarity of caption 0 with image 0, caption 1 with image 0, caption 0 with
        image 1, and caption 1 with image 1.
        """
        scored = [item for item in self._items if all(key in features.image_row for key in item.images)]
        rows = np.zeros((len(scored), 4), dtype=np.float32)
        for row_4, item in zip(rows, scored, strict=True):
            txt_22D = np.stack([features.texts(item.texts)] * 2)
            row_4[:] = dot_NK(features.images(item.images), txt_22D).reshape(4)
        c0_i0, c1_i0, c0_i1, c1_i1 = rows.T
        text = (c0_i0 > c1_i0) & (c1_i1 > c0_i1)
        image = (c0_i0 > c0_i1) & (c1_i1 > c1_i0)
        correct = np.concatenate([text, image, text & image])
        items = ScoredItems(
            subsets=[subset for subset in self.subsets for _ in scored],
            ids=[item.item_id for item in scored] * len(self.subsets),
            images=[item.images[0] for item in scored] * len(self.subsets),
        )
        return Scored(
            scores=scores_table(self.name, items, np.tile(rows, (len(self.subsets), 1)), correct),
            missing=dict.fromkeys(self.subsets, len(self._items) - len(scored)),
        )

    def shown(self) -> Iterator[Shown]:
        yield from self._items


def load_winoground(annotations: Storage) -> Winoground:
    """Load Winoground from `winoground/examples.jsonl`; its images are `NAME.png`.

    Raises:
        DataError: the file is missing or broken.
    """
    fields = {"id": int, "image_0": str, "image_1": str, "caption_0": str, "caption_1": str}
    items = []
    for item_id, item in read_lines(annotations, WINOGROUND, "examples.jsonl", fields=fields, id_field="id"):
        images = tuple(image_key(WINOGROUND, f"{item[name]}.png") for name in ("image_0", "image_1"))
        texts = (item["caption_0"], item["caption_1"])
        items.append(Shown(subset="group", item_id=item_id, images=images, texts=texts))
    return Winoground(WINOGROUND, items)
