"""Parquet files of images and captions; settings name the columns.

An image is stored as bytes in its row, alone or in Hugging Face's struct<bytes, path>, or as a file whose
path is in the row. Bytes are addressed by (file, row group, row), and Parquet reaches a row only by decoding
the rows before it in the group. A task therefore reads a group in order, a page or two in memory at a time
(50 to 100 MB for 5,000 images in one group of 240 MB), and `prepare` unpacks each group once (unpacked.py).
"""

from __future__ import annotations

import hashlib
import posixpath
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from degla_ray.config import ParquetConfig
from degla_ray.errors import DataError, SettingError
from degla_ray.identity import canonical
from degla_ray.schema import RejectReason
from degla_ray.sources.base import Note, Record, Refusal, Reject, RowsRead, Source, Unit
from degla_ray.sources.files import find_files, open_file, some
from degla_ray.sources.listing import (
    Finder,
    ImageFolder,
    Located,
    NamedCaption,
    NamedImage,
    reject_caption,
    to_rows,
)
from degla_ray.storage import ROW_GROUP_ROWS

_BYTES = "bytes"  # field of Hugging Face's struct<bytes, path>
_BUFFER_BYTES = 1 << 20
_EMBEDDED = (
    "the bytes of images: embed them (Hugging Face: datasets.table.embed_table_storage before to_parquet), "
    "or give a column of paths and the folder they start from, parquet.images"
)


class _Row(NamedTuple):
    """One row without its image. `name` is the image's locator or, if the column holds paths, its path.

    `damaged` is the reason why the row is unreadable; such a row counts as one image with one caption.
    """

    where: str
    own_id: str
    image_id: object
    name: object
    captions: list[Any]
    split: object
    damaged: str = ""


class _Group(NamedTuple):
    """The named columns of a row group without the images' bytes, or the reason why they are unreadable."""

    number: int
    first: int  # its first row in the file
    rows: int
    table: pa.Table | str


class _ParquetReader:
    """A reader of one column of a row group, in ascending order of rows."""

    def __init__(self, uri: str, group: int, column: str) -> None:
        self.place = (uri, group)
        self.first = 0
        self._batches = _batches(uri, group, column)
        self._batch = pa.array([])

    def cell(self, row: int) -> Any:
        """Return the cell of a row at or after `first`."""
        while row >= self.first + len(self._batch):
            self.first += len(self._batch)
            batch = next(self._batches, None)
            if batch is None:
                raise OSError(f"{self.first} rows in row group {self.place[1]}, and row {row} was listed")
            self._batch = batch
        return self._batch[row - self.first].as_py()


def _batches(uri: str, group: int, column: str) -> Iterator[pa.Array]:
    """Yield the cells of a row group's column, a few at a time."""
    # Without pre_buffer=False, Arrow reads the group's whole column before returning the first row.
    file = pq.ParquetFile(open_file(uri), buffer_size=_BUFFER_BYTES, pre_buffer=False)
    for batch in file.iter_batches(ROW_GROUP_ROWS, row_groups=[group], columns=[column]):
        yield batch.column(0)


