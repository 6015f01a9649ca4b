"""The columns of a Parquet file that hold images and captions: which there must be, and of which types."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from degla_ray.config import ParquetConfig
from degla_ray.errors import SettingError

BYTES = "bytes"
"""Field of Hugging Face's struct<bytes, path>."""
EMBEDDED = (
    "the bytes of images: embed them (Hugging Face: datasets.table.embed_table_storage before to_parquet), "
    "or give a column of paths and the folder they start from, parquet.images"
)


def check_columns(config: ParquetConfig, schema: pa.Schema, uri: str) -> bool:
    """Return whether images are stored as bytes; if False, they are stored as paths.

    Raises:
        SettingError: a named column is missing, or has a type that cannot be read.
    """
    image = _type_of(config.image_column, "image_column", schema, uri)
    embedded = _is_binary(image) or (
        pa.types.is_struct(image)
        and image.get_field_index(BYTES) >= 0
        and _is_binary(image.field(BYTES).type)
    )
    if pa.types.is_struct(image) and not embedded:
        raise SettingError("parquet.image_column", f"{config.image_column}, {image}", EMBEDDED)
    if not embedded and not _is_text(image):
        _wrong(config.image_column, "image_column", image, "binary, struct<bytes, path> or string", uri)
    caption = _type_of(config.caption_column, "caption_column", schema, uri)
    if not _is_text(caption) and not (is_list(caption) and _is_text(caption.value_type)):
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


def all_without_bytes(file: pq.ParquetFile, column: str) -> bool:
    """Return whether every image is null, according to the file's statistics."""
    rows = nulls = 0
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        for chunk in map(group.column, range(group.num_columns)):
            if chunk.path_in_schema in (column, f"{column}.{BYTES}"):
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


def is_list(kind: pa.DataType) -> bool:
    """Return whether cells hold several values."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
