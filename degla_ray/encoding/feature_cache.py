"""Features on disk, keyed by the content they were computed from, so that they are encoded only once.

    <folder>/<model identity>/part-<random>.parquet     digest, feature (float32 bytes), truncated

The model identity covers weights, preprocessing and tokenizer. The digest covers the image's bytes (and the
region shown) or the text. Features are written as batches arrive, so an interrupted evaluation resumes.
"""

from __future__ import annotations

import hashlib
import uuid

import numpy as np
import pyarrow as pa

from degla_ray.storage import Storage

FLUSH_ROWS = 4096
"""Approximate rows per file; an interrupted evaluation repeats fewer than these."""
SCHEMA = pa.schema([("digest", pa.string()), ("feature", pa.binary()), ("truncated", pa.bool_())])


def image_digest(content: bytes) -> str:
    """Return the digest of an image's `StoredImage.content`."""
    return hashlib.blake2b(content, digest_size=16, person=b"image").hexdigest()


def text_digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16, person=b"text").hexdigest()


class FeatureCache:
    """Cached features of one model.

    Args:
        uri: folder that contains the caches of all models.
        model: identity of the model.
    """

    def __init__(self, uri: str, model: str) -> None:
        self._storage = Storage(f"{uri.rstrip('/')}/{model}")
        self._features: dict[str, np.ndarray] = {}
        self.truncated: set[str] = set()
        """Digests of texts that are longer than the model's context."""
        self._new: list[tuple[str, bytes, bool]] = []
        for name in self._storage.names():
            if name.endswith(".parquet"):
                with self._storage.open_parquet(name) as file:
                    columns = file.read().to_pydict()
                for row in zip(columns["digest"], columns["feature"], columns["truncated"], strict=True):
                    self._keep(*row)

    def __len__(self) -> int:
        return len(self._features)

    def digests(self) -> np.ndarray:
        """Return all digests, ascending: bytes [n]."""
        return np.array(sorted(self._features), dtype="S32")

    def get(self, digest: str) -> np.ndarray | None:
        """Return the feature of a digest, float32 [D], or None."""
        return self._features.get(digest)

    def add(self, digest: str, feature: np.ndarray, truncated: bool = False) -> None:
        if digest not in self._features:
            row = (digest, feature.tobytes(), truncated)
            self._keep(*row)
            self._new.append(row)
            if len(self._new) >= FLUSH_ROWS:
                self.flush()

    def flush(self) -> None:
        """Write the features added since the last flush."""
        if self._new:
            columns = [list(column) for column in zip(*self._new, strict=True)]
            self._storage.write_table(
                pa.table(columns, schema=SCHEMA), f"part-{uuid.uuid4().hex}.parquet", row_group_rows=None
            )
            self._new = []

    def _keep(self, digest: str, feature: bytes, truncated: bool) -> None:
        self._features[digest] = np.frombuffer(feature, dtype=np.float32)
        if truncated:
            self.truncated.add(digest)
