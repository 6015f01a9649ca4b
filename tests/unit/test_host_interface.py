"""Workers meet by the interface of the address that Ray knows the host by."""

from __future__ import annotations

import os

import psutil
import pytest
import ray

from degla_ray.training.host_interface import name_interface


def test_host_interface_is_that_of_rays_address_unless_the_user_set_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")  # so that it is removed again at the end
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    name_interface()
    addresses = [each.address for each in psutil.net_if_addrs()[os.environ["GLOO_SOCKET_IFNAME"]]]
    assert ray.util.get_node_ip_address() in addresses
    assert os.environ["NCCL_SOCKET_IFNAME"] == "ib0"
