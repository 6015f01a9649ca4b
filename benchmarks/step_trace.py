#!/usr/bin/env python
"""Count what a training step makes a GPU wait for, on a CPU: operations, questions to the device, host time.

    python benchmarks/step_trace.py

Both sides take the same step (DeGLA, K = 4, bf16 autocast, optimizer and teacher included) of the same
weights: the present code, and the towers as they were before texts were packed on the host
(`previous_towers.py`). The operations of ViT-B-32 are counted by a dispatch trace, which sees every call that
becomes a kernel, a view or a transfer. Host time is measured on a model of the same depth with tiny widths,
so that little but dispatch is left: medians of alternating steps in one process, on one thread. The present
step's questions are counted in fp16 too, whose gradient scaler may skip a step.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import open_clip
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import previous_towers as previous
from degla_ray.config import DataConfig, ModelConfig, OptimizerConfig, TrainComputeConfig, TrainConfig
from degla_ray.loader.decode import HostBatch, tower_input
from degla_ray.loader.loader import LocalBatch, local_batch
from degla_ray.loader.samples import Texts
from degla_ray.model import Teacher
from degla_ray.model.packing import TextEnd
from degla_ray.objectives import Features, losses
from degla_ray.training.optimizer import build_optimizer, clamp_logit_scale
from degla_ray.training.state import TrainState
from degla_ray.training.step import TrainStep

K = 4
PREPROCESS = {"mean": (0.48, 0.46, 0.41), "std": (0.27, 0.26, 0.28)}
VIEWS = {
    *(
        "view",
        "_unsafe_view",
        "t",
        "transpose",
        "permute",
        "expand",
        "slice",
        "select",
        "unsqueeze",
        "squeeze",
    ),
    *("split", "split_with_sizes", "unbind", "detach", "alias", "as_strided", "unflatten", "diagonal"),
}
ASKING = {"_local_scalar_dense", "nonzero", "masked_select"}
Step = Callable[[], None]
Precision = Literal["bf16", "fp16"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=30, help="timed steps per side (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    full, tiny = _model(FULL), _model(TINY)
    counts = {name: _count(side(copy.deepcopy(full), FULL)) for name, side in SIDES.items()}
    asked_in_fp16 = _count(now(copy.deepcopy(tiny), TINY, "fp16"))["asks"]
    host_s = _times({name: side(copy.deepcopy(tiny), TINY) for name, side in SIDES.items()}, options.steps)
    table = Table(title="ViT-B-32, K = 4, bf16 autocast, DeGLA with teacher and optimizer: one step")
    for column in ("", *SIDES, "ratio"):
        table.add_column(column, justify="right" if column else "left")
    for row, value in ROWS.items():
        old, new = (value(counts[name]) for name in SIDES)
        table.add_row(row, f"{old:,}", f"{new:,}", f"{new / old:.2f}" if old else "")
    table.add_row("questions to the device in fp16", "", f"{asked_in_fp16:,}", "")
    before_s, now_s = (host_s[name] for name in SIDES)
    table.add_row(
        "host time, tiny widths",
        f"{before_s * 1e3:.0f} ms",
        f"{now_s * 1e3:.0f} ms",
        f"{now_s / before_s:.2f}",
    )
    Console().print(table)


@dataclass(frozen=True, kw_only=True)
class Size:
    """The sizes of a model of ViT-B-32's depth, and of a batch for it."""

    batch: int
    image: int
    width: int
    text_width: int
    head_width: int
    vocabulary: int
    words: int


FULL = Size(batch=2, image=224, width=768, text_width=512, head_width=64, vocabulary=49408, words=18)
TINY = Size(batch=1, image=32, width=16, text_width=16, head_width=16, vocabulary=64, words=4)


