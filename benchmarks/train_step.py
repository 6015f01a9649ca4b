#!/usr/bin/env python
"""Compare our training step with one that computes what the released code does: time and peak memory.

    python benchmarks/train_step.py --batch 16 --steps 5

Both train the same ViT-B-32-quickgelu from the same random weights on the same batch with K = 4 negatives,
and their losses must agree before the steps are timed. The reference computes 77 tokens of every text and
N x N(1+K) logits with masks for both contrasts, and updates the teacher parameter by parameter. Ours is the
trainer's own step. Times are medians of alternating steps in one process; memory is the peak (resident on a
CPU, allocated on a GPU) of a separate process for each. Both use the allocator settings that the trainer sets
for its CPU workers.
"""

from __future__ import annotations

import argparse
import copy
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from degla_ray import ray_setup
from degla_ray.config import (
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TeacherConfig,
    TrainComputeConfig,
    TrainConfig,
)
from degla_ray.loader.decode import HostBatch, tower_input
from degla_ray.loader.loader import LocalBatch, local_batch
from degla_ray.loader.samples import Texts
from degla_ray.model import LoadedModel, Teacher
from degla_ray.model.build import build
from degla_ray.model.encode import OpenClipModel
from degla_ray.model.packing import GPU_TOKEN_MULTIPLE, TextEnd
from degla_ray.training.optimizer import build_optimizer
from degla_ray.training.state import TrainState
from degla_ray.training.step import TrainStep

K = 4


@dataclass(frozen=True, kw_only=True)
class Work:
    """One batch, as our step and the released one take it."""

    batch: LocalBatch
    tokens_XL: Tensor


