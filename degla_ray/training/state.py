"""The state of a training run: what a step changes, a checkpoint holds and the hooks read."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from degla_ray.model.teacher import Teacher
from degla_ray.objectives import ObjectiveState


@dataclass(kw_only=True)
class TrainState:
    """The state of one worker; it is the same on all workers.

    Attributes:
        student: the open_clip model itself, not a wrapper.
        teacher: None if the objective needs no teacher.
        optimizer: optimizer of the student's parameters.
        scaler: gradient scaler for fp16; disabled otherwise.
        objective_state: tensors that the objective carries to the next step.
        step: steps so far, i.e. batches consumed.
        optimizer_steps: optimizer steps so far; fewer than `step` if some were skipped. If steps may be
            skipped, this and `skipped` are as of the latest log interval's end.
        skipped: consecutive latest steps that were skipped; not saved.
        trace: one line of JSON per step; a float's repr round-trips exactly.
    """

    student: nn.Module
    teacher: Teacher | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    objective_state: ObjectiveState = field(default_factory=dict)
    step: int = 0
    optimizer_steps: int = 0
    skipped: int = 0
    trace: list[str] = field(default_factory=list)
