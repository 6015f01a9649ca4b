"""Processes under DistributedDataParallel (gloo, NCCL): values and every gradient equal one process's."""

import json
import math
import multiprocessing
import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import profile

from degla_ray.config import ObjectiveConfig
from degla_ray.objectives import Features, losses

N, K, D_IN, D = 8, 3, 6, 5
CPU = torch.device("cpu")
CONFIGS = {
    "clip": ObjectiveConfig(name="clip"),
    "degla": ObjectiveConfig(lambda_igc=0.4, lambda_tgc=0.3),
    "degla_released": ObjectiveConfig(
        lambda_tgc=0.5, lambda_distill=0.01, tgc_negatives="released", distill_reduction="sum"
    ),
    "degla_no_negatives": ObjectiveConfig(negatives_per_caption=0),
}


class Towers(nn.Module):
    """Two linear towers and a learned logit_scale."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = nn.Linear(D_IN, D), nn.Linear(D_IN, D)
        self.logit_scale = nn.Parameter(torch.tensor(2.3))

    def forward(self, rows: dict[str, Tensor], mask_BK: Tensor) -> tuple[Features, Tensor]:
        features = Features(
            img_BD=F.normalize(self.image(rows["img"]), dim=-1),
            txt_BD=F.normalize(self.text(rows["txt"]), dim=-1),
            neg_BKD=F.normalize(self.text(rows["neg"]), dim=-1),
            neg_mask_BK=mask_BK,
            teacher_img_BD=F.normalize(rows["img"][..., :D], dim=-1),
            teacher_txt_BD=F.normalize(rows["txt"][..., :D], dim=-1),
            teacher_neg_BKD=F.normalize(rows["neg"][..., :D], dim=-1),
        )
        return features, self.logit_scale.exp()


def global_batch(name: str) -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(1)
    k = K if CONFIGS[name].negatives_per_caption != 0 else 0
    rows = {
        "img": torch.randn(N, D_IN, generator=generator),
        "txt": torch.randn(N, D_IN, generator=generator),
        "neg": torch.randn(N, k, D_IN, generator=generator),
    }
    mask_NK = torch.rand(N, k, generator=generator) < 0.6
    mask_NK[2:4] = False  # one of four workers has no negative at all
    return rows, mask_NK


def step(
    model: nn.Module, name: str, rank: int, workers: int, device: torch.device = CPU
) -> dict[str, Tensor]:
    """Loss terms (averaged over the workers) and gradients of one step on this rank's rows, on the CPU."""
    rows, mask_NK = global_batch(name)
    own = slice(rank * N // workers, (rank + 1) * N // workers)
    model.zero_grad()
    mine = {key: value[own].to(device) for key, value in rows.items()}
    features, scale = model(mine, mask_NK[own].to(device))
    terms = losses(features, scale, CONFIGS[name])
    terms["loss"].backward()
    results = {key: value.detach().clone() for key, value in terms.items()}
    if workers > 1:
        for value in results.values():
            dist.all_reduce(value)
            value /= workers
    plain = model.module if hasattr(model, "module") else model
    results |= {f"grad {key}": p.grad.clone() for key, p in plain.named_parameters()}
    return {key: value.cpu() for key, value in results.items()}


def bytes_sent(rank: int, workers: int, name: str) -> dict[str, int]:
    """Bytes that this worker hands to each kind of collective in one forward and backward, without DDP."""
    model, sent = Towers(), {}
    rows, mask_NK = global_batch(name)
    own = slice(rank * N // workers, (rank + 1) * N // workers)
    with profile(record_shapes=True) as recorded:
        features, scale = model({key: value[own] for key, value in rows.items()}, mask_NK[own])
        losses(features, scale, CONFIGS[name])["loss"].backward()
    for event in recorded.events():
        if event.name.startswith("gloo:"):
            numbers = sum(math.prod(shape) for shape in event.input_shapes)
            sent[event.name] = sent.get(event.name, 0) + 4 * numbers
    return sent


def worker(rank: int, workers: int, port: int, folder: str, backend: str) -> None:
    torch.set_num_threads(1)
    device = torch.device("cuda", rank) if backend == "nccl" else CPU
    if backend == "nccl":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=workers)
    model = nn.parallel.DistributedDataParallel(Towers().to(device))
    results = {name: step(model, name, rank, workers, device) for name in CONFIGS}
    torch.save(results, os.path.join(folder, f"{workers}-{rank}.pt"))
    if backend == "gloo":
        with open(os.path.join(folder, f"{workers}-{rank}.json"), "w") as file:
            json.dump({name: bytes_sent(rank, workers, name) for name in CONFIGS}, file)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def single():
    return {name: step(Towers(), name, 0, 1) for name in CONFIGS}


@pytest.mark.parametrize(
    ("workers", "backend"),
    [
        (2, "gloo"),
        pytest.param(4, "gloo", marks=pytest.mark.slow),
        pytest.param(2, "nccl", marks=pytest.mark.gpu),
    ],
)
def test_losses_under_ddp_equal_the_single_process_with_every_gradient(workers, backend, single, tmp_path):
    if backend == "nccl" and torch.cuda.device_count() < workers:
        pytest.skip(f"NCCL needs {workers} CUDA devices, found {torch.cuda.device_count()}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # A server forks the workers with torch imported, and what DDP imports at its first use (1.5 s each).
    multiprocessing.set_forkserver_preload(["degla_ray.objectives", "torch.multiprocessing", "torch._dynamo"])
    mp.start_processes(
        worker, (workers, port, str(tmp_path), backend), nprocs=workers, start_method="forkserver"
    )
    for rank in range(workers):
        results = torch.load(tmp_path / f"{workers}-{rank}.pt", weights_only=True)
        differences = {}
        for name, expected in single.items():
            assert results[name].keys() == expected.keys()
            for key, value in expected.items():
                assert value.isfinite().all()
                assert value.abs().max() > 0 or (key in ("igc", "tgc") and name == "degla_no_negatives")
                difference = (results[name][key] - value).norm() / value.norm().clamp(min=1e-12)
                differences[f"{name} {key}"] = difference.item()
        too_far = {key: difference for key, difference in differences.items() if difference > 1e-5}
        assert not too_far, json.dumps(too_far, indent=1)
        if backend == "nccl":
            continue
        sent = json.loads((tmp_path / f"{workers}-{rank}.json").read_text())
        for name in CONFIGS:
            features_of_base = 2 + global_batch(name)[1].shape[1] * (name != "clip")
            of_own_rows = N // workers * features_of_base * D * torch.float32.itemsize
            # Each feature is sent once, and the backward's reduce-scatter is gloo's all-reduce of all rows.
            assert of_own_rows <= sum(sent[name].values()) <= (1 + workers) * of_own_rows
