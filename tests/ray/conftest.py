"""One local Ray for each test module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from degla_ray import ray_setup
from degla_ray.config import RayConfig


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """A local Ray with 8 logical CPUs and a private folder, ended with the module."""
    ray_setup.start(RayConfig(address="local", num_cpus=8))
    yield
    ray_setup.stop()
