"""Groups, schedule and the bound on logit_scale."""

from __future__ import annotations

import math

import pytest
import torch
from open_clip_train.scheduler import cosine_lr
from torch import nn

from degla_ray.config import OptimizerConfig
from degla_ray.training.optimizer import (
    build_optimizer,
    clamp_logit_scale,
    learning_rate,
)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.norm = nn.LayerNorm(2)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
        self.frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)


def test_optimizer_only_matrices_decay() -> None:
    model = Small()
    optimizer = build_optimizer(model, OptimizerConfig(weight_decay=0.3), device=torch.device("cpu"))
    decaying, plain = optimizer.param_groups
    assert [p is model.linear.weight for p in decaying["params"]] == [True]
    assert decaying["weight_decay"] == 0.3
    assert plain["weight_decay"] == 0.0
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert [names[id(p)] for p in plain["params"]] == [
        "logit_scale",
        "linear.bias",
        "norm.weight",
        "norm.bias",
    ]


@pytest.mark.parametrize(("warmup", "total"), [(50, 500), (1, 10), (10, 10), (0, 7)])
def test_learning_rate_is_open_clips_cosine(warmup: int, total: int) -> None:
    config = OptimizerConfig(lr=0.02, warmup_steps=warmup)
    theirs = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = cosine_lr(theirs, 0.02, warmup, total)
    for step in range(total):
        schedule(step)
        assert learning_rate(config, step, total) == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-12)


def test_learning_rate_ends_near_zero() -> None:
    assert learning_rate(OptimizerConfig(lr=1.0, warmup_steps=5), 1000, 1000) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(("value", "clamped"), [(9.0, math.log(100.0)), (-1.0, 0.0), (2.5, 2.5)])
def test_logit_scale_kept_in_bounds(value: float, clamped: float) -> None:
    model = Small()
    nn.init.constant_(model.logit_scale, value)
    clamp_logit_scale(model)
    assert model.logit_scale.item() == pytest.approx(clamped)
