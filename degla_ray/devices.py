"""Where a stage's models compute, and in which precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from degla_ray import ray_setup, resources
from degla_ray.config import ComputeConfig, RayConfig

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
"""Arithmetic of the towers. `tf32` is fp32 on a GPU, whose matrix multiplications round their factors to
TF32; `bf16` and `fp16` are autocast types."""
WITHOUT_BF16 = ("K80", "P4", "P100", "V100", "T4")
"""Accelerator types, as Ray names them, that have no bf16. Any other GPU counts as one that has it."""
_ACCELERATOR = "accelerator_type:"


@dataclass(frozen=True, kw_only=True)
class Devices:
    """The processes of a stage that hold a model.

    Attributes:
        process: what they are called, such as `actor`.
        setting: setting of their number.
        count: their number.
        use_gpu: whether each has a GPU.
        precision: arithmetic of the towers.
    """

    process: str
    setting: str
    count: int
    use_gpu: bool
    precision: Precision

    def describe(self, free_gpus: float) -> str:
        """Return processes, devices and precision; also GPUs that stand idle and the setting that uses them.

        Args:
            free_gpus: GPUs that nothing used before this stage.
        """
        device = "GPU" if self.use_gpu else "CPU"
        line = f"{self.count} {device} {self.process}{'s' if self.count > 1 else ''}, {self.precision}"
        idle = int(free_gpus) - (self.count if self.use_gpu else 0)
        if idle <= 0:
            return line
        setting = f"{self.setting} {self.count + idle}" if self.use_gpu else "compute.use_gpu true"
        return f"{line}; {idle} {'GPUs stand' if idle > 1 else 'GPU stands'} idle without {setting}"


def free_gpus() -> float:
    """Return the GPUs of the running cluster that nothing holds."""
    import ray

    return float(ray.available_resources().get("GPU", 0))


def resolve_precision(compute: ComputeConfig, ray: RayConfig) -> Precision:
    """Return the precision that `compute` asks for; `auto` on a GPU starts Ray to see the cluster's GPUs."""
    if compute.precision == "bf16" or compute.precision == "fp16":
        return compute.precision
    if not compute.use_gpu:
        return "fp32"
    if compute.precision == "fp32":
        return "tf32"
    import ray as ray_library

    ray_setup.start(ray)
    # A GPU must be there to decide; a cluster may still have to start its first.
    resources.require(ray, [resources.Need(setting="compute.use_gpu", value=True, unit=[{"GPU": 1.0}])])
    return auto_precision(ray_library.cluster_resources())


def auto_precision(present: Mapping[str, float]) -> Precision:
    """Return bf16 if every GPU of the cluster has it, otherwise tf32."""
    types = {name.removeprefix(_ACCELERATOR) for name in present if name.startswith(_ACCELERATOR)}
    return "tf32" if types & set(WITHOUT_BF16) else "bf16"
