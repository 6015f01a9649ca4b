"""Zero-shot classification: each class is the average of its templates' embeddings.

Normalise each prompt's embedding (the encoder has), average over templates, normalise again; the class
with the greatest similarity is the answer, the first of them on a tie. Top-1 over all items.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from degla_ray.errors import DataError
from degla_ray.evaluation.benchmarks.base import Features, Scored, Shown, image_key, scores_table

TOP1 = "top1"
CHUNK = 4096  # pictures scored at once


class Classification:
    """One classification benchmark.

    Args:
        name: benchmark name.
        items: CLASS_ITEMS rows of this benchmark only.
        classes: class names in the order of the labels.
        templates: prompts with `{}` where the class name goes.
        source: image folder that the items' image_id refers to.
        where: file that the classes came from, for error messages.

    Raises:
        DataError: no classes, a class twice, a template without `{}`, a label out of range, an item twice.
    """

    def __init__(
        self,
        name: str,
        items: pa.Table,
        classes: Sequence[str],
        templates: Sequence[str],
        source: str,
        where: str = "classes.json",
    ) -> None:
        self.name, self.subsets = name, (TOP1,)
        self._classes, self._templates = list(classes), list(templates)
        columns = items.to_pydict()
        self._item_id: list[str] = columns["item_id"]
        self._label: list[int] = columns["label"]
        self._key = [image_key(source, image_id) for image_id in columns["image_id"]]
        self._validate(where)

    def _validate(self, where: str) -> None:
        here = f"{where}, {self.name}"
        if len(self._classes) < 2 or len(set(self._classes)) != len(self._classes):
            raise DataError(here, f"classes {self._classes!r}", "at least two, each once")
        if not self._templates or any("{}" not in template for template in self._templates):
            raise DataError(
                here, f"templates {self._templates!r}", "at least one, each with {} for the class"
            )
        wrong = [
            (i, x)
            for i, x in zip(self._item_id, self._label, strict=True)
            if x is None or not 0 <= x < len(self._classes)
        ]
        if wrong:
            raise DataError(
                here, f"label {wrong[0][1]} of item {wrong[0][0]!r}", f"0 to {len(self._classes) - 1}"
            )
        if len(set(self._item_id)) != len(self._item_id):
            raise DataError(here, "an item_id twice", "each item_id once")

    def _prompts(self, name: str) -> list[str]:
        return [template.replace("{}", name) for template in self._templates]

    protocol = "standard"
    averages: Mapping[str, Sequence[str]] = {}

    def image_keys(self) -> set[str]:
        return set(self._key)

    def texts(self) -> set[str]:
        return {prompt for name in self._classes for prompt in self._prompts(name)}

    def chance(self, subset: str) -> float | None:
        return 1 / len(self._classes)

    def score(self, features: Features) -> Scored:
        """candidate_scores: similarity with every class, in the order of the labels."""
        mean_CD = np.stack(
            [features.texts(self._prompts(name)).mean(axis=0, dtype=np.float64) for name in self._classes]
        )
        class_CD = mean_CD / np.linalg.norm(mean_CD, axis=1, keepdims=True)
        scored = [i for i, key in enumerate(self._key) if key in features.image_row]
        rows: list[np.ndarray] = []
        for start in range(0, len(scored), CHUNK):
            img_ND = features.images(self._key[i] for i in scored[start : start + CHUNK])
            rows.extend((img_ND.astype(np.float64) @ class_CD.T).astype(np.float32))
        label = np.array([self._label[i] for i in scored], dtype=np.int64)
        answer = np.array([row.argmax() for row in rows], dtype=np.int64)
        table = scores_table(
            self.name, [TOP1] * len(scored), [self._item_id[i] for i in scored], rows, answer == label
        )
        return Scored(scores=table, missing={TOP1: len(self._key) - len(scored)})

    def shown(self) -> Iterator[Shown]:
        for item_id, key, label in zip(self._item_id, self._key, self._label, strict=True):
            yield Shown(subset=TOP1, item_id=item_id, images=(key,), texts=(self._classes[label],))
