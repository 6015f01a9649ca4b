"""profile.steps: a trace of the steps that were asked for, and of no others."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from degla_ray.config import ProfileConfig
from degla_ray.errors import SettingError
from degla_ray.loader.loader import LocalBatch
from degla_ray.storage import Storage
from degla_ray.training.profiler import file_name, profiled


def test_profile_has_the_operations_of_its_steps_only_and_every_batch_arrives(tmp_path: Path) -> None:
    empty = torch.zeros(0)
    batches = [LocalBatch(step=s, images_BHWC=empty, texts=(), mask_BK=empty) for s in range(6)]
    operations = ["aten::sin", "aten::cos", "aten::tan", "aten::exp", "aten::erf", "aten::log1p"]
    steps, seen = (3, 4), []
    for batch in profiled(batches, steps, Storage(str(tmp_path))):
        getattr(torch, operations[batch.step].removeprefix("aten::"))(torch.ones(2))
        seen.append(batch.step)
    assert seen == list(range(6))
    events = json.loads(gzip.decompress((tmp_path / file_name(steps)).read_bytes()))["traceEvents"]
    assert {e["name"] for e in events if "name" in e} & set(operations) == {"aten::tan", "aten::exp"}


@pytest.mark.parametrize("steps", ["10", "0:3", "15:10", "10-15", "a:b"])
def test_profile_steps_that_are_no_range_are_refused(steps: str) -> None:
    with pytest.raises(SettingError, match=rf"profile\.steps: found '{steps}'; .* such as 10:15"):
        ProfileConfig(steps=steps)
    assert ProfileConfig(steps="10:15").range == (10, 15)
    assert ProfileConfig().range is None
