"""One training step: forward, losses, backward, clip, optimizer, teacher.

    loader ─► LocalBatch on the device ─► micro-batches ─► features of student and teacher ─► losses
                                    student ◄─ optimizer ◄─ clip ◄─ gradients (averaged over workers) ◄─┘
                                       └─► teacher

No step waits for another worker except in the collectives of its own gradients and features, and no value is
read from the device except the scale of fp16's scaler.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from degla_ray.config import TrainConfig
from degla_ray.loader.loader import LocalBatch
from degla_ray.objectives import Features, losses, next_state
from degla_ray.training.forward import Forward, Normalise
from degla_ray.training.gradients import Losses, backward
from degla_ray.training.optimizer import clamp_logit_scale, learning_rate, set_learning_rate
from degla_ray.training.state import TrainState
from degla_ray.training.usage import UsageMeter
from degla_ray.training.workers import StepTerms


class TrainStep:
    """A training step that changes `state` in place.

    Args:
        state: state of this worker; the student is on its device, with adapters and frozen weights set.
        config: the run's config.
        preprocess: open_clip's preprocess config of the model, for mean and std.
        total_steps: length of the learning-rate schedule.
    """

    def __init__(
        self, state: TrainState, config: TrainConfig, preprocess: dict[str, Any], total_steps: int
    ) -> None:
        self.state, self.config, self.total_steps = state, config, total_steps
        self.forward = Forward(state.student, state.teacher, config.compute)
        self.normalise = Normalise(preprocess, self.forward.device)
        self.usage = UsageMeter(self.forward.device, state)

    def __call__(self, batch: LocalBatch, *, seed: int, begins_epoch: bool = False) -> StepTerms:
        """Train on this worker's rows of a global batch.

        Args:
            batch: this worker's rows.
            seed: seed of torch's generators. Reseeding at every step gives a resumed run the same dropout.
            begins_epoch: whether the objective starts without the previous step's state.

        Returns:
            The objective's terms over this worker's rows and `logit_scale`, detached; `lr`, a number.
        """
        state = self.state
        lr = learning_rate(self.config.optimizer, state.optimizer_steps, self.total_steps)
        set_learning_rate(state.optimizer, lr)
        state.optimizer.zero_grad(set_to_none=True)
        if begins_epoch:
            state.objective_state = {}

        micro_batches, mark = self.normalise(batch), self.usage.clock.mark
        self.usage.add(batch, micro_batches[0])
        found = backward(self.forward, self._objective, state.scaler, micro_batches, seed, mark)
        state.objective_state = next_state(found.features, found.scale, self.config.objective)
        self._clip_gradients()
        stepped = self._optimizer_step()
        if stepped:
            clamp_logit_scale(state.student)
            if state.teacher is not None:
                state.teacher.update(state.student, self.config.global_batch_size)
        self._count(stepped)
        mark("optimizer")
        return {**_detached(found), "lr": lr}

    def _objective(self, features: Features, scale: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
        carried = self.state.objective_state
        return losses(features, scale, self.config.objective, logit_bias=bias, state=carried)

    def _clip_gradients(self) -> None:
        largest = self.config.optimizer.clip_grad_norm
        if largest is not None:
            self.state.scaler.unscale_(self.state.optimizer)
            nn.utils.clip_grad_norm_(self.state.student.parameters(), largest)

    def _optimizer_step(self) -> bool:
        """Apply the gradients; return False if the scaler skipped the step because some were not finite.

        The result is the same on all workers.
        """
        scaler = self.state.scaler
        before = scaler.get_scale()
        scaler.step(self.state.optimizer)
        scaler.update()
        return scaler.get_scale() >= before

    def _count(self, stepped: bool) -> None:
        self.state.step += 1
        self.state.optimizer_steps += stepped
        self.state.skipped = 0 if stepped else self.state.skipped + 1


def _detached(found: Losses) -> dict[str, torch.Tensor]:
    return {
        name: value.detach() for name, value in {**found.terms, "logit_scale": found.scale.float()}.items()
    }