class ParquetSource(Source):
    """Parquet data; image_id is the column's value, the image's path, or `<split>-<file>-<row>`.

    sample_id is `<image_id>#<i>`. Rows with the same image_id are one image; a row that shows another image
    under that id is rejected.

    Raises:
        SettingError: no files are found, a named column is missing, or a column has the wrong type.
    """

    def __init__(self, config: ParquetConfig, follow_links: bool = False) -> None:
        self._config = config
        self._files, self._not_taken = find_files(config.files, "parquet.files", ".parquet")
        first = next(iter(self._files.values()))[0]
        with _open(first) as file:
            self._embedded = _check_columns(config, file.schema_arrow, first)
            if self._embedded and _all_without_bytes(file, config.image_column):
                found = f"{config.image_column}, whose images have no bytes in {first}"
                raise SettingError("parquet.image_column", found, _EMBEDDED)
        if self._embedded and config.images is not None:
            found = f"the bytes of images in column {config.image_column!r}"
            raise SettingError("parquet.images", config.images, f"none: there are {found}")
        self._folder = (
            None if self._embedded else ImageFolder(config.images or "", "parquet.images", follow_links)
        )
        self._reader: _ParquetReader | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}

    def identity(self) -> dict[str, Any]:
        """Return the settings and a hash of the named columns (for images, of paths but not of bytes)."""
        hashes = {}
        for split, uris in self._files.items():
            digest = hashlib.sha256()
            for uri in uris:
                digest.update(f"{posixpath.basename(uri)}\n".encode())
                for group in self._groups(uri):
                    columns = [] if isinstance(group.table, str) else group.table.columns
                    digest.update(repr([_values(column) for column in columns]).encode())
            hashes[split] = digest.hexdigest()
        return {"settings": canonical(self._config), "sha256": hashes}

    def records(self) -> Iterator[Record | Reject | RowsRead | Note]:
        images: dict[str, NamedImage] = {}
        refused = rows = own = 0
        damaged: Counter[str] = Counter()
        digests = self._digests_of_repeated()
        # Where no two rows can be one image, an image's rows are known at once and need not be held.
        streamed = self._embedded and (self._config.image_id_column is None or not digests)
        late: list[Reject | Note] = []
        for split, uris in self._files.items():
            for number, uri in enumerate(uris):
                for row in self._rows(uri, split, number):
                    rows += 1
                    damaged[row.damaged] += 1
                    yield RowsRead(captions=len(row.captions))
                    image = self._image(row, images, digests)
                    if isinstance(image, Refusal):
                        refused += 1
                        yield from _reject_row(row, image)
                        continue
                    yield from self._add(row, image)
                    if streamed:
                        own += 1
                        for each in to_rows([image], Located()):
                            if isinstance(each, Record):
                                yield each
                            else:
                                late.append(each)
                        images.clear()
        own += len(images)
        yield RowsRead(images=own + refused)
        yield from late
        finder: Finder = self._folder.list() if self._folder else Located()
        yield from to_rows(images.values(), finder)
        earlier = rows - own - refused
        accounts = f"{own} with an image of their own + {earlier} with an earlier row's"
        yield Note(text=f"{rows} rows in = {accounts} + {refused} rejects")
        for why, lost in damaged.items():
            if why:
                yield Note(text=f"{why}; its {lost} rows are rejects")
        if self._not_taken:
            yield Note(text=f"not looked at, for they are no .parquet files: {some(self._not_taken)}")

    def read_image(self, locator: str) -> bytes:
        if self._folder is not None:
            return self._folder.read(locator)
        uri, group, row = locator.rsplit(":", 2)
        reader, self._reader = self._reader, None  # a reader that failed is not reused
        try:
            if reader is None or reader.place != (uri, int(group)) or int(row) < reader.first:
                reader = _ParquetReader(uri, int(group), self._config.image_column)
            value = reader.cell(int(row))
        except pa.ArrowException as error:
            raise OSError(_line(error)) from error
        self._reader = reader
        path = None
        if isinstance(value, dict):
            value, path = value[_BYTES], value.get("path")
        if value is None:
            found = f"only the path {path!r}, no bytes of an image," if path else "no image"
            raise FileNotFoundError(f"{found} in row {row} of row group {group} of {uri}")
        return bytes(value)

    def group_of(self, locator: str) -> tuple[str, int] | None:
        if not self._embedded:
            return None
        group, _, row = locator.rpartition(":")
        return group, int(row)

    def read_group(self, group: str) -> Iterator[bytes]:
        uri, number = group.rsplit(":", 1)
        try:
            for cells in _batches(uri, int(number), self._config.image_column):
                for cell in cells:
                    value = cell.as_py()
                    yield (value[_BYTES] if isinstance(value, dict) else value) or b""
        except (pa.ArrowException, OSError):
            return  # the rows behind are read alone, and their errors become their rejects

    def _groups(self, uri: str) -> Iterator[_Group]:
        """Yield the row groups of a file.

        Raises:
            DataError: the file cannot be read, perhaps only temporarily.
            SettingError: the file lacks a column.
        """
        config = self._config
        wanted = [
            config.caption_column,
            config.image_id_column,
            config.split_column,
            None if self._embedded else config.image_column,
        ]
        columns = list(dict.fromkeys(name for name in wanted if name is not None))
        with _open(uri) as file:
            if _check_columns(config, file.schema_arrow, uri) != self._embedded:
                kinds = ("bytes", "paths") if self._embedded else ("paths", "bytes")
                found = f"{kinds[1]} in column {config.image_column!r}"
                raise DataError(uri, found, f"{kinds[0]}, as in the first file")
            first = 0
            for number in range(file.num_row_groups):
                about = file.metadata.row_group(number)
                table: pa.Table | str
                try:
                    table = file.read_row_group(number, columns=columns)
                except (pa.ArrowException, OSError) as error:
                    _require_bytes(uri, about, columns)
                    table = f"row group {number} of {uri} cannot be read ({_line(error)})"
                yield _Group(number, first, about.num_rows, table)
                first += about.num_rows

    def _rows(self, uri: str, split: str, number: int) -> Iterator[_Row]:
        config = self._config
        base = posixpath.basename(uri)
        for group, first, rows, table in self._groups(uri):
            if isinstance(table, str):
                for row in range(first, first + rows):
                    yield _Row(f"{base}[{row}]", "", None, "", [None], None, damaged=table)
                continue
            columns = {name: _values(table[name]) for name in table.column_names}
            for row in range(rows):
                captions = columns[config.caption_column][row]
                if _is_list(table.schema.field(config.caption_column).type):
                    captions = captions or []
                else:
                    captions = [captions]
                own_id = f"{split}-{number:05d}-{first + row:07d}"
                name = f"{uri}:{group}:{row}" if self._embedded else columns[config.image_column][row]
                yield _Row(
                    where=f"{base}[{first + row}]",
                    own_id=own_id,
                    image_id=columns[config.image_id_column][row] if config.image_id_column else None,
                    name=name,
                    captions=captions,
                    split=columns[config.split_column][row] if config.split_column else split,
                )

    def _digests_of_repeated(self) -> dict[str, bytes | None]:
        """Return the hash of each image whose image_id occurs in several rows, by the image's locator.

        None stands for a row without bytes. Only these images are read, in row order.
        """
        if not self._embedded or self._config.image_id_column is None:
            return {}
        hashes = np.fromiter((hash(image_id) for image_id, _ in self._ids()), np.int64)
        ordered = np.sort(hashes)
        repeated = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())  # 8 bytes a row until here
        ids = [each for each in self._ids() if hash(each[0]) in repeated]
        times = Counter(image_id for image_id, _ in ids)
        digests: dict[str, bytes | None] = {}
        for image_id, locator in ids:
            if times[image_id] > 1:
                try:
                    digests[locator] = hashlib.blake2b(self.read_image(locator), digest_size=16).digest()
                except FileNotFoundError:
                    digests[locator] = None
                except OSError as error:  # counts as different from every readable image
                    digests[locator] = f"{locator}: {error}".encode()
        self._reader = None
        return digests

    def _ids(self) -> Iterator[tuple[str, str]]:
        """Yield image_id and locator of each readable row."""
        for split, uris in self._files.items():
            for number, uri in enumerate(uris):
                for row in self._rows(uri, split, number):
                    if not row.damaged:
                        yield str(row.image_id), str(row.name)

    def _image(
        self, row: _Row, images: dict[str, NamedImage], digests: dict[str, bytes | None]
    ) -> NamedImage | Refusal:
        """Return a row's image, registering a new one; a Refusal if the image cannot be identified."""
        if row.damaged:
            return Refusal(RejectReason.UNREADABLE, row.damaged)
        name = row.name if isinstance(row.name, str) and row.name.isprintable() else ""
        image_id = row.own_id if self._embedded else self._relative(name) or name
        if self._config.image_id_column is not None:
            found = str(row.image_id) if isinstance(row.image_id, int | str) else ""
            if not found or not found.isprintable():
                detail = f"no usable {self._config.image_id_column} ({row.image_id!r:.80})"
                return Refusal(RejectReason.MALFORMED_ROW, detail)
            image_id = found
        if image_id in images:
            return self._same(row, name, images[image_id], digests)
        if not name:
            detail = f"no usable {self._config.image_column} ({row.name!r:.80})"
            return Refusal(RejectReason.MALFORMED_ROW, detail)
        return images.setdefault(image_id, NamedImage(image_id=image_id, names=(name,), where=row.where))

    def _same(
        self, row: _Row, name: str, image: NamedImage, digests: dict[str, bytes | None]
    ) -> NamedImage | Refusal:
        """Return `image` if the row shows it or has no image; else the reason for refusing the row."""
        first = image.names[0]
        if self._embedded:
            own, earlier = digests.get(name), digests.get(first)
            if earlier is None and own is not None:
                image.names = (name,)
            same = own is None or earlier is None or own == earlier
            found = "has other bytes here"
        else:
            same = not isinstance(row.name, str) or self._relative(row.name) == self._relative(first)
            found = f"is {first!r} there, {row.name!r:.200} here"
        if same:
            return image
        detail = f"{self._config.image_id_column} {image.image_id!r}, first in {image.where}, {found}"
        return Refusal(RejectReason.DUPLICATE_ID, detail)

    def _relative(self, name: str) -> str | None:
        return self._folder.relative(name) if self._folder else None

    def _add(self, row: _Row, image: NamedImage) -> Iterator[Reject]:
        why = self._refuse(row)
        for value in row.captions:
            sample_id = f"{image.image_id}#{len(image.captions) + image.captions_lost}"
            caption = NamedCaption(sample_id, value, str(row.split), row.where)
            if why is None:
                image.captions.append(caption)
            else:
                image.captions_lost += 1
                yield reject_caption(caption, why, image.image_id)

    def _refuse(self, row: _Row) -> Refusal | None:
        if not isinstance(row.split, str) or not row.split or not row.split.isprintable():
            return Refusal(
                RejectReason.MALFORMED_ROW, f"no usable {self._config.split_column} ({row.split!r:.80})"
            )
        return None


