"""Write one part of the dataset `images` together with its index: where each image's bytes are in the file.

Parquet stores an image as it is, so (offset, length) lets a reader fetch exactly its bytes, where the
smallest unit of Parquet itself is a row group of 16 images. The index takes 32 bytes an image; its checksum
shows a damaged copy.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from degla_ray.errors import DataError
from degla_ray.schema import IMAGE_INDEX, IMAGES
from degla_ray.stage import StageFolder, part_name
from degla_ray.storage import ROW_GROUP_ROWS


def write_images(folder: StageFolder, shard: int, tables: Iterable[pa.Table]) -> None:
    """Write the images of a shard, given as tables of at most a row group, and then their index."""
    found: list[pa.Table] = []
    folder.storage.write_tables(
        IMAGES,
        tables,
        "images",
        part_name(shard, folder.num_shards),
        row_group_rows=ROW_GROUP_ROWS,
        inspect=lambda path: found.append(image_index(path)),
    )
    folder.write_part("image_index", shard, found[0])


def image_index(path: str) -> pa.Table:
    """Return the index of a local Parquet file of images.

    Raises:
        DataError: an image's bytes are not in the file as they are, for example because it is compressed.
    """
    rows: list[tuple[str | int, ...]] = []
    with pq.ParquetFile(path) as parquet, Path(path).open("rb") as file:
        column = parquet.schema_arrow.get_field_index("image")
        for group in range(parquet.num_row_groups):
            chunk = parquet.metadata.row_group(group).column(column)
            file.seek(chunk.data_page_offset)
            stored, place = file.read(chunk.total_compressed_size), 0
            for row in parquet.read_row_group(group, columns=IMAGES.names).to_pylist():
                data: bytes = row["image"]
                place = stored.find(len(data).to_bytes(4, "little") + data, place)
                if place < 0:
                    raise DataError(path, f"image {row['image_id']!r} stored in another form", "plain bytes")
                place += 4
                size = (row["width"], row["height"])
                rows.append(
                    (row["image_id"], *size, chunk.data_page_offset + place, len(data), zlib.crc32(data))
                )
                place += len(data)
    columns = zip(*rows, strict=True) if rows else ([] for _ in IMAGE_INDEX)
    return pa.table(
        [pa.array(c, f.type) for c, f in zip(columns, IMAGE_INDEX, strict=True)], schema=IMAGE_INDEX
    )
