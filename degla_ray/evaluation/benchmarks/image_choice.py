"""Choice of the image that a text describes against other images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from degla_ray.encoding.features import FeatureTable
from degla_ray.evaluation.benchmarks.base import (
    Rule,
    Scored,
    ScoredItems,
    Shown,
    decide,
    dot_NK,
    scores_table,
)
from degla_ray.evaluation.benchmarks.choice import RULE_IN_WORDS


class ImageChoice:
    """One benchmark that chooses among images.

    Args:
        name: benchmark name.
        items: one text and at least two images each, the true one first; each item_id once per subset.
        rule: how ties are decided.
        image: maps an item to the image key that statistics group it by, for items that show nearly the
            same images; None takes the true image.
    """

    averages: Mapping[str, Sequence[str]] = {}

    def __init__(
        self, name: str, items: Sequence[Shown], rule: Rule, image: Callable[[Shown], str] | None = None
    ) -> None:
        self.name, self.rule, self._items = name, rule, list(items)
        self._image = image or (lambda item: item.images[0])
        self.protocol = RULE_IN_WORDS[rule]
        self.subsets = tuple(dict.fromkeys(item.subset for item in items))

    def image_keys(self) -> set[str]:
        return {key for item in self._items for key in item.images}

    def texts(self) -> set[str]:
        return {item.texts[0] for item in self._items}

    def chance(self, subset: str) -> float | None:
        odds = [1 / len(item.images) for item in self._items if item.subset == subset]
        return sum(odds) / len(odds) if odds else None

    def score(self, features: FeatureTable) -> Scored:
        """Return the table of decisions; `candidate_scores` is the similarity of each image, the true one
        first."""
        scored = [item for item in self._items if all(key in features.image_row for key in item.images)]
        missing = Counter(item.subset for item in self._items)
        missing.subtract(item.subset for item in scored)
        rows = [dot_NK(features.texts(item.texts), features.images(item.images)[None])[0] for item in scored]
        correct = np.array([decide(row_K[None], self.rule)[0] for row_K in rows], dtype=bool)
        items = ScoredItems(
            subsets=[item.subset for item in scored],
            ids=[item.item_id for item in scored],
            images=[self._image(item) for item in scored],
        )
        return Scored(scores=scores_table(self.name, items, rows, correct), missing=missing)

    def shown(self) -> Iterator[Shown]:
        yield from self._items
