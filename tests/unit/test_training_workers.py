"""The trainer's step on two real workers under DistributedDataParallel equals that of one process."""

import multiprocessing
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_training_gradients import B, a_batch, step_of
from tiny_models import EFFICIENTNET, write_config
from torch import Tensor

from degla_ray.config import AdaptConfig, ModelConfig
from degla_ray.loader.loader import LocalBatch
from degla_ray.model.adapt import adapt
from degla_ray.model.build import build


def of_step(config: str, rank: int, workers: int) -> dict[str, Tensor]:
    """Return the gradients and buffers after two steps of a model with BatchNorm on this worker's rows."""
    torch.manual_seed(0)
    loaded = build(ModelConfig(name=config))
    adapt(loaded.model, AdaptConfig())
    step, all_rows = step_of(loaded, "degla", 1), a_batch(loaded, workers)
    own = slice(rank * B // workers, (rank + 1) * B // workers)
    rows = LocalBatch(
        step=0,
        images_BHWC=all_rows.images_BHWC[own],
        texts=(all_rows.texts[rank],),
        mask_BK=all_rows.mask_BK[own],
    )
    for seed in range(2):
        step(rows, seed=seed)
    found = {f"grad {n}": p.grad for n, p in loaded.model.named_parameters() if p.grad is not None}
    return found | dict(loaded.model.named_buffers())


def worker(rank: int, workers: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=workers)
    torch.save(of_step(f"{folder}/tiny.json", rank, workers), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow  # test_training_gradients has the same rule for micro-batches
def test_step_of_a_tower_with_batch_norm_is_the_same_on_two_workers(tmp_path: Path) -> None:
    config = write_config(tmp_path / "config", vision=EFFICIENTNET)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.set_forkserver_preload(["test_training_gradients", "torch._dynamo"])
    mp.start_processes(
        worker, (2, port, str(tmp_path / "config")), nprocs=2, start_method="forkserver", join=True
    )
    expected = of_step(config, 0, 1)
    assert any("running_var" in name for name in expected)
    largest = max(float(value.norm()) for name, value in expected.items() if name.startswith("grad"))
    for rank in range(2):
        found = torch.load(tmp_path / "config" / f"{rank}.pt", weights_only=True)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            if name.startswith("grad"):
                assert (found[name] - value).norm() <= 1e-4 * value.norm() + 1e-5 * largest, name
            else:
                assert torch.equal(found[name], value), name
