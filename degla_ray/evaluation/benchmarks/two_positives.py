"""Two captions of the same meaning against a third of another meaning: the format of SugarCrepe++."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from degla_ray.encoding.features import FeatureTable
from degla_ray.evaluation.benchmarks.base import Scored, ScoredItems, Shown, dot_NK, scores_table

ITT, TOT = "itt", "tot"


class TwoPositives:
    """One benchmark that scores every item twice, both times strictly (a tie is wrong).

    Subsets `SUBSET_itt`: both positives are closer to the image than the negative is. Subsets `SUBSET_tot`
    use the texts alone, even if the image is missing: the positives are closer to each other than either is
    to the negative.

    Args:
        name: benchmark name; its averages are NAME_itt and NAME_tot.
        items: one image and three texts each, the negative last; each item_id once per subset.
    """

    protocol = "strict"

    def __init__(self, name: str, items: Sequence[Shown]) -> None:
        self.name, self._items = name, list(items)
        kinds = list(dict.fromkeys(item.subset for item in items))
        self.averages = {f"{name}_{task}": tuple(f"{kind}_{task}" for kind in kinds) for task in (ITT, TOT)}
        self.subsets = tuple(subset for of in self.averages.values() for subset in of)

    def image_keys(self) -> set[str]:
        return {item.images[0] for item in self._items}

    def texts(self) -> set[str]:
        return {text for item in self._items for text in item.texts}

    def chance(self, subset: str) -> float | None:
        return 1 / 3  # a given one of three numbers must be the lowest (itt) or the highest (tot)

    def score(self, features: FeatureTable) -> Scored:
        """Return the table of decisions.

        `candidate_scores` is, for itt, the similarity of the image with caption, second caption and negative;
        for tot, that of caption and second caption, caption and negative, second caption and negative.
        """
        rows: list[tuple[str, str, str, np.ndarray, bool]] = []
        missing: Counter[str] = Counter()
        for item in self._items:
            subset, txt_3D = f"{item.subset}_{ITT}", features.texts(item.texts)
            if item.images[0] in features.image_row:
                itt_3 = dot_NK(features.images(item.images), txt_3D[None])[0]
                rows.append((subset, item.item_id, item.images[0], itt_3, bool(itt_3[:2].min() > itt_3[2])))
            else:
                missing[subset] += 1
            tot_3 = dot_NK(txt_3D[[0, 0, 1]], txt_3D[[1, 2, 2], None])[:, 0]
            right = bool(tot_3[0] > tot_3[1:].max())
            rows.append((f"{item.subset}_{TOT}", item.item_id, item.images[0], tot_3, right))
        subsets, ids, images, scores, correct = zip(*rows, strict=True) if rows else ((), (), (), (), ())
        items = ScoredItems(subsets=subsets, ids=ids, images=images)
        return Scored(scores=scores_table(self.name, items, scores, np.array(correct)), missing=missing)

    def shown(self) -> Iterator[Shown]:
        for item in self._items:
            yield dataclasses.replace(item, subset=f"{item.subset}_{ITT}")
