"""Choice of an image's true caption against foils: the format of SugarCrepe, VALSE and ARO.

Items come from a CHOICE_ITEMS table whose first text is the true one; items of one benchmark may have
different numbers of foils.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from degla_ray.encoding.features import FeatureTable, image_key
from degla_ray.encoding.images import unboxed
from degla_ray.errors import DataError
from degla_ray.evaluation.benchmarks.base import (
    Rule,
    Scored,
    ScoredItems,
    Shown,
    decide,
    dot_NK,
    scores_table,
)

RULE_IN_WORDS = {Rule.STRICT: "strict", Rule.FIRST_ARGMAX: "first of the best"}
CHUNK = 4096  # items scored at once; limits the float64 product to CHUNK * K * D * 8 bytes


@dataclass(frozen=True, kw_only=True)
class ChoiceProtocol:
    """How a choice benchmark decides and averages.

    Attributes:
        rule: how ties are decided.
        subsets: subsets to report even if empty; None means those that occur, in order of appearance.
        averages: published averages: name -> subsets.
        groups: for a subset whose accuracy is a mean over groups: subset -> group of each item, in order.
        note: details to append to the rule.
    """

    rule: Rule
    subsets: Sequence[str] | None = None
    averages: Mapping[str, Sequence[str]] = field(default_factory=dict)
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    note: str = ""

    def in_words(self) -> str:
        """Return the rule and its details."""
        return f"{RULE_IN_WORDS[self.rule]}; {self.note}" if self.note else RULE_IN_WORDS[self.rule]


class Choice:
    """One choice benchmark.

    Args:
        name: benchmark name.
        items: CHOICE_ITEMS rows of this benchmark only.
        protocol: how it decides and averages.
        source: image source that the items' image_id refers to; None if each image_id is an `image_key`.
        where: file that the items came from, for error messages.

    Raises:
        DataError: an item without a foil, with a null, or with the (subset, item_id) of another item.
    """

    def __init__(
        self,
        name: str,
        items: pa.Table,
        protocol: ChoiceProtocol,
        source: str | None = None,
        where: str = "choices",
    ) -> None:
        self.name, self.rule = name, protocol.rule
        self.averages = dict(protocol.averages)
        self.protocol = protocol.in_words()
        columns = items.to_pydict()
        self._subset: list[str] = columns["subset"]
        self._item_id: list[str] = columns["item_id"]
        self._texts: list[list[str]] = columns["texts"]
        ids = columns["image_id"]
        self._key: list[str] = ids if source is None else [image_key(source, image_id) for image_id in ids]
        subsets = dict.fromkeys(self._subset) if protocol.subsets is None else protocol.subsets
        self.subsets = tuple(subsets)
        self._validate(where, columns["image_id"])
        names_of = {subset: iter(names) for subset, names in protocol.groups.items()}
        self._group = [next(names_of[s]) if s in names_of else None for s in self._subset]

    def _validate(self, where: str, image_ids: list[str | None]) -> None:
        seen: set[tuple[str, str]] = set()
        for subset, item_id, image_id, texts in zip(
            self._subset, self._item_id, image_ids, self._texts, strict=True
        ):
            row = f"{where}, {self.name}/{subset}, item {item_id!r}"
            if not subset or not item_id or not image_id:
                raise DataError(row, "an empty subset, item_id or image_id", "all three")
            if texts is None or len(texts) < 2 or any(not text for text in texts):
                raise DataError(row, f"texts {texts!r}", "the true caption and at least one foil, none empty")
            if (subset, item_id) in seen:
                raise DataError(row, "the same item twice", "each item_id once in a subset")
            seen.add((subset, item_id))

    def image_keys(self) -> set[str]:
        return set(self._key)

    def texts(self) -> set[str]:
        return {text for texts in self._texts for text in texts}

    def chance(self, subset: str) -> float | None:
        odds = [1 / len(t) for s, t in zip(self._subset, self._texts, strict=True) if s == subset]
        return sum(odds) / len(odds) if odds else None

    def score(self, features: FeatureTable) -> Scored:
        """Return the table of decisions; `candidate_scores` is the similarity of each text, the true one
        first."""
        scored = [i for i, key in enumerate(self._key) if key in features.image_row]
        missing = Counter(self._subset[i] for i, key in enumerate(self._key) if key not in features.image_row)
        rows: dict[int, np.ndarray] = {}
        correct: dict[int, bool] = {}
        for count in sorted({len(self._texts[i]) for i in scored}):
            same = [i for i in scored if len(self._texts[i]) == count]
            for start in range(0, len(same), CHUNK):
                chunk = same[start : start + CHUNK]
                txt = features.texts(text for i in chunk for text in self._texts[i])
                txt_NKD = txt.reshape(len(chunk), count, -1)
                scores_NK = dot_NK(features.images(self._key[i] for i in chunk), txt_NKD)
                rows.update(zip(chunk, scores_NK, strict=True))
                correct.update(zip(chunk, decide(scores_NK, self.rule).tolist(), strict=True))
        table = scores_table(
            self.name,
            ScoredItems(
                subsets=[self._subset[i] for i in scored],
                ids=[self._item_id[i] for i in scored],
                images=[unboxed(self._key[i]) for i in scored],
                groups=[self._group[i] for i in scored],
            ),
            [rows[i] for i in scored],
            np.array([correct[i] for i in scored], dtype=bool),
        )
        return Scored(scores=table, missing=missing)

    def shown(self) -> Iterator[Shown]:
        for i, key in enumerate(self._key):
            subset, texts = self._subset[i], tuple(self._texts[i])
            yield Shown(subset=subset, item_id=self._item_id[i], images=(key,), texts=texts)
