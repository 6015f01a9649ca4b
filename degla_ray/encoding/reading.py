"""The CPU stage of encoding: read a batch's images, decode and resize them, or tokenise its texts.

With GPUs it runs in tasks of its own, beside the actors; without, Ray Data fuses it into them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from degla_ray.encoding.feature_cache import image_digest, text_digest
from degla_ray.encoding.images import ImageBatch, ImageSource
from degla_ray.encoding.resize import resized
from degla_ray.encoding.rows import batch_of, with_array
from degla_ray.errors import one_line

Tokenizer = Callable[..., Any]


class Reader:
    """Callable of the stage: an item of work -> a table of READ with uint8 pixels or token ids.

    Args:
        preprocess_cfg: the model's preprocessing.
        sources: source name -> where its images are stored.
        known: Ray reference to the digests of all cached features, ascending.
        tokenizer: Ray reference to the model's tokenizer.
    """

    def __init__(
        self,
        preprocess_cfg: Mapping[str, Any],
        sources: Mapping[str, ImageSource],
        known: Any,
        tokenizer: Any,
    ) -> None:
        self.preprocess_cfg, self.sources = dict(preprocess_cfg), dict(sources)
        self.known, self.tokenizer = known, tokenizer

    def __call__(self, work: pa.Table) -> pa.Table:
        row = batch_of(work)
        return self._images(row) if row["source"] else self._texts(row)

    def _texts(self, row: Mapping[str, Any]) -> pa.Table:
        tokens_BL, truncated = tokenised(_fetched(self.tokenizer), row["ids"])
        digests = [text_digest(text) for text in row["ids"]]
        return with_array(_row(row, ids=row["ids"], digests=digests, truncated=truncated), tokens_BL)

    def _images(self, row: Mapping[str, Any]) -> pa.Table:
        known = _fetched(self.known)
        found: dict[str, list[Any]] = {
            name: [] for name in ("ids", "digests", "known", "known_digests", "failed", "reasons")
        }
        pixels = []
        batch = ImageBatch(ids=row["ids"], where=row["where"])
        for image_id, stored in zip(batch.ids, self.sources[row["source"]].read(batch), strict=True):
            try:
                if isinstance(stored, Exception):
                    raise stored
                digest = image_digest(stored.content)
                if _holds(known, digest):
                    found["known"].append(image_id)
                    found["known_digests"].append(digest)
                    continue
                with stored.open() as image:
                    pixels.append(resized(image, self.preprocess_cfg))
                found["ids"].append(image_id)
                found["digests"].append(digest)
            except Exception as error:  # Pillow raises a dozen types; the image is recorded as failed
                found["failed"].append(image_id)
                found["reasons"].append(one_line(error))
        pixels_BHWC = np.stack(pixels) if pixels else np.zeros((0, 0, 0, 3), dtype=np.uint8)
        return with_array(_row(row, **found), pixels_BHWC)


def tokenised(tokenizer: Tokenizer, texts: list[str]) -> tuple[np.ndarray, list[bool]]:
    """Return the tokens of texts, and which texts exceed the model's context length and were truncated.

    Only texts that fill the context are tokenised a second time, with room for one more token.

    Returns:
        int32 [B, L]; B times whether the text was truncated.
    """
    tokens_BL = np.asarray(tokenizer(texts))
    longer = tokens_BL.shape[1] + 1
    padding = np.asarray(tokenizer([""], context_length=longer))[0, -1]
    truncated = tokens_BL[:, -1] != padding
    if truncated.any():
        full = [text for text, fills in zip(texts, truncated, strict=True) if fills]
        truncated[truncated] = np.asarray(tokenizer(full, context_length=longer))[:, -1] != padding
    return tokens_BL.astype(np.int32), truncated.tolist()


def _row(row: Mapping[str, Any], **found: list[Any]) -> dict[str, Any]:
    empty = ("truncated", "known", "known_digests", "failed", "reasons")
    return {"source": row["source"], **dict.fromkeys(empty, ()), **found}


@functools.lru_cache(maxsize=4)
def _fetched(reference: Any) -> Any:
    """Return the object behind a reference; a process that runs many batches unpickles it once."""
    import ray

    return ray.get(reference)


def _holds(known: np.ndarray, digest: str) -> bool:
    """Return whether an ascending array contains the digest."""
    at = int(np.searchsorted(known, digest.encode()))
    return at < len(known) and bool(known[at] == digest.encode())
