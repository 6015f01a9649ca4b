"""Content-hashed shards under a manifest: how every stage writes, resumes and refuses.

A stage's output folder holds `manifest.json` and one subfolder per dataset with
`part-00017-of-00256.parquet` files. Work is cut by a hash of the row's id, never by Ray's blocks
(their layout differs between identical runs), so a rerun redoes exactly the shards that are missing:
a finished run costs one manifest read. Trade-off: a shard is the unit of loss, at 1/num_shards of the
work. Paths are anything pyarrow.fs opens (local, s3://, gs://).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import posixpath
import re
import uuid
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from degla_ray.errors import DataError, FingerprintMismatch
from degla_ray.masking import masked

MANIFEST = "manifest.json"
_PART = re.compile(r"part-\d{5}-of-(\d{5})\.parquet")
_ABSENT = "(absent)"
NEAR = 3  # levels above a folder up to which its files name their neighbours by relative paths
ROW_GROUP_ROWS = 16  # images are fetched by row number: a small group bounds what one fetch reads


def shard_of(key: str, num_shards: int) -> int:
    """Shard number in [0, num_shards) of an id: a stable hash of its content."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") % num_shards


def part_name(shard: int, num_shards: int) -> str:
    return f"part-{shard:05d}-of-{num_shards:05d}.parquet"


def canonical(value: Any) -> Any:
    """`value` as JSON types in one form only, for hashing.

    Raises:
        TypeError: for anything that has no canonical form (an object, a function, a NaN).

    Numbers that are equal have one form: 1.0 is 1, so equal configs are equal here. Secrets in URIs are
    masked: they decide no result, and canonical forms are written to files.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: canonical(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return canonical(value.value)
    if isinstance(value, Mapping):
        if not all(isinstance(k, str) for k in value):
            raise TypeError(f"keys {list(value)!r} are not all text")
        return {str(k): canonical(value[k]) for k in sorted(value, key=str)}
    if isinstance(value, list | tuple):
        return [canonical(v) for v in value]
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{value} has no canonical form")
        return int(value) if value.is_integer() else float(value)
    if isinstance(value, str):
        return masked(value)
    if value is None or isinstance(value, bool | int):
        return value
    raise TypeError(f"{type(value).__name__} {value!r} has no canonical form")


def fingerprint(value: Any) -> str:
    """16 hex digits that identify a canonical config; equal configs give equal fingerprints."""
    text = json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested config as dotted name -> leaf, for diffs and for MLflow params."""
    if isinstance(value, Mapping) and value:
        return {k: v for name, sub in value.items() for k, v in flatten(sub, f"{prefix}{name}.").items()}
    return {prefix[:-1]: value}


