"""The pool of encoding actors: how many, on which device and in which precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from degla_ray import ray_setup
from degla_ray.devices import Devices, Precision
from degla_ray.errors import SettingError

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

    def devices(self, actors: int) -> Devices:
        """Return the devices of so many of the actors."""
        return Devices(
            process="actor",
            setting="num_actors",
            count=actors,
            use_gpu=self.use_gpu,
            precision=self.precision,
        )
