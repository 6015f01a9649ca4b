"""Read and write files on any filesystem that pyarrow opens; `remote_store` retries what is remote."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import posixpath
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from degla_ray.errors import DataError
from degla_ray.masking import masked_values
from degla_ray.pixel_limit import check_file_bytes
from degla_ray.remote_store import RemoteStore, StoreFile
from degla_ray.schema import with_large_text

_PART = re.compile(r"part-\d{5}-of-(\d{5})\.parquet")


NEAR = 3  # maximum levels that a relative path in a folder's files may go up


_COPY_BYTES = 8 * 2**20


ROW_GROUP_ROWS = 16  # images are fetched by row number; a small group limits the bytes read per fetch


def relative_to(base: str, value: Any) -> Any:
    """Return a JSON value with absolute paths and URIs near folder `base` made relative to it (./ or ../).

    A folder of runs can then be moved or copied as a whole. A path is near if it needs at most NEAR steps up;
    any other, such as that of a dataset elsewhere, stays absolute.
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


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskRefuses(DataError, OSError):
    """A disk that is full or read-only; an OSError too, because it may be about a single file."""


@contextlib.contextmanager
def disk_errors(path: str) -> Iterator[None]:
    """Raise DiskRefuses in place of an OSError that says that the disk is full or read-only.

    Args:
        path: the file that is to be written.
    """
    try:
        yield
    except DiskRefuses:
        raise
    except OSError as error:
        if error.errno in _FULL:
            expected = "room: free some or raise the quota; the same command then continues"
        elif error.errno == errno.EROFS:
            expected = "a disk that can be written: mount it anew; the same command then continues"
        else:
            raise
        raise DiskRefuses(path, os.strerror(error.errno).lower(), expected) from error


