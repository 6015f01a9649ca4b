"""Load a model while Ray starts and worker processes import what encoding needs.

Importing torch and open_clip takes 6 s of a core, first in the driver and then in each actor. Done one after
the other, with the start of Ray between them, that is most of a small evaluation's time.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from degla_ray import ray_setup
from degla_ray.config import ComputeConfig, RayConfig

if TYPE_CHECKING:
    from degla_ray.model.loaded import LoadedModel

_TOWERS = ("degla_ray.model.build", "degla_ray.model.encode", "degla_ray.encoding.actor")
_WAIT_S = 30.0


def load_beside_ray(
    load: Callable[[], LoadedModel], ray: RayConfig, compute: ComputeConfig, actors: int
) -> LoadedModel:
    """Return the model, with Ray running and worker processes ready to become actors.

    Only a local Ray gets such processes, and only for actors on CPUs: elsewhere nothing says which process
    an actor will get.

    Args:
        load: loads the model.
        ray: where Ray runs.
        compute: hardware of an actor.
        actors: actors that will encode.
    """
    importing = threading.Thread(target=_import_towers, daemon=True)
    importing.start()
    ray_setup.start(ray)
    import ray as ray_library

    ready = []
    if ray_setup.is_local() and not compute.use_gpu:
        # One core stays with this process. Ray gives an actor the process that was idle last.
        processes = min(actors, max(1, (os.cpu_count() or 1) - 1))
        ready = [ray_library.remote(num_cpus=1)(_import_towers).remote() for _ in range(processes)]
    importing.join()
    loaded = load()
    if ready:
        ray_library.wait(ready, num_returns=len(ready), timeout=_WAIT_S)
    return loaded


def _import_towers() -> None:
    for module in _TOWERS:
        importlib.import_module(module)
