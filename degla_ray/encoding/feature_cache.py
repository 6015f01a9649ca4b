"""Features on disk, keyed by the content they were computed from, so that they are encoded only once.

    <folder>/<model identity>/part-<random>.parquet     digest, feature (float32 bytes), truncated

The model identity covers weights, preprocessing and tokenizer. The digest covers the image's bytes (and the
region shown) or the text. Features are written as batches arrive, so an interrupted evaluation resumes. Only
the digests are read at the start (40 bytes a feature); a file's features are read when one of them is asked
for.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from degla_ray.storage import Storage

FLUSH_ROWS = 4096
"""Approximate rows per file; an interrupted evaluation repeats fewer than these."""
HELD_FILES = 8
"""Files whose features are held: a batch is read as it was cached, so its features are in few files."""
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
        self._added: dict[str, np.ndarray] = {}
        self.truncated: set[str] = set()
        """Digests of texts that are longer than the model's context."""
        self._new: list[tuple[str, bytes, bool]] = []
        self._files = [name for name in self._storage.names() if name.endswith(".parquet")]
        digests = [np.array([], dtype="S32"), *map(self._read_digests, self._files)]
        sizes = [len(digest) for digest in digests[1:]]
        # Where a digest is stored twice, the first one counts.
        self._digest_N, first = np.unique(np.concatenate(digests), return_index=True)
        self._file_N = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)[first]
        self._row_N = np.concatenate([np.arange(0), *map(np.arange, sizes)]).astype(np.int32)[first]
        self._held: dict[int, pa.Array] = {}

    def __len__(self) -> int:
        return len(self._digest_N) + len(self._added)

    def digests(self) -> np.ndarray:
        """Return all digests, ascending: bytes [n]."""
        return np.union1d(self._digest_N, np.array(list(self._added), dtype="S32"))

    def get(self, digest: str) -> np.ndarray | None:
        """Return the feature of a digest, float32 [D], or None."""
        return self._added[digest] if digest in self._added else self._stored(digest)

    def known(self, digests: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Yield those of some digests that are cached, with their features, reading each file once."""
        wanted = np.array(sorted(digests), dtype="S32")
        places = np.flatnonzero(np.isin(self._digest_N, wanted))
        for place in places[np.argsort(self._file_N[places], kind="stable")]:
            yield self._digest_N[place].decode(), self._feature(place)

    def add(self, digest: str, feature: np.ndarray, truncated: bool = False) -> None:
        if self.get(digest) is None:
            self._added[digest] = feature
            if truncated:
                self.truncated.add(digest)
            self._new.append((digest, feature.tobytes(), truncated))
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

    def _read_digests(self, name: str) -> np.ndarray:
        with self._storage.open_parquet(name) as file:
            columns = file.read(columns=["digest", "truncated"]).to_pydict()
        pairs = zip(columns["digest"], columns["truncated"], strict=True)
        self.truncated.update(digest for digest, truncated in pairs if truncated)
        return np.array(columns["digest"], dtype="S32")

    def _stored(self, digest: str) -> np.ndarray | None:
        place = int(np.searchsorted(self._digest_N, digest.encode()))
        found = place < len(self._digest_N) and self._digest_N[place] == digest.encode()
        return self._feature(place) if found else None

    def _feature(self, place: int) -> np.ndarray:
        number = int(self._file_N[place])
        if number not in self._held:
            if len(self._held) == HELD_FILES:
                del self._held[next(iter(self._held))]
            with self._storage.open_parquet(self._files[number]) as file:
                self._held[number] = file.read(columns=["feature"])["feature"].combine_chunks()
        return np.frombuffer(self._held[number][int(self._row_N[place])].as_py(), dtype=np.float32)