def _model(size: Size) -> nn.Module:
    torch.manual_seed(0)
    vision = {"image_size": size.image, "patch_size": 32, "layers": 12, "width": size.width}
    text = {"context_length": 77, "vocab_size": size.vocabulary, "width": size.text_width, "layers": 12}
    return open_clip.CLIP(
        embed_dim=size.text_width,
        vision_cfg={**vision, "head_width": size.head_width},
        text_cfg={**text, "heads": size.text_width // size.head_width},
        quick_gelu=True,
    ).train()


def _tokens(size: Size) -> np.ndarray:
    rng = np.random.default_rng(0)
    tokens = np.zeros((size.batch * (1 + K), 77), np.int32)
    for row, words in zip(tokens, rng.integers(size.words // 2, size.words, len(tokens)), strict=True):
        row[: words + 1] = [*rng.integers(1, size.vocabulary - 1, words), size.vocabulary - 1]
    return tokens


def _config(batch: int, precision: Precision = "bf16") -> TrainConfig:
    return TrainConfig(
        name="trace",
        data=DataConfig(prepared="", negatives=""),
        model=ModelConfig(name="scenes-base"),
        optimizer=OptimizerConfig(warmup_steps=0),
        global_batch_size=batch,
        compute=TrainComputeConfig(precision=precision),
    )


def before(student: nn.Module, size: Size) -> Step:
    """Return the step with the towers as they were."""
    teacher, config = copy.deepcopy(student).eval().requires_grad_(False), _config(size.batch)
    optimizer = build_optimizer(student, OptimizerConfig(), device=torch.device("cpu"))
    tokens_XL, images = (
        torch.from_numpy(_tokens(size)).long(),
        torch.randn(size.batch, 3, size.image, size.image),
    )
    batch = size.batch
    mask_BK = torch.ones(batch, K, dtype=torch.bool)
    moved = previous.teacher_step(0.9996, batch, 256)

    def rows(txt_XD: Tensor) -> tuple[Tensor, Tensor]:
        neg_BKD = txt_XD.new_zeros(batch, K, txt_XD.shape[1])
        neg_BKD[mask_BK] = txt_XD[batch:]
        return txt_XD[:batch], neg_BKD

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        negatives_BKL = tokens_XL[batch:].unflatten(0, (batch, K))
        tokens = torch.cat([tokens_XL[:batch], negatives_BKL[mask_BK]])
        with torch.autocast("cpu", torch.bfloat16):
            img_BD, txt_XD = previous.encode_image(student, images), previous.encode_text(student, tokens)
            with torch.no_grad():
                t_img_BD = previous.encode_image(teacher, images)
                t_txt_XD = previous.encode_text(teacher, tokens)
        txt_BD, neg_BKD = rows(txt_XD)
        t_txt_BD, t_neg_BKD = rows(t_txt_XD)
        features = Features(
            img_BD=img_BD,
            txt_BD=txt_BD,
            neg_BKD=neg_BKD,
            neg_mask_BK=mask_BK,
            teacher_img_BD=t_img_BD,
            teacher_txt_BD=t_txt_BD,
            teacher_neg_BKD=t_neg_BKD,
        )
        losses(features, student.logit_scale.exp(), config.objective)["loss"].backward()  # type: ignore[operator]
        optimizer.step()
        clamp_logit_scale(student)
        previous.update_teacher(teacher, student, moved)

    return step


def now(student: nn.Module, size: Size, precision: Precision = "bf16") -> Step:
    """Return the trainer's own step."""
    config = _config(size.batch, precision)
    state = TrainState(
        student=student,
        teacher=Teacher(student, config.teacher),
        optimizer=build_optimizer(student, config.optimizer, device=torch.device("cpu")),
        scaler=torch.amp.GradScaler("cpu", enabled=precision == "fp16"),
    )
    train_step, batch = TrainStep(state, config, PREPROCESS, total_steps=1000), _batch(size)

    def step() -> None:
        train_step(batch, seed=0)

    return step


SIDES: dict[str, Callable[[nn.Module, Size], Step]] = {"before": before, "now": now}


def _batch(size: Size) -> LocalBatch:
    mask_BK = np.ones((size.batch, K), bool)
    text = tower_input(Texts.of(_tokens(size), padding=0), mask_BK, TextEnd(token=None))
    shape = (size.batch, size.image, size.image, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    host = HostBatch(images_BHWC=images, texts=(text,), mask_BK=mask_BK)
    return local_batch(0, host, torch.device("cpu"))


class _Trace(TorchDispatchMode):
    """Counts operations by name; `asks` and `scatters` are questions to the device and sorted scatters."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._overloadpacket.__name__
        self.count[name] += 1
        if name in ASKING or (name == "index" and _is_boolean(args[1])):
            self.count["asks"] += 1
        if name in ("index_put", "index_put_", "_index_put_impl_"):
            self.count["asks"] += _is_boolean(args[1])
            self.count["scatters"] += bool(len(args) > 3 and args[3])
        return function(*args, **(kwargs or {}))


def _is_boolean(indices: Any) -> bool:
    return any(index is not None and index.dtype == torch.bool for index in indices)


ROWS: dict[str, Callable[[Counter[str]], int]] = {
    "operations": lambda c: c.total() - c["asks"] - c["scatters"],
    "operations that are not views": lambda c: sum(
        n for name, n in c.items() if name not in VIEWS | {"asks", "scatters"}
    ),
    "questions to the device (device → host)": lambda c: c["asks"],
    "index_put(accumulate) in the backward": lambda c: c["scatters"],
}


def _count(step: Step) -> Counter[str]:
    step()  # the optimizer's state exists after the first
    with _Trace() as trace:
        step()
    return trace.count


def _times(steps: dict[str, Step], rounds: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 3):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if number >= 3:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(found) for name, found in seconds.items()}


if __name__ == "__main__":
    main()
