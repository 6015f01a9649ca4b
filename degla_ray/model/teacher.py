"""The EMA teacher: a copy of the student that follows it slowly and anchors it to its initial abilities.

The teacher starts with the student's initial weights. After every optimizer step
θ̂ ← α^(b/256)·θ̂ + (1 − α^(b/256))·θ with α = 0.9996 and b the number of samples in that step, so that the
decay per epoch does not depend on the batch size. Buffers are copied. A step that the gradient scaler skipped
moves nothing. A frozen teacher keeps its initial weights. The cost is one more copy of the weights, without
gradients or optimizer state.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from degla_ray.config import TeacherConfig
from degla_ray.model.adapt import merged, plain_state
from degla_ray.model.encode import encode_image, encode_text
from degla_ray.model.packing import PackedText

_CHUNK = 32


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
        self._pairs: tuple[list[Tensor], list[Tensor]] = ([], [])
        self._pairs_of: weakref.ref[nn.Module] | None = None
        self._adapted = False
        self._buffers: list[Tensor] = []
        self._student_buffers: list[Tensor] = []

    @torch.no_grad()
    def encode(self, images_BCHW: Tensor, text: PackedText | Tensor) -> tuple[Tensor, Tensor]:
        """Return (img_BD, txt_XD), normalised float32, without gradient, under the caller's autocast."""
        return encode_image(self.model, images_BCHW), encode_text(self.model, text)

    @torch.no_grad()
    def update(self, student: nn.Module, samples: int, moved: Tensor | None = None) -> None:
        """Move towards `student` after an optimizer step; a frozen teacher does not change.

        Args:
            student: the model that the step trained.
            samples: samples of that step (the global batch).
            moved: 1, or 0 if the step was skipped: a scalar on the device, which is not asked. None means 1.
        """
        if self.config.kind == "frozen":
            return
        decay_log = math.log(self.config.decay) * samples / self.config.reference_batch
        step = -math.expm1(decay_log)  # 1 - α^(b/256) without cancellation near 1
        mine, theirs = self._parameter_pairs(student)
        if moved is None:
            torch._foreach_lerp_(mine, theirs, step)
            if self._buffers:
                torch._foreach_copy_(self._buffers, self._student_buffers)
            return
        torch._foreach_lerp_(mine, theirs, [step * moved] * len(mine))
        for buffer, other in zip(self._buffers, self._student_buffers, strict=True):
            buffer.copy_(torch.where(moved > 0, other, buffer))

    @torch.no_grad()
    def distance(self, student: nn.Module) -> float:
        """Return the L2 norm of the difference between all parameters of teacher and student."""
        mine, theirs = self._parameter_pairs(student)
        norms: list[Tensor] = []
        for first in range(
            0, len(mine), _CHUNK
        ):  # in chunks: a difference of all would be a copy of the model
            chunk = slice(first, first + _CHUNK)
            norms += torch._foreach_norm(torch._foreach_sub(mine[chunk], theirs[chunk]))
        return float(torch.stack(norms).norm())

    def state_dict(self) -> dict[str, Tensor]:
        """Return the teacher's weights and persistent buffers, under the student's names."""
        return self.model.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load a `state_dict()`; every name must be present."""
        self.model.load_state_dict(state, strict=True)

    def _parameter_pairs(self, student: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        """Return the teacher's parameters and the student's in the same order.

        The lists are made once, because walking two models costs milliseconds of a step; adapters need a new
        product at each call.
        """
        if self._adapted or self._pairs_of is None or self._pairs_of() is not student:
            theirs, mine = plain_state(student), dict(self.model.named_parameters())
            self._pairs = [p.detach() for p in mine.values()], [theirs[name] for name in mine]
            self._pairs_of = weakref.ref(student)
            self._adapted = any(map(is_parametrized, student.modules()))
            kept = self.model.state_dict().keys()  # without constants such as attention's mask
            own, others = dict(self.model.named_buffers()), dict(student.named_buffers())
            self._buffers = [buffer for name, buffer in own.items() if name in kept]
            self._student_buffers = [others[name] for name in own if name in kept]
        return self._pairs
