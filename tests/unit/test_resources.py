"""Which needs a cluster meets, and what is said of those that it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from degla_ray import ray_setup, resources
from degla_ray.config import NegativesConfig, VLLMConfig
from degla_ray.errors import SettingError
from degla_ray.negatives.llm.engines.vllm_engine import VLLMEngine
from degla_ray.resources import Need, check, fitting, node_types

CPU_NODE, GPU_NODE = {"CPU": 16.0}, {"CPU": 8.0, "GPU": 4.0}
CLUSTER = """
head_node_type: head
available_node_types:
  head: {resources: {CPU: 4}}
  gpu_worker: {max_workers: 2, resources: {CPU: 8, GPU: 4}}
  cpu_worker: {max_workers: 3, resources: {CPU: 16}}
  given_up: {max_workers: 0, resources: {CPU: 64, GPU: 8}}
"""


@pytest.fixture
def growing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cluster without nodes, whose autoscaler was configured as `ray up` does it."""
    file = tmp_path / "ray_bootstrap_config.yaml"
    file.write_text(CLUSTER)
    monkeypatch.setattr(resources, "BOOTSTRAP", str(file))
    present(monkeypatch, local=False)


def present(monkeypatch: pytest.MonkeyPatch, *nodes: dict[str, float], local: bool) -> None:
    monkeypatch.setattr(resources, "_nodes", lambda: [dict(node) for node in nodes])
    monkeypatch.setattr(ray_setup, "is_local", lambda: local)


def workers(count: int, **each: float) -> Need:
    return Need(
        setting="num_workers", value=count, unit=[each, {"CPU": 1.0}, {"CPU": 1.0}], count=count, wanted=count
    )


def test_need_is_met_where_every_process_finds_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four workers with a GPU and two decoders each: the decoders leave the CPUs beside the GPUs to them."""
    need = workers(4, CPU=2.0, GPU=1.0)
    present(monkeypatch, GPU_NODE, CPU_NODE, local=True)
    check([need])
    assert fitting(need) == 4
    present(monkeypatch, GPU_NODE, local=True)
    assert fitting(need) == 2
    with pytest.raises(
        SettingError, match=r"num_workers: found 4; expected at most 2: each takes 4 CPUs, 1 GPU"
    ):
        check([need])


def test_need_of_one_process_is_not_met_by_two_nodes_together(monkeypatch: pytest.MonkeyPatch) -> None:
    present(monkeypatch, CPU_NODE, CPU_NODE, local=True)
    with pytest.raises(SettingError, match="num_workers: found 1; expected less: it takes 22 CPUs"):
        check([workers(1, CPU=20.0)])


def test_local_ray_refuses_a_gpu_that_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    present(monkeypatch, CPU_NODE, local=True)
    with pytest.raises(SettingError, match=r"compute\.use_gpu: found True; expected a cluster with a GPU"):
        check([workers(1, CPU=1.0, GPU=1.0)])


@pytest.mark.usefixtures("growing")
def test_growing_cluster_refuses_only_what_its_node_types_cannot_bring() -> None:
    assert [(kind.name, kind.most) for kind in node_types()] == [("gpu_worker", 2), ("cpu_worker", 3)]
    check([workers(8, CPU=2.0, GPU=1.0)])
    with pytest.raises(SettingError, match="expected at most 8: each takes 3 CPUs, 1 GPU"):
        check([workers(9, CPU=1.0, GPU=1.0)])


@pytest.mark.usefixtures("growing")
def test_engine_of_more_gpus_than_a_node_has_is_refused_before_any_node_starts() -> None:
    engine = VLLMEngine(config_of(tensor_parallel_size=4))
    check(engine.needs())
    wide = VLLMEngine(config_of(tensor_parallel_size=8))
    with pytest.raises(
        SettingError, match=r"vllm.tensor_parallel_size: found 8; .*gpu_worker of 8 CPUs, 4 GPUs"
    ):
        check(wide.needs())


def test_device_auto_is_not_decided_by_a_cluster_without_nodes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(resources, "node_types", list)
    present(monkeypatch, local=False)
    with pytest.raises(SettingError, match=r"vllm.device: found 'auto'; expected cuda or cpu"):
        VLLMEngine(config_of()).needs()
    assert VLLMEngine(config_of(device="cuda")).needs()[0].total("GPU") == 1
    assert VLLMEngine(config_of(device="cpu")).needs()[0].total("GPU") == 0
    present(monkeypatch, CPU_NODE, local=False)
    assert VLLMEngine(config_of()).needs()[0].total("GPU") == 0


def config_of(**vllm: object) -> NegativesConfig:
    return NegativesConfig(prepared="p", output="o", engine="vllm", vllm=VLLMConfig(**vllm))
