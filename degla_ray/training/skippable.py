"""Learning rate and counts of optimizer steps that may be skipped, kept on the device.

fp16's scaler, and `nonfinite_steps: skip` in any precision, skip a step whose gradients are not finite, and
only the device knows that. Asking would make the host wait for the device at every step. AdamW's own count of
its steps is a tensor that a skipped step does not advance: the rate is looked up with it, and the host reads
the counts once per log interval.
"""

from __future__ import annotations

import torch
from torch import Tensor

from degla_ray.config import OptimizerConfig
from degla_ray.training.optimizer import learning_rate, set_learning_rate
from degla_ray.training.state import TrainState


class SkippableSteps:
    """The learning rate of each step, and the counts `optimizer_steps` and `skipped` of a TrainState.

    Args:
        state: state of this worker; its counts hold until the first step, then after each `settle`.
        config: settings of the schedule.
        total_steps: length of the schedule.
    """

    def __init__(self, state: TrainState, config: OptimizerConfig, total_steps: int) -> None:
        device = next(state.student.parameters()).device
        rates = [learning_rate(config, step, total_steps) for step in range(total_steps)]
        self._state = state
        self._rates = torch.tensor(rates, dtype=torch.float64, device=device)
        self._steps = torch.tensor([state.optimizer_steps], device=device)
        self._skipped = torch.tensor([state.skipped], device=device)

    def set_learning_rate(self) -> Tensor:
        """Set the optimizer's learning rate for the next step and return it, a float64 scalar.

        Fused AdamW wants float32 on a GPU: there the rate is rounded, by 6e-8 of it at most.
        """
        lr = self._rates.index_select(0, self._steps).reshape(())
        set_learning_rate(self._state.optimizer, lr.float() if lr.is_cuda else lr)
        return lr

    def skip_if_nonfinite(self) -> None:
        """Make the optimizer skip its next step if the gradients are not finite, as fp16's scaler does.

        The gradients' average over the workers is not finite on all of them if it is not on one.
        """
        gradients = [p.grad for p in self._state.student.parameters() if p.grad is not None]
        finite = torch.nn.utils.get_total_norm(gradients).isfinite()
        self._state.optimizer.found_inf = 1.0 - finite.float()  # type: ignore[attr-defined]

    def advance(self) -> Tensor:
        """Count the step just done; return 1 if the weights moved and 0 if it was skipped, an int64 scalar.

        The result is the same on all workers, because their gradients are.
        """
        any_parameter = next(iter(self._state.optimizer.state.values()))
        steps = any_parameter["step"].reshape(1).long()
        moved = steps - self._steps
        self._steps, self._skipped = steps, (self._skipped + 1) * (1 - moved)
        return moved.reshape(())

    def settle(self) -> None:
        """Read the counts into the state; this waits for the device."""
        self._state.optimizer_steps, self._state.skipped = torch.cat([self._steps, self._skipped]).tolist()
