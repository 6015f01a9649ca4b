"""AdamW parameter groups, the learning-rate schedule, and the bound on logit_scale.

The learning rate is a function of the step, not a stateful scheduler, so a resumed run gets the same rate.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from degla_ray.config import AdaptConfig, OptimizerConfig
from degla_ray.model.adapt import lr_multipliers

MAX_LOGIT_SCALE = math.log(100.0)


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, adapt: AdaptConfig | None = None, *, device: torch.device
) -> torch.optim.AdamW:
    """Return AdamW for all trainable parameters; those with fewer than 2 dimensions get no weight decay.

    Each combination of weight decay and learning-rate multiplier (`lr_multiplier`) is one group; groups with
    weight decay come first. Within a group, parameters are in the order of `model.named_parameters()`.
    """
    groups = [
        {
            "params": [p for _, p in named],
            "weight_decay": config.weight_decay if decays else 0.0,
            "lr_multiplier": multiplier,
        }
        for (decays, multiplier), named in _groups(model, adapt)
    ]
    return torch.optim.AdamW(
        groups,
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=device.type in ("cuda", "cpu"),
    )


def learning_rate(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Return the learning rate of 0-based `step`: linear warm-up over `warmup_steps`, then cosine decay to 0.

    Matches open_clip's `cosine_lr`.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    return 0.5 * config.lr * (1.0 + math.cos(math.pi * min(1.0, progress)))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float | Tensor) -> None:
    """Set each group's learning rate to `lr` times the group's multiplier."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_multiplier"]


@torch.no_grad()
def clamp_logit_scale(model: nn.Module) -> None:
    """Clamp logit_scale to [0, ln 100], as CLIP does after every step."""
    model.logit_scale.clamp_(0.0, MAX_LOGIT_SCALE)  # type: ignore[operator]


def _groups(
    model: nn.Module, adapt: AdaptConfig | None
) -> list[tuple[tuple[bool, float], list[tuple[str, nn.Parameter]]]]:
    """Return ((has weight decay, multiplier), named parameters) of each group, decaying groups first."""
    multipliers = lr_multipliers(model, adapt or AdaptConfig())
    groups: dict[tuple[bool, float], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((parameter.ndim >= 2, multipliers[name]), []).append((name, parameter))
    return sorted(groups.items(), key=lambda group: group[0], reverse=True)
