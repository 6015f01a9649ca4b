"""The pool of encoding actors: how many, on which device and in which precision."""

from __future__ import annotations

from dataclasses import dataclass

from degla_ray.devices import Devices, Precision
from degla_ray.resources import Need

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

    def need(self) -> Need:
        """Return what the actors reserve; one of them suffices."""
        each = {"CPU": self.cpus_per_actor} | ({"GPU": 1.0} if self.use_gpu else {})
        return Need(setting="compute.cpus", value=self.cpus_per_actor, unit=[each], wanted=self.num_actors)

    def devices(self, actors: int) -> Devices:
        """Return the devices of so many of the actors."""
        return Devices(
            process="actor",
            setting="num_actors",
            count=actors,
            use_gpu=self.use_gpu,
            precision=self.precision,
        )