class Storage:
    """A folder on any filesystem that pyarrow opens; pickled as its URI.

    Raises:
        DataError: pyarrow has no filesystem for the URI.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri if "://" in uri else os.path.abspath(os.path.expanduser(uri))
        is_local = "://" not in uri or uri.startswith("file:")
        if not is_local and "?" in uri:  # names are appended to it
            raise DataError(
                uri,
                "a query (?…)",
                "a URI without one; AWS_ENDPOINT_URL and AWS_DEFAULT_REGION say where its store is",
            )
        self._remote: RemoteStore | None = None
        try:
            if is_local:
                self._fs, self._root = pafs.FileSystem.from_uri(self.uri)
            else:
                self._remote = RemoteStore(uri)
                self._fs, self._root = pafs.PyFileSystem(self._remote), self._remote.root
        except (pa.ArrowException, OSError) as error:
            raise DataError(uri, f"{error}", "a path, or a URI such as s3://BUCKET/FOLDER") from error

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        return (Storage, (self.uri,))

    def path(self, *parts: str) -> str:
        return "/".join((self._root.rstrip("/"), *parts))

    @property
    def filesystem(self) -> pafs.FileSystem:
        return self._fs

    @property
    def is_local(self) -> bool:
        """Whether the folder is on this machine's filesystem."""
        return self._remote is None

    def exists(self, *parts: str) -> bool:
        return self._fs.get_file_info(self.path(*parts)).type != pafs.FileType.NotFound

    def is_file(self, *parts: str) -> bool:
        return self._fs.get_file_info(self.path(*parts)).is_file

    def is_folder(self, *parts: str) -> bool:
        return self._fs.get_file_info(self.path(*parts)).type == pafs.FileType.Directory

    def names(self, *parts: str) -> list[str]:
        """Return the sorted names of the files directly in a subfolder; [] if it does not exist."""
        selector = pafs.FileSelector(self.path(*parts), allow_not_found=True)
        return sorted(i.base_name for i in self._fs.get_file_info(selector) if i.is_file)

    def folders(self, *parts: str) -> list[str]:
        """Return the names of the folders directly in a subfolder, sorted; [] if it does not exist."""
        selector = pafs.FileSelector(self.path(*parts), allow_not_found=True)
        return sorted(i.base_name for i in self._fs.get_file_info(selector) if not i.is_file)

    def modified(self, *parts: str) -> int:
        """Return when a file was last written, in ns since 1970 (a store's times are whole seconds)."""
        return int(self._fs.get_file_info(self.path(*parts)).mtime_ns)

    def names_below(self, *parts: str) -> list[str]:
        """Return the sorted paths of all files below a subfolder, relative to it."""
        base = self.path(*parts)
        selector = pafs.FileSelector(base, recursive=True, allow_not_found=True)
        return sorted(i.path[len(base) + 1 :] for i in self._fs.get_file_info(selector) if i.is_file)

    def version(self, *parts: str) -> str:
        """Return what tells a remote file's content from another without reading it.

        That is the store's ETag, or size and time of the last write where it has none.
        """
        if self._remote is not None and (etag := self._remote.open_file(self.path(*parts)).etag()):
            return etag
        info = self._fs.get_file_info(self.path(*parts))
        return f"{info.size} bytes of {info.mtime_ns}"

    def read_bytes(self, *parts: str) -> bytes:
        if self._remote is not None:
            return self._remote.open_file(self.path(*parts)).read()
        with self._fs.open_input_stream(self.path(*parts)) as stream:
            return stream.read()

    def open_file(self, *parts: str) -> pa.NativeFile | StoreFile:
        """Open a file for `read_at`, which may be called by several threads at a time."""
        if self._remote is not None:
            return self._remote.open_file(self.path(*parts))
        return self._fs.open_input_file(self.path(*parts))

    def download(self, local: Path, *parts: str) -> None:
        """Copy a file to a local one, a few megabytes at a time."""
        with self.open_file(*parts) as source, local.open("wb") as target:
            shutil.copyfileobj(source, target, _COPY_BYTES)

    def read_image(self, *parts: str) -> bytes:
        """Return the bytes of an image file.

        Raises:
            OSError: no plain file (a device never ends, a pipe never begins), or too large to be an image.
        """
        path = self.path(*parts)
        if self.is_local and os.path.exists(path) and not os.path.isfile(path):
            raise OSError(f"no plain file: {path}")
        with self.open_file(*parts) as file:
            check_file_bytes(file.size())
            return bytes(file.read())

    def write_bytes(self, data: bytes | pa.Buffer, *parts: str) -> None:
        """Write a file atomically: readers see the old file or the whole new one, also after a power cut."""
        target = self.path(*parts)
        if self._puts_are_atomic:
            self._put(data, target)
            return
        if self.is_local:
            with self._new_file(*parts) as temporary:
                self._put(data, temporary)
            return
        self._fs.create_dir(target.rsplit("/", 1)[0], recursive=True)
        temporary = f"{target}.tmp-{uuid.uuid4().hex}"
        self._put(data, temporary)
        self._replace(temporary, target)

    def write_chunks(self, chunks: Iterable[bytes], *parts: str) -> None:
        """Write a file as `write_bytes` does, from pieces that arrive one by one."""
        with self._new_file(*parts) as temporary, open(temporary, "wb") as stream:
            stream.writelines(chunks)

    def _put(self, data: bytes | pa.Buffer, path: str) -> None:
        if self._remote is not None:
            self._remote.put(data, path)
            return
        with self._fs.open_output_stream(path) as stream:
            stream.write(data)

    @property
    def _puts_are_atomic(self) -> bool:
        """Whether a file appears only once it is whole, as in object stores. Their rename is copy and delete,
        and ends at 5 GB."""
        return self._remote is not None and self._remote.get_type_name() in ("s3", "gcs", "abfs")

    @contextlib.contextmanager
    def _new_file(self, *parts: str) -> Iterator[str]:
        """Yield the path of a local file to write; it appears at its place unless an error is raised.

        It is written in the folder of its place, or on a local disk where that is remote.
        """
        target = self.path(*parts)
        if self.is_local:
            temporary = f"{target}.tmp-{uuid.uuid4().hex}"
            with disk_errors(target):
                self._fs.create_dir(target.rsplit("/", 1)[0], recursive=True)
                try:
                    yield temporary
                    self._replace(temporary, target)
                finally:
                    with contextlib.suppress(OSError):  # it must not hide why writing failed
                        Path(temporary).unlink(missing_ok=True)
            return
        with tempfile.TemporaryDirectory(prefix="degla-ray-") as folder:
            yield f"{folder}/file"
            self._upload(f"{folder}/file", *parts)

    def _upload(self, local: str, *parts: str) -> None:
        empty = os.path.getsize(local) == 0  # which cannot be mapped
        self.write_bytes(b"" if empty else pa.memory_map(local).read_buffer(), *parts)

    def upload(self, folder: Path, *parts: str) -> None:
        """Copy all files below a local folder into a subfolder."""
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            self._upload(str(file), *parts, *file.relative_to(folder).parts)

    def read_json(self, *parts: str) -> Any:
        try:
            return json.loads(self.read_bytes(*parts))
        except json.JSONDecodeError as error:
            raise DataError(self.path(*parts), f"broken JSON ({error})", "a JSON file") from error

    def write_json(self, value: Any, *parts: str) -> None:
        """Write a JSON file with secrets masked."""
        text = json.dumps(masked_values(value), indent=2, sort_keys=True)
        self.write_bytes(text.encode(), *parts)

    def write_table(self, table: pa.Table, *parts: str, row_group_rows: int | None = None) -> None:
        """Write one Parquet file atomically, and verify its row count by reading it back."""
        self.write_tables(table.schema, [table], *parts, row_group_rows=row_group_rows)

    def write_tables(
        self,
        schema: pa.Schema,
        tables: Iterable[pa.Table],
        *parts: str,
        row_group_rows: int | None = None,
        inspect: Callable[[str], None] | None = None,
    ) -> int:
        """Write one Parquet file from tables that arrive one by one, and return the number of rows.

        Only one table is held in memory, and each begins a row group. Binary columns are stored as they are:
        images are compressed already. The file is written to a local disk first where the target is remote.

        Args:
            schema: columns of the file.
            tables: the rows.
            parts: path of the file below this folder.
            row_group_rows: largest number of rows of a row group.
            inspect: called with the path of the finished local file before it appears at its place.
        """
        with self._new_file(*parts) as temporary:
            rows = _write_parquet(temporary, schema, tables, row_group_rows)
            if inspect is not None:
                inspect(temporary)
        return rows

    def _replace(self, temporary: str, target: str) -> None:
        """Rename a file after syncing its bytes, because some filesystems write the new name first."""
        if not self.is_local:
            self._fs.move(temporary, target)
            return
        _sync(temporary)
        self._fs.move(temporary, target)
        with contextlib.suppress(OSError):  # a folder cannot be synced on some network filesystems
            _sync(os.path.dirname(target))

    def delete_file(self, *parts: str) -> None:
        """Delete a file if it exists."""
        if self.is_file(*parts):
            with contextlib.suppress(FileNotFoundError):  # the answer to the first try was lost
                self._fs.delete_file(self.path(*parts))

    def delete_folder(self, *parts: str) -> None:
        """Delete a folder and its contents if it exists."""
        if self.is_folder(*parts):
            with contextlib.suppress(FileNotFoundError):
                self._fs.delete_dir(self.path(*parts))

    def open_parquet(self, *parts: str) -> pq.ParquetFile:
        return pq.ParquetFile(self.path(*parts), filesystem=self._fs)

    def read_dataset(self, name: str, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
        """Return all parts of dataset `name` as one table, in shard order.

        Text is `large_string`: a sorted or selected `string` column ends at 2 GiB, which is 43 M short
        captions, or 4 M with ten negatives each.

        Raises:
            DataError: the dataset has no parts, a part is missing, or a part lacks a column of `schema`.
        """
        wanted = with_large_text(pa.schema([schema.field(c) for c in columns]) if columns else schema)
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


def _write_parquet(
    path: str, schema: pa.Schema, tables: Iterable[pa.Table], row_group_rows: int | None
) -> int:
    plain = {f.name for f in schema if pa.types.is_binary(f.type)}
    rows = 0
    with pq.ParquetWriter(
        path,
        schema,
        compression={f: "NONE" if f in plain else "SNAPPY" for f in _leaves(schema)},
        use_dictionary=[f for f in _leaves(schema) if f not in plain],
    ) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=row_group_rows)
            rows += table.num_rows
    written = pq.read_metadata(path).num_rows
    if written != rows:
        raise DataError(path, f"{written} rows after writing", f"{rows} rows")
    return rows


def _sync(path: str) -> None:
    """Flush a local file's bytes, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _leaves(schema: pa.Schema) -> list[str]:
    """Return the columns' Parquet names; the values of a list column are nested one level deeper."""
    return [f"{f.name}.list.element" if pa.types.is_list(f.type) else f.name for f in schema]
