"""The EMA teacher: a copy of the student that follows it slowly and anchors it to its initial abilities.

The teacher starts with the student's initial weights. After every optimizer step
θ̂ ← α^(b/256)·θ̂ + (1 − α^(b/256))·θ with α = 0.9996 and b the number of samples in that step, so that the
decay per epoch does not depend on the batch size. Buffers are copied. Do not call `update` after a step that
the gradient scaler skipped. A frozen teacher keeps its initial weights. The cost is one more copy of the
weights, without gradients or optimizer state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from degla_ray.config import TeacherConfig
from degla_ray.model.adapt import merged, plain_state
from degla_ray.model.encode import encode_image, encode_text


class Teacher:
    """Copy of a student without gradients, in eval mode.

    Attributes:
        model: the teacher's model, of the student's class.
    """

    def __init__(self, student: nn.Module, config: TeacherConfig) -> None:
        """Copy `student` (the open_clip model itself, not a DistributedDataParallel wrapper).

        If the student has LoRA adapters, the teacher averages the merged weights, because averaging the
        factors would not average their products.
        """
        self.config = config
        self.model = merged(student).eval().requires_grad_(False)

    @torch.no_grad()
    def encode(self, images_BCHW: Tensor, tokens_XL: Tensor) -> tuple[Tensor, Tensor]:
        """Return (img_BD, txt_XD), normalised float32, without gradient, under the caller's autocast."""
        return encode_image(self.model, images_BCHW), encode_text(self.model, tokens_XL)

    @torch.no_grad()
    def update(self, student: nn.Module, samples: int) -> None:
        """Move towards `student` after an optimizer step over `samples` samples (the global batch).

        A frozen teacher does not change.
        """
        if self.config.kind == "frozen":
            return
        decay_log = math.log(self.config.decay) * samples / self.config.reference_batch
        step = -math.expm1(decay_log)  # 1 - α^(b/256) without cancellation near 1
        torch._foreach_lerp_(*self._parameter_pairs(student), step)
        for own, of_student in zip(self.model.buffers(), student.buffers(), strict=True):
            own.copy_(of_student)

    @torch.no_grad()
    def distance(self, student: nn.Module) -> float:
        """Return the L2 norm of the difference between all parameters of teacher and student."""
        difference = torch._foreach_sub(*self._parameter_pairs(student))
        return float(torch.stack(torch._foreach_norm(difference)).norm())

    def state_dict(self) -> dict[str, Tensor]:
        """Return the teacher's weights and persistent buffers, under the student's names."""
        return self.model.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load a `state_dict()`; every name must be present."""
        self.model.load_state_dict(state, strict=True)

    def _parameter_pairs(self, student: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        """Return the teacher's parameters and the student's in the same order."""
        of_student = plain_state(student)
        own = dict(self.model.named_parameters())
        return [p.detach() for p in own.values()], [of_student[name] for name in own]