def _line(error: Exception) -> str:
    """Return Arrow's message on a single line."""
    return " ".join(str(error).split())


def _open(uri: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(open_file(uri))
    except (pa.ArrowException, OSError) as error:
        raise DataError(uri, _line(error), "a whole Parquet file") from error


def _require_bytes(uri: str, group: pq.RowGroupMetaData, columns: list[str]) -> None:
    """Raise DataError if the store cannot deliver the columns' bytes, which is not damage to the file."""
    try:
        with open_file(uri) as file:
            for chunk in map(group.column, range(group.num_columns)):
                if chunk.path_in_schema.partition(".")[0] in columns:
                    start = chunk.dictionary_page_offset or chunk.data_page_offset
                    file.read_at(chunk.total_compressed_size, start)
    except OSError as error:
        raise DataError(uri, _line(error), "a file that can be read") from error


def _check_columns(config: ParquetConfig, schema: pa.Schema, uri: str) -> bool:
    """Return whether images are stored as bytes; if False, they are stored as paths."""
    image = _type_of(config.image_column, "image_column", schema, uri)
    embedded = _is_binary(image) or (
        pa.types.is_struct(image)
        and image.get_field_index(_BYTES) >= 0
        and _is_binary(image.field(_BYTES).type)
    )
    if pa.types.is_struct(image) and not embedded:
        raise SettingError("parquet.image_column", f"{config.image_column}, {image}", _EMBEDDED)
    if not embedded and not _is_text(image):
        _wrong(config.image_column, "image_column", image, "binary, struct<bytes, path> or string", uri)
    caption = _type_of(config.caption_column, "caption_column", schema, uri)
    if not _is_text(caption) and not (_is_list(caption) and _is_text(caption.value_type)):
        _wrong(config.caption_column, "caption_column", caption, "string or list of string", uri)
    if config.image_id_column is not None:
        image_id = _type_of(config.image_id_column, "image_id_column", schema, uri)
        if not _is_text(image_id) and not pa.types.is_integer(image_id):
            _wrong(config.image_id_column, "image_id_column", image_id, "string or integer", uri)
    if config.split_column is not None:
        split = _type_of(config.split_column, "split_column", schema, uri)
        if not _is_text(split):
            _wrong(config.split_column, "split_column", split, "string", uri)
    return embedded


def _all_without_bytes(file: pq.ParquetFile, column: str) -> bool:
    """Return whether every image is null, according to the file's statistics."""
    rows = nulls = 0
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        for chunk in map(group.column, range(group.num_columns)):
            if chunk.path_in_schema in (column, f"{column}.{_BYTES}"):
                known = chunk.statistics is not None and chunk.statistics.has_null_count
                rows += chunk.num_values
                nulls += chunk.statistics.null_count if known else 0
    return 0 < rows == nulls


def _type_of(column: str, setting: str, schema: pa.Schema, uri: str) -> pa.DataType:
    if schema.names.count(column) != 1:
        there = f"one of the columns {schema.names} of {uri}"
        raise SettingError(f"parquet.{setting}", column, there)
    found = schema.field(column).type
    return found.value_type if pa.types.is_dictionary(found) else found


def _wrong(column: str, setting: str, found: pa.DataType, expected: str, uri: str) -> None:
    raise SettingError(f"parquet.{setting}", column, f"a column of type {expected}, not {found} ({uri})")


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _values(column: pa.ChunkedArray) -> list[Any]:
    """Return the cells as Python values; invalid UTF-8 stays bytes and fails every later check."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_value(scalar) for scalar in column]


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        if isinstance(scalar, pa.ListScalar):
            return [_value(each) for each in scalar.values]
        return scalar.as_buffer().to_pybytes()


def _reject_row(row: _Row, why: Refusal) -> Iterator[Reject]:
    yield Reject(
        unit=Unit.IMAGE,
        row_id=row.where,
        reason=why.reason,
        detail=f"{row.where}: {why.detail}",
        text=str(row.name),
    )
    for number, value in enumerate(row.captions):
        caption = NamedCaption("", value, "", f"{row.where}#{number}")
        yield reject_caption(caption, Refusal(RejectReason.CAPTION_WITHOUT_IMAGE, f"its image: {why.detail}"))
