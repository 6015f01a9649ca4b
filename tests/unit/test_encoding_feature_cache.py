"""Cached features: the same after reopening, and read from no file that is not needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from degla_ray.encoding import feature_cache
from degla_ray.encoding.feature_cache import FeatureCache, text_digest

FEATURES = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)
DIGESTS = [text_digest(f"text {number}") for number in range(40)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten files of four features, every third text truncated."""
    monkeypatch.setattr(feature_cache, "FLUSH_ROWS", 4)
    cache = FeatureCache(str(tmp_path), "model")
    for number, (digest, feature) in enumerate(zip(DIGESTS, FEATURES, strict=True)):
        cache.add(digest, feature, number % 3 == 0)
        np.testing.assert_array_equal(cache.get(digest), feature)
    assert len(list((tmp_path / "model").iterdir())) == 10
    return tmp_path


def test_feature_cache_reopened_has_every_feature_in_any_order(folder: Path) -> None:
    cache = FeatureCache(str(folder), "model")
    for number in np.random.default_rng(1).permutation(40):
        np.testing.assert_array_equal(cache.get(DIGESTS[number]), FEATURES[number])
    assert cache.get(text_digest("another")) is None
    assert cache.truncated == set(DIGESTS[::3])
    assert [digest.decode() for digest in cache.digests()] == sorted(DIGESTS)
    found = dict(cache.known([*DIGESTS[5:25], text_digest("another")]))
    assert found.keys() == set(DIGESTS[5:25])
    np.testing.assert_array_equal(found[DIGESTS[7]], FEATURES[7])
    cache.add(DIGESTS[0], FEATURES[1])
    assert len(cache) == 40


def test_feature_cache_reads_only_the_files_of_what_is_asked_for(folder: Path) -> None:
    cache = FeatureCache(str(folder), "model")
    for path in (folder / "model").iterdir():
        digests = pq.read_table(path)["digest"].to_pylist()
        if DIGESTS[0] not in digests:
            path.unlink()
    np.testing.assert_array_equal(cache.get(DIGESTS[0]), FEATURES[0])
    assert [digest for digest, _ in cache.known(DIGESTS[:1])] == DIGESTS[:1]
