"""The precision that settings mean on a cluster, and what the console says of its GPUs."""

from __future__ import annotations

from typing import Any

import pytest

from degla_ray.config import (
    ComputeConfig,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    RayConfig,
    TrainComputeConfig,
    TrainConfig,
)
from degla_ray.devices import Devices, auto_precision, resolve_precision
from degla_ray.training.run_identity import with_precision


@pytest.mark.parametrize(
    ("use_gpu", "precision", "expected"),
    [
        (False, "auto", "fp32"),
        (False, "fp32", "fp32"),
        (False, "bf16", "bf16"),
        (True, "fp32", "tf32"),
        (True, "fp16", "fp16"),
    ],
)
def test_resolve_precision_names_the_arithmetic(use_gpu: bool, precision: str, expected: str) -> None:
    compute = ComputeConfig(use_gpu=use_gpu, precision=precision)  # type: ignore[arg-type]
    assert resolve_precision(compute, RayConfig()) == expected


def test_auto_precision_is_bf16_where_every_gpu_has_it() -> None:
    hopper = {"CPU": 16.0, "GPU": 8.0, "accelerator_type:H100": 1.0}
    assert auto_precision(hopper) == "bf16"
    assert auto_precision({**hopper, "accelerator_type:V100": 1.0}) == "tf32"


def test_devices_describe_precision_and_idle_gpus() -> None:
    on_cpus = Devices(process="worker", setting="num_workers", count=2, use_gpu=False, precision="fp32")
    assert on_cpus.describe(0) == "2 CPU workers, fp32"
    assert on_cpus.describe(1) == "2 CPU workers, fp32; 1 GPU stands idle without compute.use_gpu true"
    on_gpus = Devices(process="actor", setting="num_actors", count=1, use_gpu=True, precision="bf16")
    assert on_gpus.describe(8) == "1 GPU actor, bf16; 7 GPUs stand idle without num_actors 8"
    assert on_gpus.describe(1) == "1 GPU actor, bf16"


@pytest.mark.parametrize(
    ("compute", "expected"),
    [
        ({}, "fp32"),
        ({"precision": "bf16"}, "bf16"),
        ({"precision": "fp32", "use_gpu": True}, "fp32"),  # TF32 is no autocast type
    ],
)
def test_training_gets_an_autocast_type(compute: dict[str, Any], expected: str) -> None:
    config = TrainConfig(
        name="x",
        data=DataConfig(prepared="p"),
        model=ModelConfig(name="m"),
        objective=ObjectiveConfig(name="clip"),
        compute=TrainComputeConfig(**compute),
    )
    found = with_precision(config)
    assert found.compute.precision == expected
    assert resolve_precision(found.compute, found.ray) == resolve_precision(config.compute, config.ray)
