"""Let workers on several hosts meet by the address that Ray knows each host by.

gloo otherwise takes the address of the host's own name. Debian's installer leads that name to 127.0.1.1, and
workers on two such hosts wait for each other without an error or an end.
"""

from __future__ import annotations

import os
from typing import Any

import ray
from ray.train.torch.config import TorchConfig, _TorchBackend


class HostInterface(TorchConfig):
    """Settings of a process group that names its network interface."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(name_interface)
        super().on_start(worker_group, backend_config)


def name_interface() -> None:
    """Set the interface of gloo and NCCL to that of this node's address, unless the user has set one."""
    import psutil  # Ray brings it

    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if address in (each.address for each in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", name)
