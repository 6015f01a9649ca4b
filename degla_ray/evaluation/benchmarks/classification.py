"""Zero-shot classification: each class is the average of its templates' embeddings.

Each prompt's embedding is normalised (by the encoder), averaged over the templates and normalised again. The
predicted class is the one with the highest similarity, the first of them on a tie. `top1` and `top5` are
means over all items; `mean_per_class` is the mean over classes of each class's top-1 accuracy.

For `top1` all class scores are stored: 200 MB for ImageNet's 50,000 items of 1,000 classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from degla_ray.encoding.features import FeatureTable, image_key
from degla_ray.errors import DataError
from degla_ray.evaluation.benchmarks.base import Scored, ScoredItems, Shown, scores_table

TOP1, TOP5, MEAN_PER_CLASS = "top1", "top5", "mean_per_class"
CHUNK = 4096  # images scored at once

Scores = Literal["standard", "int_logits"]
"""`standard`: cosine similarities. `int_logits`: 100 times these, truncated to integers, which causes
ties."""


@dataclass(frozen=True, kw_only=True)
class ClassPrompts:
    """Texts that stand for the classes.

    Attributes:
        classes: class names in the order of the labels.
        templates: prompts with `{}` in place of the class name.
        unique_names: whether two classes of the same name are an error; if not, the first of them wins ties.
    """

    classes: Sequence[str]
    templates: Sequence[str]
    unique_names: bool = True

    def of_class(self, name: str) -> list[str]:
        """Return the prompts of a class."""
        return [template.replace("{}", name) for template in self.templates]


@dataclass(frozen=True, kw_only=True)
class ClassProtocol:
    """How a classification benchmark is scored and reported.

    Attributes:
        metrics: subsets to report. TOP5 is omitted for 5 classes or fewer, because it would always be
            correct.
        scores: which scores are stored and decided on.
        note: details to append.
    """

    metrics: Sequence[str] = (TOP1,)
    scores: Scores = "standard"
    note: str = ""


class Classification:
    """One classification benchmark.

    Args:
        name: benchmark name.
        items: CLASS_ITEMS rows of this benchmark only.
        prompts: texts of the classes.
        source: image source that the items' image_id refers to.
        where: file that the classes came from, for error messages.
        protocol: how it is scored and reported.

    Raises:
        DataError: fewer than two classes, a duplicate class, a template without `{}`, a label out of range,
            or a duplicate item.
    """

    averages: Mapping[str, Sequence[str]] = {}

    def __init__(
        self,
        name: str,
        items: pa.Table,
        prompts: ClassPrompts,
        source: str,
        where: str = "classes.json",
        protocol: ClassProtocol = ClassProtocol(),
    ) -> None:
        self.name, self._prompts = name, prompts
        self._classes = list(prompts.classes)
        self.subsets = tuple(m for m in protocol.metrics if m != TOP5 or len(self._classes) > 5)
        self.protocol: str = f"{protocol.scores}; {protocol.note}" if protocol.note else protocol.scores
        self._scores = protocol.scores
        columns = items.to_pydict()
        self._item_id: list[str] = columns["item_id"]
        self._label: list[int] = columns["label"]
        self._key = [image_key(source, image_id) for image_id in columns["image_id"]]
        self._validate(where)

    def _validate(self, where: str) -> None:
        here = f"{where}, {self.name}"
        repeated = len(set(self._classes)) != len(self._classes)
        if len(self._classes) < 2 or (self._prompts.unique_names and repeated):
            raise DataError(here, f"classes {self._classes!r}", "at least two, each once")
        templates = list(self._prompts.templates)
        if not templates or any("{}" not in template for template in templates):
            raise DataError(here, f"templates {templates!r}", "at least one, each with {} for the class")
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

    def image_keys(self) -> set[str]:
        return set(self._key)

    def texts(self) -> set[str]:
        return {prompt for name in self._classes for prompt in self._prompts.of_class(name)}

    def chance(self, subset: str) -> float | None:
        return (5 if subset == TOP5 else 1) / len(self._classes)

    def score(self, features: FeatureTable) -> Scored:
        """Return the decisions of every subset.

        `candidate_scores` contains, for `top1`, the score of every class in the order of the labels; for
        `top5`, [true, 5th best wrong]; for `mean_per_class`, [true, best wrong]. Of two equal scores, that of
        the lower label ranks higher. A pair does not show this; `correct` does.
        """
        scored = [i for i, key in enumerate(self._key) if key in features.image_row]
        ids = [self._item_id[i] for i in scored]
        label_N = np.array([self._label[i] for i in scored], dtype=np.int64)
        class_CD = self._class_features(features)
        ranks = {subset: 5 if subset == TOP5 else 1 for subset in self.subsets}
        parts: dict[str, list[np.ndarray]] = {subset: [] for subset in self.subsets}
        better_N = np.zeros(len(scored), dtype=np.int64)  # classes that beat the true one
        rivals: list[str | None] = []
        for start in range(0, len(scored), CHUNK):
            chunk = slice(start, start + CHUNK)
            label_N1 = label_N[chunk, None]
            scores_NC = self._class_scores(features.images(self._key[i] for i in scored[chunk]), class_CD)
            true_N1 = np.take_along_axis(scores_NC, label_N1, axis=1)
            tied_before_NC = (scores_NC == true_N1) & (np.arange(len(class_CD)) < label_N1)
            better_N[chunk] = ((scores_NC > true_N1) | tied_before_NC).sum(axis=1)
            wrong_NC = scores_NC.copy()
            np.put_along_axis(wrong_NC, label_N1, -np.inf, axis=1)
            rivals += [self._classes[c] for c in wrong_NC.argmax(axis=1)]
            for subset, rank in ranks.items():
                rival_N1 = np.partition(wrong_NC, -rank, axis=1)[:, [-rank]]
                parts[subset].extend(scores_NC if subset == TOP1 else np.hstack([true_N1, rival_N1]))
        images = [self._key[i] for i in scored]
        classes = [str(label) for label in label_N]
        tables = [
            scores_table(
                self.name,
                ScoredItems(
                    subsets=[subset] * len(ids),
                    ids=ids,
                    images=images,
                    groups=classes if subset == MEAN_PER_CLASS else None,
                    rivals=rivals if rank == 1 else None,
                ),
                parts[subset],
                better_N < rank,
            )
            for subset, rank in ranks.items()
        ]
        missing = dict.fromkeys(self.subsets, len(self._key) - len(scored))
        return Scored(scores=pa.concat_tables(tables), missing=missing)

    def _class_features(self, features: FeatureTable) -> np.ndarray:
        """Return the normalised class embeddings, float64 [C, D]."""
        mean_CD = np.stack(
            [
                features.texts(self._prompts.of_class(name)).mean(axis=0, dtype=np.float64)
                for name in self._classes
            ]
        )
        return mean_CD / np.linalg.norm(mean_CD, axis=1, keepdims=True)

    def _class_scores(self, img_ND: np.ndarray, class_CD: np.ndarray) -> np.ndarray:
        """Return each image's score for every class, float32 [N, C]."""
        scores_NC = (img_ND.astype(np.float64) @ class_CD.T).astype(np.float32)
        if self._scores == "int_logits":
            return np.trunc(np.float32(100) * scores_NC) + np.float32(0)  # + 0 removes negative zeros
        return scores_NC

    def shown(self) -> Iterator[Shown]:
        for item_id, key, label in zip(self._item_id, self._key, self._label, strict=True):
            yield Shown(subset=self.subsets[0], item_id=item_id, images=(key,), texts=(self._classes[label],))