def relative_to(base: str, value: Any) -> Any:
    """JSON whose absolute paths and URIs near folder `base` are written from there, with ./ or ../ in front.

    A folder of runs may then be moved or copied as a whole. Near is up to NEAR levels above: what lies
    further away, such as a dataset elsewhere, keeps its absolute path.
    """
    if isinstance(value, Mapping):
        return {key: relative_to(base, each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [relative_to(base, each) for each in value]
    if not isinstance(value, str) or not (value.startswith("/") or "://" in value):
        return value
    if value.partition("://")[0] != base.partition("://")[0] and "://" in value + base:
        return value
    steps = posixpath.relpath(value, base).split("/")
    up, depth = steps.count(".."), len(base.rpartition("://")[2].strip("/").split("/"))
    return value if up > NEAR or up >= depth else "/".join(steps if up else [".", *steps])


def absolute_from(base: str, value: Any) -> Any:
    """The way back of `relative_to`."""
    if isinstance(value, Mapping):
        return {key: absolute_from(base, each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [absolute_from(base, each) for each in value]
    if not isinstance(value, str) or not value.startswith(("./", "../")):
        return value
    scheme, separator, rest = base.rpartition("://")
    return f"{scheme}{separator}{posixpath.normpath(f'{rest}/{value}')}"


class Storage:
    """A folder on any filesystem pyarrow opens. Picklable: it travels to Ray tasks as its URI.

    Raises:
        DataError: no filesystem goes by that URI.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri if "://" in uri else os.path.abspath(os.path.expanduser(uri))
        try:
            self._fs, self._root = pafs.FileSystem.from_uri(self.uri)
        except (pa.ArrowException, OSError) as error:
            raise DataError(uri, f"{error}", "a path, or a URI such as s3://BUCKET/FOLDER") from error

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        return (Storage, (self.uri,))

    def path(self, *parts: str) -> str:
        return "/".join((self._root.rstrip("/"), *parts))

    @property
    def filesystem(self) -> pafs.FileSystem:
        return self._fs

    def exists(self, *parts: str) -> bool:
        return self._fs.get_file_info(self.path(*parts)).type != pafs.FileType.NotFound

    def is_file(self, *parts: str) -> bool:
        return self._fs.get_file_info(self.path(*parts)).is_file

    def is_folder(self, *parts: str) -> bool:
        return self._fs.get_file_info(self.path(*parts)).type == pafs.FileType.Directory

    def names(self, *parts: str) -> list[str]:
        """Base names of the files directly in a subfolder, sorted; [] where there is none."""
        selector = pafs.FileSelector(self.path(*parts), allow_not_found=True)
        return sorted(i.base_name for i in self._fs.get_file_info(selector) if i.is_file)

    def names_below(self, *parts: str) -> list[str]:
        """Names, relative to the subfolder, of all files below it, sorted."""
        base = self.path(*parts)
        selector = pafs.FileSelector(base, recursive=True, allow_not_found=True)
        return sorted(i.path[len(base) + 1 :] for i in self._fs.get_file_info(selector) if i.is_file)

    def read_bytes(self, *parts: str) -> bytes:
        with self._fs.open_input_stream(self.path(*parts)) as stream:
            return stream.read()

    def write_bytes(self, data: bytes, *parts: str) -> None:
        """Atomic: a reader sees the old file or the whole new one, never a part, also after a power cut."""
        target = self.path(*parts)
        self._fs.create_dir(target.rsplit("/", 1)[0], recursive=True)
        temporary = f"{target}.tmp-{uuid.uuid4().hex}"
        with self._fs.open_output_stream(temporary) as stream:
            stream.write(data)
        self._replace(temporary, target)

    def upload(self, folder: Path, *parts: str) -> None:
        """Copies everything below a local folder into a subfolder."""
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            self.write_bytes(file.read_bytes(), *parts, *file.relative_to(folder).parts)

    def read_json(self, *parts: str) -> Any:
        try:
            return json.loads(self.read_bytes(*parts))
        except json.JSONDecodeError as error:
            raise DataError(self.path(*parts), f"broken JSON ({error})", "a JSON file") from error

    def write_json(self, value: Any, *parts: str) -> None:
        """Writes a JSON file, secrets in URIs masked."""
        self.write_bytes(masked(json.dumps(value, indent=2, sort_keys=True)).encode(), *parts)

    def write_table(self, table: pa.Table, *parts: str, row_group_rows: int | None = None) -> None:
        """Writes one Parquet file atomically, verified by reading its row count back."""
        self.write_tables(table.schema, [table], *parts, row_group_rows=row_group_rows)

    def write_tables(
        self, schema: pa.Schema, tables: Iterable[pa.Table], *parts: str, row_group_rows: int | None = None
    ) -> int:
        """Like `write_table`, from tables that come one by one: only one is held in memory.

        Each table begins a row group. Binary columns are stored as they are: pictures are compressed
        already. Returns the number of rows.
        """
        target = self.path(*parts)
        self._fs.create_dir(target.rsplit("/", 1)[0], recursive=True)
        temporary = f"{target}.tmp-{uuid.uuid4().hex}"
        plain = {f.name for f in schema if pa.types.is_binary(f.type)}
        rows = 0
        try:
            with pq.ParquetWriter(
                temporary,
                schema,
                filesystem=self._fs,
                compression={f: "NONE" if f in plain else "SNAPPY" for f in _leaves(schema)},
                use_dictionary=[f for f in _leaves(schema) if f not in plain],
            ) as writer:
                for table in tables:
                    writer.write_table(table, row_group_size=row_group_rows)
                    rows += table.num_rows
            written = pq.read_metadata(temporary, filesystem=self._fs).num_rows
            if written != rows:
                raise DataError(temporary, f"{written} rows after writing", f"{rows} rows")
            self._replace(temporary, target)
        except BaseException:
            self.delete_file(*parts[:-1], temporary.rsplit("/", 1)[1])
            raise
        return rows

    def _replace(self, temporary: str, target: str) -> None:
        """Rename once the bytes are on the disk: some filesystems write the new name before them."""
        if not isinstance(self._fs, pafs.LocalFileSystem):
            self._fs.move(temporary, target)
            return
        _sync(temporary)
        self._fs.move(temporary, target)
        with contextlib.suppress(OSError):  # a folder cannot be synced on some network filesystems
            _sync(os.path.dirname(target))

    def delete_file(self, *parts: str) -> None:
        """Deletes one file if it is there."""
        if self.is_file(*parts):
            self._fs.delete_file(self.path(*parts))

    def delete_folder(self, *parts: str) -> None:
        """Deletes a folder and what is in it, if it is there."""
        if self.is_folder(*parts):
            self._fs.delete_dir(self.path(*parts))

    def open_parquet(self, *parts: str) -> pq.ParquetFile:
        return pq.ParquetFile(self.path(*parts), filesystem=self._fs)

    def read_dataset(self, name: str, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
        """All parts of dataset `name` in shard order, as one table.

        Raises:
            DataError: there are no parts, one is missing, or one lacks a column of `schema`.
        """
        wanted = pa.schema([schema.field(c) for c in columns]) if columns else schema
        parts = [p for p in self.names(name) if p.endswith(".parquet")]
        if not parts:
            raise DataError(self.path(name), "no Parquet parts", f"a dataset with columns {wanted.names}")
        if (match := _PART.fullmatch(parts[0])) and len(parts) != int(match[1]):
            raise DataError(self.path(name), f"{len(parts)} of its {int(match[1])} parts", "all of them")
        tables = []
        for part in parts:
            with self.open_parquet(name, part) as file:
                missing = set(wanted.names) - set(file.schema_arrow.names)
                if missing:
                    raise DataError(
                        self.path(name, part), f"no column {sorted(missing)}", f"columns {wanted.names}"
                    )
                tables.append(file.read(columns=wanted.names).select(wanted.names).cast(wanted))
        return pa.concat_tables(tables)


class StageFolder:
    """The output folder of one stage under one fingerprint.

    Args:
        uri: the folder.
        stage: `prepare`, `negatives`, `evaluate` ...
        identity: everything that decides the output (settings, input fingerprint, versions).
        num_shards: fixed for the life of the folder.

    Raises:
        FingerprintMismatch: the folder was begun with another identity; names the fields.
        DataError: the folder belongs to another stage.
    """

    def __init__(self, uri: str, stage: str, identity: Mapping[str, Any], num_shards: int) -> None:
        self.storage = Storage(uri)
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

    def pending(self) -> list[int]:
        """Shards without a receipt, ascending. A shard's receipt is written after all its parts."""
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

    def write_part_tables(
        self, dataset: str, shard: int, schema: pa.Schema, tables: Iterable[pa.Table], row_group_rows: int
    ) -> int:
        """`write_part` from tables that come one by one; returns the number of rows."""
        name = part_name(shard, self.num_shards)
        return self.storage.write_tables(schema, tables, dataset, name, row_group_rows=row_group_rows)

    def counts(self) -> dict[str, int]:
        """Sum of all receipts' counts. Half-written receipts, of a job that was killed, are not read."""
        total: dict[str, int] = {}
        pending = set(self.pending())
        for shard in (s for s in range(self.num_shards) if s not in pending):
            for key, value in self.storage.read_json("receipts", f"{shard:05d}.json").items():
                total[key] = total.get(key, 0) + value
        return total

    def reopen(self, shards: Iterable[int]) -> None:
        """Makes finished shards pending again; their parts stay until they are written anew."""
        for shard in (reopened := list(shards)):
            self.storage.delete_file("receipts", f"{shard:05d}.json")
        if reopened and self.complete:
            self.manifest = {**self.manifest, "complete": False}
            self.storage.write_json(self.manifest, MANIFEST)

    def finish(self, extra_counts: Mapping[str, int] | None = None) -> dict[str, int]:
        """Marks the folder complete and stores the summed counts in the manifest."""
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


def _sync(path: str) -> None:
    """Wait until a local file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_complete(uri: str) -> bool:
    """Whether a stage finished in that folder."""
    storage = Storage(uri)
    return storage.exists(MANIFEST) and bool(_read_manifest(storage)["complete"])


def read_complete(uri: str, stage: str) -> tuple[Storage, dict[str, Any]]:
    """Opens a finished stage's folder as input.

    Raises:
        DataError: no manifest, another stage's folder, or an unfinished one.
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


def _leaves(schema: pa.Schema) -> list[str]:
    """Parquet's names of the columns: a list's values stand one level deeper."""
    return [f"{f.name}.list.element" if pa.types.is_list(f.type) else f.name for f in schema]
