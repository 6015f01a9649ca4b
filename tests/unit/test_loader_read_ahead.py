"""What later steps need is fetched from a store before they are asked for."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.slow_store import Store, slow_store
from degla_ray.config import DataConfig
from degla_ray.loader.decode import BatchReader, BatchSpec
from degla_ray.loader.image_files import CacheSpec
from degla_ray.loader.order import BatchOrder
from degla_ray.loader.samples import Samples, Texts, load_samples
from degla_ray.storage import Storage
from tests.training_inputs import write_inputs

IMAGES, PARTS = 30, 6
SETTLED_S = 0.3


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with slow_store() as running:
        yield running


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    inputs = write_inputs(tmp_path_factory.mktemp("inputs"), images=IMAGES, num_shards=PARTS)
    return inputs / "prepared"


@pytest.fixture(scope="module")
def remote(prepared: Path, store: Store) -> Samples:
    Storage(f"{store.uri}/prepared").upload(prepared)
    return _samples(f"{store.uri}/prepared")


def _samples(folder: str) -> Samples:
    samples = load_samples(DataConfig(prepared=folder), with_negatives=False)
    return dataclasses.replace(samples, texts=Texts.of(np.ones((len(samples), 4), np.int32), padding=0))


def _reader(samples: Samples, cache: CacheSpec) -> BatchReader:
    """Return a reader whose steps are one image each, so that a step needs one part."""
    spec = BatchSpec(
        order=BatchOrder(seed=0, num_rows=len(samples), batch_size=1),
        rank=0,
        world_size=1,
        negatives=0,
        size=(32, 32),
        interpolation="bicubic",
        crop_scale_min=0.9,
        cache=cache,
    )
    return BatchReader(samples, spec)


def _cache(folder: Path, max_bytes: int, whole_parts: bool = False) -> CacheSpec:
    return CacheSpec(folder=str(folder), max_bytes=max_bytes, whole_parts=whole_parts)


def _requests(store: Store) -> int:
    """Return the store's requests once no more arrive."""
    before = -1
    while before != (now := store.requests()):
        before = now
        time.sleep(SETTLED_S)
    return now


@pytest.mark.parametrize("max_bytes", [2**30, 1], ids=["whole parts", "single images"])
def test_read_ahead_asks_the_store_before_the_step_that_needs_it(
    prepared: Path, remote: Samples, store: Store, tmp_path: Path, max_bytes: int
) -> None:
    reader = _reader(remote, _cache(tmp_path, max_bytes))
    reader.read(0, range(1, len(remote)))
    asked = _requests(store)
    found = reader.read(1)
    assert _requests(store) == asked
    local = _reader(_samples(str(prepared)), _cache(tmp_path, max_bytes)).read(1)
    assert np.array_equal(found.images_BHWC, local.images_BHWC)


def test_read_ahead_takes_at_most_half_of_the_cache(remote: Samples, store: Store, tmp_path: Path) -> None:
    total, copies = int(remote.length_I.sum()), []
    for max_bytes in (1, total, 2 * total):
        folder = tmp_path / str(max_bytes)
        _reader(remote, _cache(folder, max_bytes, whole_parts=True)).read(0, range(1, len(remote)))
        _requests(store)
        copies.append(len(list(folder.glob("*.part"))))
    none, half, everything = copies
    assert (none, everything) == (1, PARTS)
    assert none < half < everything
