"""Stage folders: shards by content hash, receipts and a manifest, from which a stage resumes.

A stage's output folder holds `manifest.json` and one subfolder per dataset with
`part-00017-of-00256.parquet` files. Rows are assigned to shards by a hash of their id, never by Ray's blocks,
whose layout differs between identical runs. A rerun therefore writes only the missing shards, and on a
finished folder it only reads the manifest. Trade-off: a killed job loses whole shards, each 1/num_shards of
the work. Folders may be on any filesystem that pyarrow.fs opens (local, s3://, gs://).
"""

from __future__ import annotations

import hashlib
import posixpath
import socket
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from degla_ray.errors import DataError, FingerprintMismatch, SettingError
from degla_ray.identity import canonical, fingerprint, flatten
from degla_ray.storage import Storage

MANIFEST = "manifest.json"


MIN_SHARDS = 8
"""Shards of a small folder: one for each of the CPUs that a local Ray has at least."""
_ABSENT = "(absent)"


def shard_of(key: str, num_shards: int) -> int:
    """Return the shard of an id in [0, num_shards), by a stable hash."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") % num_shards


def derived_shards(rows: int, rows_per_shard: int) -> int:
    """Return the number of shards of a folder whose setting `num_shards` is null."""
    return max(MIN_SHARDS, -(-rows // rows_per_shard))


def part_name(shard: int, num_shards: int) -> str:
    return f"part-{shard:05d}-of-{num_shards:05d}.parquet"


def absolute_from(base: str, value: Any) -> Any:
    """Return a JSON value with the relative paths that `relative_to` wrote made absolute."""
    if isinstance(value, Mapping):
        return {key: absolute_from(base, each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [absolute_from(base, each) for each in value]
    if not isinstance(value, str) or not value.startswith(("./", "../")):
        return value
    scheme, separator, rest = base.rpartition("://")
    return f"{scheme}{separator}{posixpath.normpath(f'{rest}/{value}')}"


class StageFolder:
    """The output folder of one stage under one fingerprint.

    Args:
        uri: the folder.
        stage: `prepare`, `negatives`, `evaluate` ...
        identity: everything that determines the output (settings, input fingerprint, versions).
        num_shards: number of shards, fixed for the life of the folder; None takes that of a folder which
            exists.

    Raises:
        FingerprintMismatch: the folder was created with another identity; names the fields.
        DataError: the folder belongs to another stage.
    """

    def __init__(self, uri: str, stage: str, identity: Mapping[str, Any], num_shards: int | None) -> None:
        self.storage = Storage(uri)
        if num_shards is None:
            num_shards = int(_read_manifest(self.storage)["made_from"]["num_shards"])
        self.num_shards = num_shards
        wanted = canonical({"stage": stage, "num_shards": num_shards, "identity": identity})
        if self.storage.exists(MANIFEST):
            self.manifest: dict[str, Any] = _read_manifest(self.storage)
            if self.manifest["stage"] != stage:
                found = f"the output of stage {self.manifest['stage']!r}"
                raise DataError(uri, found, f"a folder of stage {stage!r}, or a new one")
            if self.manifest["fingerprint"] != fingerprint(wanted):
                raise FingerprintMismatch(uri, _difference(self.manifest["made_from"], wanted))
        else:
            self.manifest = {
                "stage": stage,
                "fingerprint": fingerprint(wanted),
                "made_from": wanted,
                "complete": False,
                "counts": {},
            }
            self.storage.write_json(self.manifest, MANIFEST)

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    @property
    def complete(self) -> bool:
        return bool(self.manifest["complete"])

    def require_seen(self) -> None:
        """Require that this process sees the folder as its driver wrote it; called by each worker.

        Raises:
            SettingError: the folder is on a disk of the driver's node.
        """
        if not self.storage.exists(MANIFEST):
            expected = f"a folder that every node sees; node {socket.gethostname()} does not see it"
            raise SettingError("output", self.storage.uri, expected)

    def pending(self) -> list[int]:
        """Return the shards without a receipt, ascending; a receipt follows all parts of its shard."""
        done = set(self.storage.names("receipts"))
        return [s for s in range(self.num_shards) if f"{s:05d}.json" not in done]

    def write_part(
        self, dataset: str, shard: int, table: pa.Table, row_group_rows: int | None = None
    ) -> None:
        self.storage.write_table(
            table, dataset, part_name(shard, self.num_shards), row_group_rows=row_group_rows
        )

    def write_receipt(self, shard: int, counts: Mapping[str, int]) -> None:
        self.storage.write_json(dict(counts), "receipts", f"{shard:05d}.json")

    def counts(self) -> dict[str, int]:
        """Return the sum of all receipts' counts, without the half-written receipts of a killed job."""
        total: dict[str, int] = {}
        pending = set(self.pending())
        for shard in (s for s in range(self.num_shards) if s not in pending):
            for key, value in self.storage.read_json("receipts", f"{shard:05d}.json").items():
                total[key] = total.get(key, 0) + value
        return total

    def reopen(self, shards: Iterable[int]) -> None:
        """Make finished shards pending again; their parts stay until they are rewritten."""
        for shard in (reopened := list(shards)):
            self.storage.delete_file("receipts", f"{shard:05d}.json")
        if reopened and self.complete:
            self.manifest = {**self.manifest, "complete": False}
            self.storage.write_json(self.manifest, MANIFEST)

    def finish(self, extra_counts: Mapping[str, int] | None = None) -> dict[str, int]:
        """Mark the folder complete, store the summed counts in the manifest and return them."""
        if self.pending():
            raise DataError(self.storage.uri, f"{len(self.pending())} shards without a receipt", "none")
        for name in self.storage.names_below():
            base = name.rpartition("/")[2]
            if ".tmp-" in base and not base.startswith("lease-"):  # left by a job that was killed
                self.storage.delete_file(name)
        counts = {**self.counts(), **(extra_counts or {})}
        self.manifest = {**self.manifest, "complete": True, "counts": counts}
        self.storage.write_json(self.manifest, MANIFEST)
        return counts


