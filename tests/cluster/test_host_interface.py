"""Two hosts whose own names lead to 127.0.1.1, as Debian leaves them, meet in one process group."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hosts import network

pytestmark = [pytest.mark.network_namespace, pytest.mark.slow, pytest.mark.timeout(200)]

WORKER = """
import sys
import torch
import torch.distributed as dist
from degla_ray.training.host_interface import name_interface

name_interface()
dist.init_process_group("gloo", init_method="tcp://10.77.0.1:29555", rank=int(sys.argv[1]), world_size=2)
ones = torch.ones(1)
dist.all_reduce(ones)
print("sum", ones.item())
"""


def test_host_interface_two_hosts_named_as_loopback_meet(repo: Path, tmp_path: Path) -> None:
    with network(tmp_path / "hosts", ["one", "two"]) as hosts:
        workers = [
            subprocess.Popen(
                host.command(sys.executable, "-c", WORKER, str(rank)),
                env=host.env(PYTHONPATH=str(repo)),
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank, host in enumerate(hosts)
        ]
        printed = [worker.communicate(timeout=120)[0] for worker in workers]
    assert printed == ["sum 2.0\n"] * 2
