"""Let the workers of a local Ray meet by a file, because torch's port listens on every network interface.

Ray Train starts a TCPStore on the first worker: it has no password and binds to all addresses. On one machine
a FileStore in Ray's private folder does the same without a port. Workers on several hosts need the port.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.train.torch.config import (
    TorchConfig,
    _set_torch_distributed_env_vars,
    _setup_torch_process_group,
    _TorchBackend,
)

from degla_ray import ray_setup
from degla_ray.training.host_interface import HostInterface


def torch_config() -> TorchConfig:
    """Return how the workers of this cluster meet."""
    folder = ray_setup.loopback_folder()
    return HostInterface() if folder is None else FileRendezvous(folder=str(folder))


@dataclass
class FileRendezvous(TorchConfig):
    """Settings of a process group whose workers are all on this machine.

    Attributes:
        folder: private folder; each start of the workers takes a new file in it.
    """

    folder: str = ""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _FileBackend


class _FileBackend(_TorchBackend):
    """Ray 2.60's backend with a file in place of the port."""

    def on_start(self, worker_group: Any, backend_config: FileRendezvous) -> None:
        worker_group.execute(_set_torch_distributed_env_vars)
        place = Path(backend_config.folder, f"rendezvous-{uuid.uuid4().hex}").as_uri()
        backend = "nccl" if worker_group.get_resources_per_worker().get("GPU") else "gloo"
        started = [
            worker_group.execute_single_async(
                rank,
                _setup_torch_process_group,
                backend=backend_config.backend or backend,
                world_rank=rank,
                world_size=len(worker_group),
                init_method=place,
                timeout_s=backend_config.timeout_s,
            )
            for rank in range(len(worker_group))
        ]
        ray.get(started)
