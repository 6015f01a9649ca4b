"""Local copies of a remote data set's parts, shared by all processes of a node.

A part is fetched whole, once a node; the least recently used copies are removed first. File locks let one
process fetch while others wait. A reader keeps its copy open, so its removal by another process does no harm.
Trade-off: a part of 100 MB takes about a second to fetch, and then an image microseconds to read, where a
request for one image takes 30 to 60 ms.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from degla_ray.storage import Storage

_SUFFIX, _LOCK = ".part", ".lock"


class ShardCache:
    """A folder of local copies.

    Args:
        storage: the remote data set.
        folder: local folder; other data sets may share it.
        max_bytes: size of the folder above which copies are removed.
    """

    def __init__(self, storage: Storage, folder: str, max_bytes: int) -> None:
        self.storage, self.folder, self.max_bytes = storage, Path(folder), max_bytes
        self.folder.mkdir(parents=True, exist_ok=True)

    def holds(self, *parts: str) -> bool:
        """Return whether there is a local copy of a file."""
        return self._path(*parts).exists()

    def open(self, *parts: str) -> int:
        """Return a descriptor of the local copy of a file, fetched if it is not there."""
        path = self._path(*parts)
        while True:
            with suppress(FileNotFoundError):
                descriptor = os.open(path, os.O_RDONLY)
                os.utime(path)  # the time of its last use decides what is removed
                return descriptor
            self.fetch(*parts)

    def fetch(self, *parts: str) -> None:
        """Fetch a file unless a copy is there or another process fetches it now."""
        path = self._path(*parts)
        with _locked(path.with_suffix(_LOCK)):
            if path.exists():
                return
            temporary = path.with_suffix(f".{uuid.uuid4().hex}")
            try:
                self.storage.download(temporary, *parts)
                temporary.rename(path)
            finally:
                temporary.unlink(missing_ok=True)
        self._shrink(keep=path)

    def forget(self, *parts: str) -> None:
        """Remove a copy, for example because it is damaged."""
        self._path(*parts).unlink(missing_ok=True)

    def _path(self, *parts: str) -> Path:
        name = hashlib.blake2b(f"{self.storage.uri}/{'/'.join(parts)}".encode(), digest_size=16).hexdigest()
        return self.folder / f"{name}{_SUFFIX}"

    def _shrink(self, keep: Path) -> None:
        with _locked(self.folder / _LOCK):
            copies = []
            for path in self.folder.glob(f"*{_SUFFIX}"):
                with suppress(FileNotFoundError):
                    copies.append((path.stat().st_mtime, path.stat().st_size, path))
            excess = sum(size for _, size, _ in copies) - self.max_bytes
            for _, size, path in sorted(copies):
                if excess <= 0:
                    break
                if path != keep:
                    path.unlink(missing_ok=True)
                    excess -= size


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
