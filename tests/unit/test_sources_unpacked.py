"""Images of row groups, copied once to where each can be read alone: the same bytes and the same errors."""

from __future__ import annotations

import pickle
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from degla_ray.config import ParquetConfig
from degla_ray.sources.parquet import ParquetSource
from degla_ray.sources.unpacked import FOLDER, Unpacked
from degla_ray.storage import Storage
from tests.fixtures_sources import write_parquet

CELLS = [f"image {number}".encode() * (number + 1) for number in range(40)]


def source_of(folder: Path, cells: list[bytes | None], rows: int = 16) -> ParquetSource:
    table = [{"image": {"bytes": cell, "path": "x.jpg"}, "caption": "A dog."} for cell in cells]
    path = write_parquet(folder / "data.parquet", table)
    pq.write_table(
        pq.read_table(path),
        path,
        row_group_size=rows,
        use_dictionary=False,
        data_page_size=64,
        write_batch_size=4,
    )
    return ParquetSource(ParquetConfig(files={"train": [str(path)]}))


def locators(folder: Path, count: int, rows: int = 16) -> list[str]:
    return [f"{folder / 'data.parquet'}:{number // rows}:{number % rows}" for number in range(count)]


def test_unpacked_images_are_the_sources_in_any_order(tmp_path: Path) -> None:
    unpacked = Unpacked(Storage(str(tmp_path / "out")), source_of(tmp_path, list(CELLS)))
    groups = [f"{tmp_path / 'data.parquet'}:{group}" for group in range(3)]
    assert unpacked.missing(groups) == groups
    for group in groups[:2]:
        unpacked.unpack(group)
    assert unpacked.missing(groups) == groups[2:]
    (tmp_path / "data.parquet").rename(tmp_path / "moved")  # so that the first two groups can only be copies
    there = list(zip(locators(tmp_path, 32), CELLS, strict=False))
    for reader in (unpacked, pickle.loads(pickle.dumps(unpacked))):
        assert [reader.read_image(locator) for locator, _ in there[::-7]] == [cell for _, cell in there[::-7]]
    with pytest.raises(OSError, match="data"):
        unpacked.read_image(locators(tmp_path, 33)[-1])
    unpacked.delete()
    assert not Storage(str(tmp_path / "out")).names(FOLDER)


def test_unpacked_rows_without_an_image_and_behind_damage_are_the_sources_own(tmp_path: Path) -> None:
    cells: list[bytes | None] = [*CELLS[:20], None, b"", *CELLS[22:]]
    source = source_of(tmp_path, cells, rows=40)
    group = pq.ParquetFile(tmp_path / "data.parquet").metadata.row_group(0)
    (chunk,) = (c for c in map(group.column, range(3)) if c.path_in_schema == "image.bytes")
    data = bytearray((tmp_path / "data.parquet").read_bytes())
    place = chunk.data_page_offset + chunk.total_compressed_size * 3 // 4
    data[place : place + 100] = b"\xff" * 100
    (tmp_path / "data.parquet").write_bytes(data)
    unpacked = Unpacked(Storage(str(tmp_path / "out")), source)
    unpacked.unpack(f"{tmp_path / 'data.parquet'}:0")
    found = [_outcome(unpacked, locator) for locator in locators(tmp_path, 40, rows=40)]
    assert found == [_outcome(source, locator) for locator in locators(tmp_path, 40, rows=40)]
    assert found[:2] == CELLS[:2]
    assert isinstance(found[39], tuple)


def _outcome(reader: Unpacked | ParquetSource, locator: str) -> object:
    try:
        return reader.read_image(locator)
    except OSError as error:
        return type(error), str(error)
