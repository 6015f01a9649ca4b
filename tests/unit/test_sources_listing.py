"""What every source does whose images are files in a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from degla_ray.config import ParquetConfig, PrepareConfig
from degla_ray.sources import open_source
from tests.fixtures_sources import (
    SourceConfig,
    degla_entry,
    list_balanced,
    negclip_row,
    prepare_config,
    write_coco,
    write_degla_json,
    write_flickr8k,
    write_negclip,
    write_parquet,
)


def with_paths(folder: Path) -> ParquetConfig:
    images = write_flickr8k(folder).images
    rows = [{"image": f"p{i}.jpg", "caption": f"Caption {i}."} for i in range(6)]
    files = {"train": [str(write_parquet(folder / "d.parquet", rows))]}
    return ParquetConfig(files=files, images=images)


SOURCES: dict[str, Callable[[Path], SourceConfig]] = {
    "flickr8k": write_flickr8k,
    "coco": write_coco,
    "parquet": with_paths,
    "degla_json": lambda folder: write_degla_json(folder, [degla_entry(9)], [9]),
    "negclip_tsv": lambda folder: write_negclip(folder, [negclip_row(9)], [9]),
}


@pytest.mark.parametrize("name", SOURCES)
def test_files_of_an_image_folder_that_no_caption_names_are_named(tmp_path: Path, name: str) -> None:
    source = SOURCES[name](tmp_path)
    config: PrepareConfig = prepare_config(source, tmp_path / "out")
    before = list_balanced(open_source(config))
    images = Path(source.images)  # type: ignore[union-attr]
    (images / "!deep").mkdir()
    for extra in ("!deep/a.heic", "!deep/b", "!c.zip"):  # sorted before all others
        (images / extra).write_bytes(b"?")
    after = list_balanced(open_source(config))
    assert (after.records, after.rejects) == (before.records, before.rejects)
    (note,) = [note for note in after.notes if note.startswith("in the image folder, named by no caption: ")]
    assert "'!c.zip', '!deep/a.heic', '!deep/b'" in note


def test_files_of_an_image_folder_are_no_note_where_captions_name_all(tmp_path: Path) -> None:
    config = prepare_config(write_flickr8k(tmp_path), tmp_path / "out")
    assert list_balanced(open_source(config)).notes == []
