"""The pool of encoding actors: how many, on which device and in which precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from degla_ray import ray_setup
from degla_ray.config import ComputeConfig, RayConfig
from degla_ray.errors import SettingError

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
"""Arithmetic of the towers. `tf32` is fp32 on a GPU, whose matrix multiplications round their factors to
TF32; `bf16` and `fp16` are autocast types."""
WITHOUT_BF16 = ("K80", "P4", "P100", "V100", "T4")
"""Accelerator types, as Ray names them, that have no bf16. Any other GPU counts as one that has it."""
_ACCELERATOR = "accelerator_type:"
STALL_S = 1200.0


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Size and resources of the actor pool."""

    num_actors: int
    cpus_per_actor: float
    use_gpu: bool
    batch_size: int
    """Images or texts per batch."""
    precision: Precision = "fp32"
    stall_seconds: float = STALL_S
    """Seconds without a finished batch after which encoding fails."""

    def fitting(self, resources: Mapping[str, float]) -> int:
        """Return how many of the actors fit a cluster with these resources, at least one.

        Raises:
            SettingError: the cluster cannot host a single actor.
        """
        if self.use_gpu and resources.get("GPU", 0) < 1:
            raise SettingError("compute.use_gpu", True, "a cluster with a GPU, or false")
        ray_setup.require_cpus("compute.cpus", self.cpus_per_actor, each=self.cpus_per_actor)
        fitting = [self.num_actors, int(resources["CPU"] / self.cpus_per_actor)]
        return min(*fitting, int(resources["GPU"])) if self.use_gpu else min(fitting)

    def describe(self, actors: int, resources: Mapping[str, float]) -> str:
        """Return one line: the devices, the precision, and any GPUs that stay idle with the setting to use
        them."""
        device = "GPU" if self.use_gpu else "CPU"
        line = f"encoding: {actors} {device} actor{'s' if actors > 1 else ''}, {self.precision}"
        idle = int(resources.get("GPU", 0)) - (actors if self.use_gpu else 0)
        if idle <= 0:
            return line
        setting = f"num_actors {actors + idle}" if self.use_gpu else "compute.use_gpu true"
        return f"{line}; {idle} {'GPUs stand' if idle > 1 else 'GPU stands'} idle without {setting}"


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
    return auto_precision(ray_library.cluster_resources())


def auto_precision(resources: Mapping[str, float]) -> Precision:
    """Return bf16 if every GPU of the cluster has it, otherwise tf32."""
    types = {name.removeprefix(_ACCELERATOR) for name in resources if name.startswith(_ACCELERATOR)}
    return "tf32" if types & set(WITHOUT_BF16) else "bf16"
