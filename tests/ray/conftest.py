"""One local Ray for all modules of this folder.

A Ray of its own costs a module some ten seconds: the start, and workers that import torch again. A test that
needs another Ray (a job that is killed, a store's address in the workers' environment) runs a job as a
process, which starts one.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from degla_ray import ray_setup
from degla_ray.config import RayConfig


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Start a local Ray with 8 logical CPUs and a private folder; end it with the session."""
    ray_setup.start(RayConfig(address="local", num_cpus=8))
    yield
    ray_setup.stop()
