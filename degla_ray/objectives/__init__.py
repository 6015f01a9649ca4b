"""Objectives: pure functions of features. A new one is a file with `losses` and a row in the table below."""

from __future__ import annotations

from torch import Tensor

from degla_ray.config import ObjectiveConfig
from degla_ray.objectives import clip, degla
from degla_ray.objectives.features import Features

_OBJECTIVES = {"clip": clip.losses, "degla": degla.losses}

__all__ = ["Features", "losses"]


def losses(features: Features, logit_scale: Tensor, config: ObjectiveConfig) -> dict[str, Tensor]:
    """The objective that `config.name` says.

    Args:
        features: a worker's own rows.
        logit_scale: exp of the model's parameter, scalar.
        config: which objective, its weights and variants.

    Returns:
        Scalars, float32: `loss` to backpropagate, and its unweighted terms (`base` always; `igc`, `tgc`
        and `distill` with degla). Each is a mean over own rows: average over workers for the global value.
    """
    return _OBJECTIVES[config.name](features, logit_scale, config)
