"""The time of each phase, tokens and FLOPs of a step."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import CAPTIONS, write_config
from torch import nn

from degla_ray.config import AdaptConfig, ModelConfig, OptimizerConfig, TeacherConfig
from degla_ray.loader.decode import tower_input
from degla_ray.loader.loader import LocalBatch
from degla_ray.loader.samples import Texts
from degla_ray.model import Teacher
from degla_ray.model.adapt import adapt
from degla_ray.model.build import build
from degla_ray.model.encode import on_device, text_end
from degla_ray.training import usage
from degla_ray.training.forward import MicroBatch
from degla_ray.training.optimizer import build_optimizer
from degla_ray.training.state import TrainState
from degla_ray.training.usage import PHASES, StepClock, UsageMeter, peak_flops, step_flops

CPU = torch.device("cpu")
B = 3


def _state_and_rows(folder: Path, freeze: str) -> tuple[TrainState, MicroBatch]:
    loaded = build(ModelConfig(name=write_config(folder / "model")))
    adapt(loaded.model, AdaptConfig(freeze=freeze))  # type: ignore[arg-type]
    state = TrainState(
        student=loaded.model,
        teacher=Teacher(loaded.model, TeacherConfig()),
        optimizer=build_optimizer(loaded.model, OptimizerConfig(), device=CPU),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
    )
    texts = Texts.of(loaded.tokenizer(CAPTIONS).numpy(), padding=0)
    text = on_device(tower_input(texts, np.ones((B, 0), bool), text_end(loaded.model)), loaded.model)
    rows = MicroBatch(
        images_BCHW=torch.zeros(B, 3, 32, 32), text=text, mask_BK=torch.ones(B, 0, dtype=torch.bool)
    )
    return state, rows


def _matrices(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.ndim == 2)


@pytest.mark.parametrize(("freeze", "passes"), [("none", (4, 4)), ("image", (2, 4)), ("text", (4, 2))])
def test_step_flops_are_those_of_the_matrices_of_what_is_trained_and_of_the_teacher(
    tmp_path: Path, freeze: str, passes: tuple[int, int]
) -> None:
    state, rows = _state_and_rows(tmp_path, freeze)
    images, texts = step_flops(state, rows)
    model = state.student
    first, last = model.transformer.resblocks  # the last block's MLP sees one token per text
    tokens = len(rows.text.token_T)
    lower = _matrices(first) * tokens + _matrices(last.mlp) * B
    upper = lower + _matrices(last.attn) * tokens + 32 * 16 * B
    assert 2 * lower <= texts / passes[1] <= 2 * upper * 1.2  # and attention
    patches, visual = 4, model.visual
    lower = (patches + 1) * _matrices(visual.transformer.resblocks[0]) + patches * visual.conv1.weight.numel()
    assert 2 * B * lower <= images / passes[0] <= 2 * B * lower * 2


def test_clock_gives_each_phase_the_time_since_the_one_before_and_starts_again() -> None:
    clock = StepClock(CPU)
    began = time.perf_counter()
    for phase, seconds in (("data", 0.02), ("forward", 0.0), ("data", 0.02)):
        time.sleep(seconds)
        clock.mark(phase)
    took = clock.take()
    assert tuple(took) == PHASES
    assert 0.04 <= took["data"] <= time.perf_counter() - began
    assert took["optimizer"] == 0.0
    assert sum(clock.take().values()) == 0.0


def test_usage_counts_tokens_always_and_mfu_only_of_a_known_peak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, rows = _state_and_rows(tmp_path, "none")
    batch = LocalBatch(
        step=0, images_BHWC=torch.zeros(B, 32, 32, 3), texts=(rows.text,), mask_BK=rows.mask_BK
    )
    assert peak_flops(CPU) is None
    monkeypatch.setattr(usage, "peak_flops", lambda device: 1e9)
    meter = UsageMeter(CPU, state)
    for _ in range(2):
        meter.add(batch, rows)
        time.sleep(0.01)
        meter.clock.mark("forward")
    found = meter.take(world_size=2)
    seconds = 2 * found.phase_ms["forward"] / 1e3
    assert found.tokens_per_s == pytest.approx(2 * 2 * len(rows.text.token_T) / seconds)
    assert found.mfu == pytest.approx(2 * sum(step_flops(state, rows)) / seconds / 1e9)
    monkeypatch.undo()
    meter = UsageMeter(CPU, state)
    meter.add(batch, rows)
    meter.clock.mark("forward")
    assert meter.take(world_size=1).mfu is None
