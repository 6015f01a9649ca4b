"""Where a step's time goes, and how much of the device it uses, measured without waiting for the device.

On a GPU, phases end with events in its stream, which are read at the end of a log interval, when the work is
done anyway. On a CPU, where calls return when their work is done, the host's clock is enough.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from degla_ray.errors import one_line
from degla_ray.loader.loader import LocalBatch
from degla_ray.model.encode import encode_image, encode_text
from degla_ray.model.packing import PackedText
from degla_ray.training.forward import MicroBatch
from degla_ray.training.state import TrainState

log = logging.getLogger(__name__)
PHASES = ("data", "forward", "backward", "optimizer", "other")
"""`data` is waiting for a batch; `forward` includes the losses, `backward` the exchange of gradients, and
`optimizer` clipping and the teacher; `other` is what happens at log intervals."""
PEAK_TFLOPS = {
    "H200": 989.0,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "A10G": 70.0,
    "A10": 125.0,
    "L40S": 362.0,
    "L4": 121.0,
    "V100": 125.0,
    "T4": 65.0,
}
"""Peak of a GPU's matrix products in half precision, dense, in TFLOP/s, by a part of its name (NVIDIA's data
sheets); the first entry that fits counts."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What the steps of a log interval took; of this worker, but for the tokens.

    Attributes:
        phase_ms: milliseconds per step of each phase.
        tokens_per_s: text tokens of all workers, estimated from this worker's.
        mfu: model FLOPs per second as a share of the device's peak in half precision; None if the peak is
            unknown.
    """

    phase_ms: dict[str, float]
    tokens_per_s: float
    mfu: float | None


class StepClock:
    """The time of each phase, on the device's own clock."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = [("", self._now())]

    def mark(self, phase: str) -> None:
        """End a phase, which began with the previous mark."""
        self._marks.append((phase, self._now()))

    @property
    def latest(self) -> str:
        """The phase that ended last; empty before the first."""
        return self._marks[-1][0]

    def take(self) -> dict[str, float]:
        """Return the seconds of each phase since the last call; the device's work must be done."""
        seconds = dict.fromkeys(PHASES, 0.0)
        for (_, began), (phase, ended) in zip(self._marks, self._marks[1:], strict=False):
            seconds[phase] += began.elapsed_time(ended) / 1e3 if self._on_gpu else ended - began
        del self._marks[:-1]
        return seconds

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class UsageMeter:
    """Tokens, model FLOPs and the time of each phase since the last log interval.

    FLOPs are counted once, from the shapes of the first batch, and only if the device's peak is known. A
    trained tower's backward pass counts as two forward passes, also if some of it is frozen. What is computed
    again to save memory does not count.
    """

    def __init__(self, device: torch.device, state: TrainState) -> None:
        self.clock = StepClock(device)
        self._state, self._peak = state, peak_flops(device)
        self._of_images = self._of_token = 0.0
        self._tokens = self._steps = 0

    def add(self, batch: LocalBatch, first: MicroBatch) -> None:
        """Count a step; `first` is the first of its micro-batches."""
        if self._peak is not None and not self._of_images:
            self._count(first, rows=len(batch.mask_BK))
        self._steps += 1
        self._tokens += sum(map(_tokens, batch.texts))

    def take(self, world_size: int) -> Usage:
        """Return the usage since the last call; the device's work must be done."""
        seconds, steps, tokens = self.clock.take(), self._steps, self._tokens
        self._steps = self._tokens = 0
        total_s = max(sum(seconds.values()), 1e-9)
        flops = steps * self._of_images + tokens * self._of_token
        return Usage(
            phase_ms={phase: 1e3 * s / steps for phase, s in seconds.items()},
            tokens_per_s=world_size * tokens / total_s,
            mfu=None if self._peak is None else flops / total_s / self._peak,
        )

    def _count(self, first: MicroBatch, rows: int) -> None:
        try:
            images, texts = step_flops(self._state, first)
        except Exception as error:  # a tower that computes more than shapes; training does not depend on it
            log.warning("no MFU: the FLOPs of this model cannot be counted (%s)", one_line(error))
            self._peak = None
            return
        self._of_images, self._of_token = images * rows / len(first.mask_BK), texts / _tokens(first.text)


def peak_flops(device: torch.device) -> float | None:
    """Return a device's peak in FLOP/s; None if it is a CPU or an unknown GPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((1e12 * peak for part, peak in PEAK_TFLOPS.items() if part in name), None)


def step_flops(state: TrainState, rows: MicroBatch) -> tuple[float, float]:
    """Return the FLOPs of a step over some rows, for images and for texts, teacher included.

    Nothing is computed: the towers run once on tensors that have shapes only.
    """
    images, text = rows.images_BCHW, rows.text
    counted = []
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        with FakeTensorMode(allow_non_fake_inputs=True) as mode, FlopCounterMode(display=False) as counter:
            encode_image(state.student, mode.from_tensor(images))
        counted.append(counter.get_total_flops())
        with FakeTensorMode(allow_non_fake_inputs=True) as mode, FlopCounterMode(display=False) as counter:
            shapes = text.map(mode.from_tensor) if isinstance(text, PackedText) else mode.from_tensor(text)
            encode_text(state.student, shapes)
        counted.append(counter.get_total_flops())
    teacher = int(state.teacher is not None)
    of_images, of_texts = (
        flops * (teacher + (3 if trained else 1))
        for flops, trained in zip(counted, _trained(state.student), strict=True)
    )
    return of_images, of_texts


def _trained(student: nn.Module) -> tuple[bool, bool]:
    """Return whether the image tower and the text tower have trained parameters."""
    of_images = [n.startswith("visual.") for n, p in student.named_parameters() if p.requires_grad and p.ndim]
    return any(of_images), not all(of_images)


def _tokens(text: PackedText | Tensor) -> int:
    return len(text.token_T) if isinstance(text, PackedText) else text.numel()
