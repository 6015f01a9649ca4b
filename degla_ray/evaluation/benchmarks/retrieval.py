"""Retrieval in both directions: recall at 1, 5 and 10, without building the full N x M matrix.

Matches are decided by text: a caption that two images share word for word is correct for both, and is one
candidate. An item is correct at k if fewer than k wrong candidates score at least as high as its best true
one, so a tie is wrong. Memory is CHUNK * max(N, M) doubles.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from degla_ray.encoding.features import FeatureTable, image_key
from degla_ray.evaluation.benchmarks.base import Scored, ScoredItems, Shown, scores_table

RANKS = (1, 5, 10)
CHUNK = 512  # queries scored at once


class Retrieval:
    """Retrieval over images and their captions.

    Subsets are `i2t_r1 … i2t_r10` (an image finds one of its captions; item_id is the image_id) and `t2i_r1 …
    t2i_r10` (a distinct caption finds one of its images; item_id is the caption).

    Args:
        name: benchmark name.
        captions: CAPTIONS rows.
        source: image source that image_id refers to; None if each image_id is an `image_key`.
    """

    protocol = "a tie is wrong; truth by text"
    averages: Mapping[str, Sequence[str]] = {}
    subsets = tuple(f"{way}_r{k}" for way in ("i2t", "t2i") for k in RANKS)

    def __init__(self, name: str, captions: pa.Table, source: str | None) -> None:
        self.name = name
        self._texts_of: dict[str, list[str]] = defaultdict(list)  # image_id -> distinct captions
        self._images_of: dict[str, list[str]] = defaultdict(list)  # caption -> image_ids
        self._key: dict[str, str] = {}
        for image_id, caption in zip(
            captions["image_id"].to_pylist(), captions["caption"].to_pylist(), strict=True
        ):
            self._key[image_id] = image_id if source is None else image_key(source, image_id)
            if caption not in self._texts_of[image_id]:
                self._texts_of[image_id].append(caption)
                self._images_of[caption].append(image_id)

    def image_keys(self) -> set[str]:
        return set(self._key.values())

    def texts(self) -> set[str]:
        return set(self._images_of)

    def chance(self, subset: str) -> float | None:
        return None

    def score(self, features: FeatureTable) -> Scored:
        """Return the table of decisions.

        `candidate_scores` is [best true, k-th best wrong], or [best true] if there are fewer than k wrong
        candidates.
        """
        images = [i for i in self._texts_of if self._key[i] in features.image_row]
        texts = [
            t
            for t, owners in self._images_of.items()
            if any(self._key[i] in features.image_row for i in owners)
        ]
        img_ND, txt_MD = features.images(self._key[i] for i in images), features.texts(texts)
        image_at = {image_id: row for row, image_id in enumerate(images)}
        text_at = {text: row for row, text in enumerate(texts)}
        true_texts = [[text_at[t] for t in self._texts_of[i]] for i in images]
        true_images = [[image_at[i] for i in self._images_of[t] if i in image_at] for t in texts]
        keys = [self._key[i] for i in images]
        shown = [keys[found[0]] for found in true_images]
        parts = [
            *self._tables("i2t", images, keys, texts, _best_scores(img_ND, txt_MD, true_texts)),
            *self._tables("t2i", texts, shown, keys, _best_scores(txt_MD, img_ND, true_images)),
        ]
        lost = {"i2t": len(self._texts_of) - len(images), "t2i": len(self._images_of) - len(texts)}
        missing: Mapping[str, int] = {subset: lost[subset[:3]] for subset in self.subsets}
        return Scored(scores=pa.concat_tables(parts), missing=missing)

    def _tables(
        self,
        way: str,
        ids: Sequence[str],
        images: Sequence[str],
        candidates: Sequence[str],
        best: tuple[np.ndarray, np.ndarray, np.ndarray],
    ) -> list[pa.Table]:
        """Return the SCORES rows of one direction, one table per rank; the first rank's name the rivals."""
        best_true_Q, best_wrong_QK, rival_Q = best
        known_Q = np.isfinite(best_wrong_QK[:, :1]).any(axis=1)
        named = [candidates[c] if known else None for c, known in zip(rival_Q, known_Q, strict=True)]
        tables = []
        for k in RANKS:
            wrong_Q = np.full(len(ids), -np.inf, dtype=np.float32)
            if k <= best_wrong_QK.shape[1]:
                wrong_Q = best_wrong_QK[:, k - 1]
            shown = [
                np.array([t, w] if np.isfinite(w) else [t], dtype=np.float32)
                for t, w in zip(best_true_Q, wrong_Q, strict=True)
            ]
            items = ScoredItems(
                subsets=[f"{way}_r{k}"] * len(ids), ids=ids, images=images, rivals=named if k == 1 else None
            )
            tables.append(scores_table(self.name, items, shown, best_true_Q > wrong_Q))
        return tables

    def shown(self) -> Iterator[Shown]:
        for image_id, texts in self._texts_of.items():
            key = self._key[image_id]
            yield Shown(subset="i2t_r1", item_id=image_id, images=(key,), texts=tuple(texts))
        for text, owners in self._images_of.items():
            keys = tuple(self._key[i] for i in owners)
            yield Shown(subset="t2i_r1", item_id=text, images=keys, texts=(text,))


def _best_scores(
    query_QD: np.ndarray, candidate_CD: np.ndarray, truth: Sequence[Sequence[int]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each query's best true score [Q], its highest wrong scores [Q, K], descending, and the row of
    the highest [Q].

    `truth[q]` contains the rows of query q's true candidates. A query with fewer than K wrong candidates has
    -inf in place of the others.
    """
    import torch  # takes seconds to import; its top-k takes half the time of numpy's partition

    candidate_CD = candidate_CD.astype(np.float64)
    best_true_Q = np.empty(len(query_QD), dtype=np.float32)
    keep = min(max(RANKS), len(candidate_CD))
    best_wrong_QK = np.empty((len(query_QD), keep), dtype=np.float32)
    rival_Q = np.empty(len(query_QD), dtype=np.int64)
    for start in range(0, len(query_QD), CHUNK):
        stop = min(start + CHUNK, len(query_QD))
        # float64, then rounded: BLAS's order of summation depends on position, but equal candidates must tie
        scores = (query_QD[start:stop].astype(np.float64) @ candidate_CD.T).astype(np.float32)
        rows = np.repeat(np.arange(stop - start), [len(t) for t in truth[start:stop]])
        columns = np.concatenate([np.asarray(t, dtype=np.int64) for t in truth[start:stop]])
        true = np.full(stop - start, -np.inf, dtype=np.float32)
        np.maximum.at(true, rows, scores[rows, columns])
        scores[rows, columns] = -np.inf
        best_true_Q[start:stop] = true
        best_wrong = torch.from_numpy(scores).topk(keep, dim=1)
        best_wrong_QK[start:stop] = best_wrong.values.numpy()
        rival_Q[start:stop] = best_wrong.indices[:, 0].numpy()
    return best_true_Q, best_wrong_QK, rival_Q
