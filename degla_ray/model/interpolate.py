"""WiSE-FT (arXiv 2109.01903): interpolated weights of two models, θ = (1 − α)·θ₀ + α·θ₁.

Fine-tuning for one ability costs others; a point between the initial and the final weights often keeps more
of both.
"""

from __future__ import annotations

import copy
import dataclasses

import torch

from degla_ray.errors import DataError
from degla_ray.model.loaded import LoadedModel


@torch.no_grad()
def interpolate(first: LoadedModel, second: LoadedModel, alpha: float) -> LoadedModel:
    """Return the model at α between `first` (α = 0) and `second` (α = 1).

    All floating-point tensors are interpolated, including `logit_scale`.

    Args:
        first: initial model, which also supplies tokenizer and preprocessing.
        second: model of the same architecture, usually fine-tuned from `first`.
        alpha: α, usually 0 to 1; values outside extrapolate.

    Raises:
        DataError: the models differ in architecture, activation or preprocessing.
    """
    for what in ("activation", "preprocess_cfg"):
        mine, other = getattr(first, what), getattr(second, what)
        if mine != other:
            raise DataError(second.name, f"{what} {other}", f"that of {first.name}: {mine}")
    start, end = first.model.state_dict(), second.model.state_dict()
    shapes = [{name: tuple(t.shape) for name, t in state.items()} for state in (start, end)]
    if shapes[0] != shapes[1]:
        differ = sorted(dict(shapes[0].items() ^ shapes[1].items()))
        raise DataError(
            second.name, f"{len(differ)} tensors that differ ({differ[0]}, …)", f"the tensors of {first.name}"
        )
    between = {
        n: torch.lerp(t, end[n].to(t), alpha) if t.is_floating_point() else t for n, t in start.items()
    }
    model = copy.deepcopy(first.model)
    model.load_state_dict(between)
    return dataclasses.replace(
        first, model=model, source=f"{1 - alpha:g} * {first.name} + {alpha:g} * {second.name}"
    )
