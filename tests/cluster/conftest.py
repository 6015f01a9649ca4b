"""One Ray head for each test module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ray_head import Head, running_head


@pytest.fixture(scope="module")
def ray_head() -> Iterator[Head]:
    """A Ray head with a dashboard, to submit jobs to."""
    with running_head() as head:
        yield head
