"""The EMA teacher: a slow copy of the student whose features anchor it to what it could do before.

Starts as a copy of the student's starting weights. After every optimizer step
θ̂ ← α^(b/256)·θ̂ + (1 − α^(b/256))·θ with α = 0.9996 and b the samples of that step, so that the decay
per epoch does not depend on the batch size. Buffers are copied. A step that the gradient scaler skipped
must not call `update`. A frozen teacher keeps its starting weights. Memory: one more copy of the weights,
no gradients, no optimizer state.
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
    """A frozen copy of a student, in eval mode.

    Attributes:
        model: the teacher's model, of the student's class.
    """

    def __init__(self, student: nn.Module, config: TeacherConfig) -> None:
        """Copies `student` (the open_clip model itself, not a DistributedDataParallel wrapper).

        Of a student with LoRA adapters it follows the weights that they make, not the adapters: the average
        of two factors is not that of their products.
        """
        self.config = config
        self.model = merged(student).eval().requires_grad_(False)

    @torch.no_grad()
    def encode(self, images_BCHW: Tensor, tokens_XL: Tensor) -> tuple[Tensor, Tensor]:
        """(img_BD, txt_XD): normalised float32, without gradient, under the caller's autocast."""
        return encode_image(self.model, images_BCHW), encode_text(self.model, tokens_XL)

    @torch.no_grad()
    def update(self, student: nn.Module, samples: int) -> None:
        """Moves towards `student` after an optimizer step over `samples` samples (the global batch).

        A frozen one stays.
        """
        if self.config.kind == "frozen":
            return
        decay_log = math.log(self.config.decay) * samples / self.config.reference_batch
        step = -math.expm1(decay_log)  # 1 - α^(b/256) without the cancellation that subtraction has near 1
        torch._foreach_lerp_(*self._beside(student), step)
        for mine, theirs in zip(self.model.buffers(), student.buffers(), strict=True):
            mine.copy_(theirs)

    @torch.no_grad()
    def distance(self, student: nn.Module) -> float:
        """L2 norm of all parameters' differences."""
        difference = torch._foreach_sub(*self._beside(student))
        return float(torch.stack(torch._foreach_norm(difference)).norm())

    def state_dict(self) -> dict[str, Tensor]:
        """The teacher's weights and persistent buffers, under the student's names."""
        return self.model.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continues from `state_dict()`; every name must be there."""
        self.model.load_state_dict(state, strict=True)

    def _beside(self, student: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        """The teacher's parameters, and those of the student in the same order."""
        theirs = plain_state(student)
        mine = dict(self.model.named_parameters())
        return [p.detach() for p in mine.values()], [theirs[name] for name in mine]