Step = Callable[[Work], dict[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="ViT-B-32-quickgelu", help="open_clip name")
    parser.add_argument("--batch", type=int, default=16, help="samples per step (default: %(default)s)")
    parser.add_argument("--micro_batches", type=int, default=1, help="of our step (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="timed steps per side (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="torch device (default: %(default)s)")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"], help="autocast type")
    options = parser.parse_args()
    _set_allocator()
    Benchmark(options).run()


@dataclass(frozen=True)
class Benchmark:
    options: argparse.Namespace

    def run(self) -> None:
        console = Console()
        peak = {name: self._peak_gib(name) for name in SIDES}
        loaded, batch = self.loaded(), self.batch()
        flops, matmul = self.useful_flops(loaded, batch), self.matmul_flops_per_s()
        steps = {
            name: side(copy.deepcopy(loaded.model), loaded.preprocess_cfg, self.options)
            for name, side in SIDES.items()
        }
        first = {name: step(batch) for name, step in steps.items()}  # also warms up
        for term, value in first["reference"].items():
            ours = first["ours"][term]
            tolerance = 1e-4 if self.options.precision == "fp32" else 2e-2
            if not math.isclose(ours, value, rel_tol=tolerance):
                sys.exit(f"{term} differs: reference {value}, ours {ours}")
        console.print(f"losses agree: {', '.join(f'{k} {v:.4f}' for k, v in first['ours'].items())}")
        times: dict[str, list[float]] = {name: [] for name in SIDES}
        for _ in range(self.options.steps):
            for name, step in steps.items():
                times[name].append(self._seconds(step, batch))
        self._report(console, {n: statistics.median(t) for n, t in times.items()}, peak, flops / matmul)

    def _report(
        self, console: Console, seconds: dict[str, float], peak: dict[str, float], limit_s: float
    ) -> None:
        o = self.options
        table = Table(title=f"{o.model}, batch {o.batch}, K = {K}, {o.precision} on {o.device}")
        for column in ("step", "s", "samples/s", "peak GiB", "of the useful-FLOP limit"):
            table.add_column(column, justify="left" if column == "step" else "right")
        for name, s in seconds.items():
            table.add_row(name, f"{s:.2f}", f"{o.batch / s:.2f}", f"{peak[name]:.2f}", f"{limit_s / s:.0%}")
        faster, smaller = seconds["reference"] / seconds["ours"], peak["ours"] / peak["reference"]
        table.add_row("ratio", "", f"{faster:.2f} x", f"{smaller:.2f} x", "")
        console.print(table)

    def _seconds(self, step: Step, batch: Work) -> float:
        self.synchronise()
        started = time.perf_counter()
        step(batch)
        self.synchronise()
        return time.perf_counter() - started

    def synchronise(self) -> None:
        if self.options.device != "cpu":
            torch.cuda.synchronize()

    def _peak_gib(self, name: str) -> float:
        """Return the peak memory in GiB of a process with two steps; the second has the optimizer's state."""
        context = multiprocessing.get_context("spawn")
        results = context.Queue()
        child = context.Process(target=_measure_peak, args=(name, self.options, results))
        child.start()
        peak = results.get()
        child.join()
        return peak

    def loaded(self) -> LoadedModel:
        torch.manual_seed(0)
        return build(ModelConfig(name=self.options.model))

    def batch(self) -> Work:
        """Return a batch of random images, and random tokens with about the lengths of COCO's captions.

        For comparison, SugarCrepe's captions have 13.9 tokens on average, with start and end token, and a
        standard deviation of 2.7.
        """
        rng, B = np.random.default_rng(0), self.options.batch
        lengths = 10 + rng.gamma(2.2, 1.9, size=B * (1 + K)).astype(int)
        tokens = np.zeros((B * (1 + K), 77), dtype=np.int32)
        for row, length in zip(tokens, np.minimum(lengths, 77), strict=True):
            row[:length] = [49406, *rng.integers(1, 49000, length - 2), 49407]
        images = rng.integers(0, 256, (B, 224, 224, 3), dtype=np.uint8)
        mask_BK, on_gpu = np.ones((B, K), bool), self.options.device != "cpu"
        multiple = GPU_TOKEN_MULTIPLE if on_gpu else 1
        captions_and_negatives = tokens[:B], tokens[B:].reshape(B, K, -1)
        texts = []
        for mask_bK, *parts in zip(
            *(np.split(a, self.options.micro_batches) for a in (mask_BK, *captions_and_negatives)),
            strict=True,
        ):
            own = Texts.of(np.concatenate([part.reshape(-1, 77) for part in parts]), padding=0)
            texts.append(tower_input(own, mask_bK, TextEnd(token=None), multiple))
        host = HostBatch(images_BHWC=images, texts=tuple(texts), mask_BK=mask_BK)
        device = torch.device(self.options.device)
        return Work(batch=local_batch(0, host, device), tokens_XL=torch.from_numpy(tokens).long().to(device))

    def useful_flops(self, loaded: LoadedModel, batch: Work) -> float:
        """Return the FLOPs of linear layers on images and unpadded tokens: student and teacher, one step."""
        model: OpenClipModel = loaded.model
        visual, text = model.visual, model.transformer
        patches = (model.visual.image_size[0] // model.visual.patch_size[0]) ** 2
        real = int((batch.tokens_XL != 0).sum())
        images = self.options.batch * (patches + 1) * _weights(visual.transformer)
        images += self.options.batch * patches * visual.conv1.weight.numel()
        return 4 * 2.0 * (images + real * _weights(text))

    def matmul_flops_per_s(self) -> float:
        size, best = (2048 if self.options.device == "cpu" else 8192), math.inf
        a = torch.randn(size, size, device=self.options.device)
        if self.options.precision == "bf16":
            a = a.bfloat16()
        for _ in range(5):
            self.synchronise()
            started = time.perf_counter()
            a @ a
            self.synchronise()
            best = min(best, time.perf_counter() - started)
        return 2 * size**3 / best


def ours(student: OpenClipModel, preprocess: dict[str, Any], options: argparse.Namespace) -> Step:
    """Return a function that performs the trainer's own step."""
    train_step = trainer_step(student, preprocess, options)

    def step(work: Work) -> dict[str, float]:
        terms = train_step(work.batch, seed=0)
        return {name: float(terms[name]) for name in ("loss", "base", "igc", "tgc", "distill")}

    return step


def trainer_step(
    student: OpenClipModel, preprocess: dict[str, Any], options: argparse.Namespace
) -> TrainStep:
    """Return the trainer's own step, of a student that has left its teacher."""
    student = student.to(options.device).train()
    config = _config(options)
    teacher = Teacher(student, config.teacher)
    _move_away(student)
    state = TrainState(
        student=student,
        teacher=teacher,
        optimizer=build_optimizer(student, config.optimizer, device=torch.device(options.device)),
        scaler=torch.amp.GradScaler(options.device, enabled=False),
    )
    return TrainStep(state, config, preprocess, total_steps=options.steps + 1)


def reference(student: OpenClipModel, preprocess: dict[str, Any], options: argparse.Namespace) -> Step:
    """Return a function that performs the released code's training step on one worker."""
    config = _config(options)
    student = student.to(options.device).train()
    teacher = copy.deepcopy(student).eval().requires_grad_(False)
    _move_away(student)
    settings = config.optimizer
    optimizer = torch.optim.AdamW(
        [
            {
                "params": [p for p in student.parameters() if p.ndim >= 2],
                "weight_decay": settings.weight_decay,
            },
            {"params": [p for p in student.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
    )
    mean, std = (torch.tensor(preprocess[k], device=options.device) for k in ("mean", "std"))
    alpha = config.teacher.decay ** (options.batch / config.teacher.reference_batch)

    def encode(model: OpenClipModel, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(options.device, torch.bfloat16, enabled=options.precision == "bf16"):
            image_features = model.encode_image(images, normalize=True)
            text_features = model.encode_text(tokens, normalize=True)
        return image_features.float(), text_features.float()

    def step(work: Work) -> dict[str, float]:
        images = work.batch.images_BHWC.float().div(255)
        images = ((images - mean) / std).permute(0, 3, 1, 2).contiguous()
        optimizer.zero_grad()
        v, texts = encode(student, images, work.tokens_XL)
        with torch.no_grad():
            v_hat, texts_hat = encode(teacher, images, work.tokens_XL)
        terms = _released_losses(v, texts, v_hat, texts_hat, student.logit_scale.exp(), config.objective)
        terms["loss"].backward()
        optimizer.step()
        with torch.no_grad():
            student.logit_scale.clamp_(0, math.log(100))
            for mine, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
                mine.data.mul_(alpha).add_(theirs.data, alpha=1 - alpha)
        return {name: value.item() for name, value in terms.items()}

    return step


def _released_losses(
    v: Tensor, texts: Tensor, v_hat: Tensor, texts_hat: Tensor, scale: Tensor, config: ObjectiveConfig
) -> dict[str, Tensor]:
    """Return losses from masked all-pairs logits, with the released TGC pairing and a distillation sum."""
    N = len(v)
    t, t_hat, negatives = texts[:N], texts_hat[:N], texts[N:]
    own = torch.arange(N, device=v.device)
    image_logits, text_logits = scale * v @ texts.T, scale * t @ v.T
    base = (F.cross_entropy(image_logits, own) + F.cross_entropy(text_logits, own)) / 2

    column = torch.arange(N * K, device=v.device)
    own_negatives = column[None, :] // K == own[:, None]  # caption i's negatives are in columns i*K + k
    released_negatives = column[None, :] % N == own[:, None]  # the released mask selects columns i + m*N
    pairs = torch.eye(N, dtype=torch.bool, device=v.device)
    igc_mask = torch.cat([pairs, own_negatives], dim=1)
    igc = F.cross_entropy(image_logits.masked_fill(~igc_mask, -torch.inf), own)
    tgc_logits = config.tgc_scale * t @ torch.cat([t_hat, negatives]).T
    tgc_mask = torch.cat([pairs, released_negatives], dim=1)
    tgc = F.cross_entropy(tgc_logits.masked_fill(~tgc_mask, -torch.inf), own)
    distill = (v - v_hat).square().sum() + (texts - texts_hat).square().sum()
    loss = base + config.lambda_igc * igc + config.lambda_tgc * tgc + config.lambda_distill * distill
    return {"loss": loss, "base": base, "igc": igc, "tgc": tgc, "distill": distill}


SIDES = {"reference": reference, "ours": ours}


@torch.no_grad()
def _move_away(student: nn.Module) -> None:
    """Add 1 % noise to the student (equal on both sides), so that its distance to the teacher is not 0."""
    generator = torch.Generator().manual_seed(1)
    for parameter in student.parameters():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
        parameter.mul_(1 + 0.01 * noise)


def _config(options: argparse.Namespace) -> TrainConfig:
    return TrainConfig(
        name="benchmark",
        data=DataConfig(prepared="", negatives=""),
        model=ModelConfig(name=options.model),
        objective=ObjectiveConfig(tgc_negatives="released", distill_reduction="sum", lambda_distill=0.005),
        optimizer=OptimizerConfig(lr=1e-6, warmup_steps=0),
        teacher=TeacherConfig(),
        global_batch_size=options.batch,
        compute=TrainComputeConfig(precision=options.precision),
    )


def _weights(module: nn.Module) -> int:
    """Return the number of weights in the module's matrices, each of which acts once on every token."""
    return sum(p.numel() for p in module.parameters() if p.ndim == 2)


def _measure_peak(name: str, options: argparse.Namespace, results: multiprocessing.Queue) -> None:
    benchmark = Benchmark(options)
    loaded = benchmark.loaded()
    step = SIDES[name](loaded.model, loaded.preprocess_cfg, options)
    batch = benchmark.batch()
    for _ in range(2):
        step(batch)
    if options.device == "cpu":
        with open("/proc/self/status") as status:
            [line] = [line for line in status if line.startswith("VmHWM")]
        results.put(int(line.split()[1]) / 2**20)
    else:
        results.put(torch.cuda.max_memory_allocated() / 2**30)


def _set_allocator() -> None:
    """Restart this process with the allocator settings, which take effect only at its start."""
    wanted = ray_setup.WORKER_ENV
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **wanted})


if __name__ == "__main__":
    main()