def is_complete(uri: str) -> bool:
    """Return whether a stage has finished in the folder."""
    storage = Storage(uri)
    return storage.exists(MANIFEST) and bool(_read_manifest(storage)["complete"])


def read_complete(uri: str, stage: str) -> tuple[Storage, dict[str, Any]]:
    """Open a finished stage's folder as input; return its storage and manifest.

    Raises:
        DataError: the folder has no manifest, belongs to another stage, or is unfinished.
    """
    storage = Storage(uri)
    if not storage.exists(MANIFEST):
        raise DataError(uri, "no manifest.json", f"a folder that `jobs/{stage}.py` finished")
    manifest = _read_manifest(storage)
    if manifest["stage"] != stage:
        raise DataError(uri, f"the output of stage {manifest['stage']!r}", f"a folder of stage {stage!r}")
    if not manifest["complete"]:
        raise DataError(
            uri, "an unfinished run", f"a finished one: run `jobs/{stage}.py` again to continue it"
        )
    return storage, manifest


def _read_manifest(storage: Storage) -> dict[str, Any]:
    manifest = storage.read_json(MANIFEST)
    if not isinstance(manifest, dict) or not {"stage", "fingerprint", "made_from", "complete"} <= set(
        manifest
    ):
        raise DataError(storage.path(MANIFEST), "another program's manifest", "a stage's, or another folder")
    return manifest


def _difference(old: Any, new: Any) -> dict[str, tuple[object, object]]:
    a, b = flatten(old), flatten(new)
    pairs = {k: (a.get(k, _ABSENT), b.get(k, _ABSENT)) for k in sorted(set(a) | set(b))}
    return {k: (x, y) for k, (x, y) in pairs.items() if x is not y and (x != y or type(x) is not type(y))}
