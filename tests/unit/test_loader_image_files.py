"""Images are read exactly, from a disk and from an object store, through its local copies and without."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from degla_ray.config import DataConfig
from degla_ray.errors import DataError
from degla_ray.loader.image_files import CacheSpec, ImageFiles
from degla_ray.loader.samples import Samples, load_samples
from degla_ray.loader.shard_cache import ShardCache
from degla_ray.storage import Storage
from tests.training_inputs import write_inputs

LARGE = 2**30


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"), num_shards=3) / "prepared"


@pytest.fixture(scope="module")
def local(prepared: Path) -> Samples:
    return load_samples(DataConfig(prepared=str(prepared)), with_negatives=False)


@pytest.fixture
def remote(prepared: Path, s3_bucket: str) -> Samples:
    Storage(f"{s3_bucket}/prepared").upload(prepared)
    return load_samples(DataConfig(prepared=f"{s3_bucket}/prepared"), with_negatives=False)


def _cache(folder: Path, max_bytes: int = LARGE, whole_parts: bool = False) -> CacheSpec:
    return CacheSpec(folder=str(folder), max_bytes=max_bytes, whole_parts=whole_parts)


def _copies(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.part"))


@pytest.mark.parametrize(
    ("max_bytes", "whole_parts", "copies"), [(LARGE, False, 3), (1, False, 0), (1, True, 1)]
)
def test_images_from_a_store_equal_local_ones(
    local: Samples, remote: Samples, tmp_path: Path, max_bytes: int, whole_parts: bool, copies: int
) -> None:
    """A set larger than the cache is copied in parts only if the order keeps few of them in use."""
    numbers = [0, 29, 3, 0, 17]
    found = ImageFiles(remote, _cache(tmp_path, max_bytes, whole_parts)).read(numbers)
    assert found == ImageFiles(local, _cache(tmp_path)).read(numbers)
    assert len(_copies(tmp_path)) == copies


def test_images_damaged_copy_is_fetched_again(local: Samples, remote: Samples, tmp_path: Path) -> None:
    files = ImageFiles(remote, _cache(tmp_path))
    whole = files.read(range(30))
    for copy in _copies(tmp_path):
        copy.write_bytes(bytes(copy.stat().st_size))
    assert ImageFiles(remote, _cache(tmp_path)).read(range(30)) == whole


def test_images_damaged_part_names_the_image(prepared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "prepared"
    shutil.copytree(prepared, folder)
    samples = load_samples(DataConfig(prepared=str(folder)), with_negatives=False)
    part = folder / "images" / samples.parts[0]
    data = bytearray(part.read_bytes())
    data[int(samples.offset_I[0]) + 9] ^= 1
    part.write_bytes(data)
    with pytest.raises(DataError, match=r"image 'img\d+' in .*part-00000.*checksum"):
        ImageFiles(samples, _cache(tmp_path)).read([0])


def test_cache_least_recently_used_copies_are_removed_first(remote: Samples, tmp_path: Path) -> None:
    storage = Storage(remote.folder)
    sizes = {name: len(storage.read_bytes("images", name)) for name in remote.parts}
    cache = ShardCache(storage, str(tmp_path), max_bytes=sum(sizes.values()) - 1)
    first, second, third = remote.parts
    opened = cache.open("images", first)
    cache.open("images", second)
    cache.open("images", first)  # now the second is the oldest
    cache.open("images", third)
    left = {path.stat().st_size for path in _copies(tmp_path)}
    assert left == {sizes[first], sizes[third]}
    cache.forget("images", first)
    with open(opened, "rb") as file:  # a copy in use outlives its removal
        assert file.read() == storage.read_bytes("images", first)


def test_images_prepared_without_an_index_are_refused(prepared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "prepared"
    shutil.copytree(prepared, folder)
    shutil.rmtree(folder / "image_index")
    with pytest.raises(DataError, match=r"image_index.*a folder that this version prepared"):
        load_samples(DataConfig(prepared=str(folder)), with_negatives=False)
