"""Samples: addressable by row, independent of the parts they lay in, and complete."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from degla_ray.config import DataConfig
from degla_ray.errors import DataError, SettingError
from degla_ray.loader.samples import Samples, load_samples
from degla_ray.schema import CAPTIONS, Kind
from tests.training_inputs import write_inputs


def config_of(folder: Path, **settings: object) -> DataConfig:
    return DataConfig(prepared=str(folder / "prepared"), negatives=str(folder / "negatives"), **settings)  # type: ignore[arg-type]


def negatives_of(samples: Samples, row: int) -> list[str]:
    return samples.negative[samples.first_negative[row] : samples.first_negative[row + 1]].to_pylist()


def test_samples_other_number_of_shards_same_rows(tmp_path: Path) -> None:
    one, five = (
        load_samples(config_of(write_inputs(tmp_path / str(n), num_shards=n)), with_negatives=True)
        for n in (1, 5)
    )
    assert one.sample_id == five.sample_id
    assert one.caption == five.caption
    assert [negatives_of(one, r) for r in range(len(one))] == [
        negatives_of(five, r) for r in range(len(five))
    ]
    images = [[s.image_id[int(i)].as_py() for i in s.image] for s in (one, five)]
    assert images[0] == images[1]


def test_samples_addresses_lead_to_the_captions_images(tmp_path: Path) -> None:
    folder = write_inputs(tmp_path, num_shards=3)
    samples = load_samples(config_of(folder), with_negatives=False)
    for row in range(len(samples)):
        image = samples.image[row]
        file = folder / "prepared" / "images" / samples.parts[samples.part_I[image]]
        stored = {each["image_id"]: each["image"] for each in pq.read_table(file).to_pylist()}
        begin, length = samples.offset_I[image], samples.length_I[image]
        data = file.read_bytes()[begin : begin + length]
        assert data == stored[samples.sample_id[row].as_py().partition("#")[0]]


def test_samples_negatives_belong_to_their_caption(tmp_path: Path) -> None:
    samples = load_samples(config_of(write_inputs(tmp_path)), with_negatives=True)
    counts = {samples.sample_id[r].as_py(): len(negatives_of(samples, r)) for r in range(len(samples))}
    assert counts["img0000#0"] == 0
    assert counts["img0005#1"] == 5
    assert sum(counts.values()) == len(samples.negative)


def test_samples_kinds_leave_out_the_other_negatives(tmp_path: Path) -> None:
    folder = write_inputs(tmp_path)
    kinds = list(Kind)
    every, first, rest = (
        load_samples(config_of(folder, kinds=each), with_negatives=True)
        for each in (None, kinds[:1], kinds[1:])
    )
    assert 0 < len(first.negative) < len(every.negative) == len(first.negative) + len(rest.negative)
    for row in range(len(every)):
        assert sorted(negatives_of(every, row)) == sorted(negatives_of(first, row) + negatives_of(rest, row))


def test_samples_unknown_split_names_those_there(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"data\.split: found 'dev'; expected one of train"):
        load_samples(config_of(write_inputs(tmp_path), split="dev"), with_negatives=False)


def test_samples_missing_image_names_it(tmp_path: Path) -> None:
    folder = write_inputs(tmp_path, num_shards=1)
    part = next((folder / "prepared" / "image_index").iterdir())
    table = pq.read_table(part)
    pq.write_table(table.filter(pa.array([i != "img0003" for i in table["image_id"].to_pylist()])), part)
    with pytest.raises(DataError, match=r"no image 'img0003' \(caption 'img0003#0'\)"):
        load_samples(config_of(folder), with_negatives=False)


def test_samples_negatives_of_other_captions_refused(tmp_path: Path) -> None:
    folder = write_inputs(tmp_path, num_shards=1)
    part = next((folder / "negatives" / "negatives").iterdir())
    table = pq.read_table(part)
    strange = pa.array([f"other-{i}" for i in table["sample_id"].to_pylist()])
    pq.write_table(table.set_column(0, "sample_id", strange), part)
    with pytest.raises(DataError, match="no negatives for split 'train'"):
        load_samples(config_of(folder), with_negatives=True)


@pytest.mark.slow
def test_samples_of_more_than_2_gib_of_captions_are_read(tmp_path: Path) -> None:
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if available < 12 * 2**30:
        pytest.skip(f"needs 12 GiB of memory; {available / 2**30:.0f} are free")
    folder = write_inputs(tmp_path, num_shards=1)
    part = next((folder / "prepared" / "captions").iterdir())
    rows = pq.read_table(part).to_pylist()
    long = [{**row, "caption": row["caption"] + " very" * 8_000_000} for row in rows]
    with pq.ParquetWriter(part, CAPTIONS, use_dictionary=False) as writer:
        for row in reversed(long):
            writer.write_table(pa.Table.from_pylist([row], CAPTIONS))
    samples = load_samples(config_of(folder), with_negatives=False)
    assert pc.sum(pc.binary_length(samples.caption)).as_py() > 2**31
    assert samples.sample_id.to_pylist() == sorted(row["sample_id"] for row in rows)
    assert samples.caption[5].as_py() == long[5]["caption"]
