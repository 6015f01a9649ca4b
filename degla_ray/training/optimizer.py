"""AdamW in two groups, linear warm-up then cosine to 0, and the bound on logit_scale.

The learning rate is a function of the step number, not a scheduler with a state: a resumed run asks for
its step and gets the same rate.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from degla_ray.config import OptimizerConfig

MAX_LOGIT_SCALE = math.log(100.0)


def build_optimizer(model: nn.Module, config: OptimizerConfig, *, device: torch.device) -> torch.optim.AdamW:
    """AdamW over all trainable parameters; those with fewer than 2 dimensions get no weight decay.

    Group 0 decays, group 1 (biases, norms, logit_scale) does not. The parameters' order is that of
    `model.named_parameters()` within each group (`optimizer_names` tells it).
    """
    groups = [
        {"params": [p for _, p in named], "weight_decay": decay}
        for named, decay in zip(_groups(model), (config.weight_decay, 0.0), strict=True)
    ]
    return torch.optim.AdamW(
        groups,
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=device.type in ("cuda", "cpu"),
    )


def optimizer_names(model: nn.Module) -> list[str]:
    """Parameter names in the order in which the optimizer numbers them."""
    return [name for named in _groups(model) for name, _ in named]


def learning_rate(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Rate of 0-based `step`: linear up over `warmup_steps`, then half a cosine down to 0.

    Same values as open_clip's `cosine_lr`.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    return 0.5 * config.lr * (1.0 + math.cos(math.pi * min(1.0, done)))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


@torch.no_grad()
def clamp_logit_scale(model: nn.Module) -> None:
    """Keeps the parameter within [0, ln 100], as CLIP does after every step."""
    model.logit_scale.clamp_(0.0, MAX_LOGIT_SCALE)  # type: ignore[operator]


def _groups(model: nn.Module) -> tuple[list[tuple[str, nn.Parameter]], list[tuple[str, nn.Parameter]]]:
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [x for x in named if x[1].ndim >= 2], [x for x in named if x[1].ndim < 2]
