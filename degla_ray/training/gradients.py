"""Gradients of a step: the objective's backward pass, in one batch or in micro-batches.

With micro-batches (`micro_batch_size`), features are cached as in GradCache (arXiv 2101.06983). All
micro-batches pass through the towers without a graph; the objective is computed once on the features of the
whole batch; then each micro-batch passes through the towers again to backpropagate the feature gradients.
The result equals the gradients of one batch, `logit_scale` included, with the memory of one micro-batch and
one more forward pass (a third more time).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import compress

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from degla_ray.objectives import Features
from degla_ray.training.forward import Forward, MicroBatch, StudentOutput

Objective = Callable[[Features, Tensor, Tensor | None], dict[str, Tensor]]
"""(features, scale, bias) -> the loss to backpropagate (`loss`) and its terms."""
Mark = Callable[[str], None]
"""Ends a phase of the step, which began with the previous one's end."""


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The losses of a step whose gradients are in the student's parameters.

    Attributes:
        terms: what the objective returned.
        features: features from which it was computed.
        scale: exp of logit_scale, detached.
    """

    terms: dict[str, Tensor]
    features: Features
    scale: Tensor


def backward(
    forward: Forward,
    objective: Objective,
    scaler: torch.amp.GradScaler,
    micro_batches: list[MicroBatch],
    seed: int,
    mark: Mark,
) -> Losses:
    """Accumulate a step's gradients in the student's parameters.

    Args:
        forward: forward pass of student and teacher.
        objective: the objective with its settings and state.
        scaler: scales the loss before the backward pass.
        micro_batches: this worker's rows.
        seed: seed of torch's generators; a micro-batch has the same dropout in both passes.
        mark: called with `forward` or `backward` when such a phase ends.
    """
    if len(micro_batches) == 1:
        return _whole(forward, objective, scaler, micro_batches[0], seed, mark)
    return _cached(forward, objective, scaler, micro_batches, seed, mark)


def _whole(
    forward: Forward,
    objective: Objective,
    scaler: torch.amp.GradScaler,
    rows: MicroBatch,
    seed: int,
    mark: Mark,
) -> Losses:
    student = forward.student(rows, seed)
    features = Features(**student.features, neg_mask_BK=rows.mask_BK, **forward.teacher(rows))
    terms = objective(features, student.scale, student.bias)
    mark("forward")
    scaler.scale(terms["loss"]).backward()
    mark("backward")
    return Losses(terms=terms, features=features, scale=student.scale.detach().reshape(()))


def _cached(
    forward: Forward,
    objective: Objective,
    scaler: torch.amp.GradScaler,
    micro_batches: list[MicroBatch],
    seed: int,
    mark: Mark,
) -> Losses:
    students = [forward.student_without_graph(rows, seed + i) for i, rows in enumerate(micro_batches)]
    teachers = [forward.teacher(rows) for rows in micro_batches]
    student, teacher = _concatenated([s.features for s in students]), _concatenated(teachers)
    leaves = {name: feature.requires_grad_() for name, feature in student.items()}
    scalars = [scalar.detach().requires_grad_() for scalar in students[0].scalars]
    features = Features(**leaves, neg_mask_BK=torch.cat([rows.mask_BK for rows in micro_batches]), **teacher)
    terms = objective(features, scalars[0], scalars[1] if len(scalars) > 1 else None)
    mark("forward")
    scaler.scale(terms["loss"]).backward()
    mark("backward")

    first = 0
    for i, rows in enumerate(micro_batches):
        own = slice(first, first := first + len(rows.mask_BK))
        last = i == len(micro_batches) - 1
        # Gradients are averaged over the workers only once, with the last micro-batch.
        local = not last and isinstance(forward.towers, DistributedDataParallel)
        with forward.towers.no_sync() if local else nullcontext():  # type: ignore[operator]
            output = forward.student(rows, seed + i)
            mark("forward")
            gradients = {name: _gradient(leaf)[own] for name, leaf in leaves.items()}
            _propagate(output, gradients, [_gradient(leaf) for leaf in scalars] if last else [])
            mark("backward")
    return Losses(terms=terms, features=features, scale=students[0].scale.detach().reshape(()))


def _propagate(output: StudentOutput, gradients: dict[str, Tensor], of_scalars: list[Tensor]) -> None:
    """Propagate gradients of the features, and of the scalars if given, to the parameters."""
    tensors = [output.features[name] for name in gradients] + output.scalars[: len(of_scalars)]
    trained = [tensor.requires_grad for tensor in tensors]  # a tower may be frozen
    values = [*gradients.values(), *of_scalars]
    torch.autograd.backward(list(compress(tensors, trained)), list(compress(values, trained)))


def _concatenated(features: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([f[name] for f in features]) for name in features[0]}


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
