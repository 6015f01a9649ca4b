"""Objectives: pure functions of features. A new one is a file with `losses` and a row in the table below."""

from __future__ import annotations

from torch import Tensor

from degla_ray.config import ObjectiveConfig
from degla_ray.objectives import ceclip, clip, degla, negclip
from degla_ray.objectives.features import Features

State = dict[str, Tensor]
"""What an objective carries from one step to the next; most carry nothing."""

_OBJECTIVES = {
    "clip": clip.losses,
    "negclip": negclip.losses,
    "ceclip": ceclip.losses,
    "degla": degla.losses,
}

__all__ = ["Features", "State", "losses", "next_state"]


def losses(
    features: Features,
    logit_scale: Tensor,
    config: ObjectiveConfig,
    *,
    logit_bias: Tensor | None = None,
    state: State | None = None,
) -> dict[str, Tensor]:
    """The objective that `config.name` says.

    Args:
        features: a worker's own rows.
        logit_scale: exp of the model's parameter, scalar.
        config: which objective, its weights and variants.
        logit_bias: the parameter of a SigLIP-style model, scalar.
        state: what `next_state` returned after the step before; none at the start of an epoch.

    Returns:
        Scalars, float32: `loss` to backpropagate, and its unweighted terms (`base` always). Each is a mean
        over own rows: average over workers for the global value.
    """
    return _OBJECTIVES[config.family](features, logit_scale, config, logit_bias, **(state or {}))


def next_state(features: Features, logit_scale: Tensor, config: ObjectiveConfig) -> State:
    """What the next step's `losses` needs of this step's features; every worker must call it."""
    if config.family != "ceclip":
        return {}
    return {"threshold_K": ceclip.next_threshold(features, logit_scale, config.cmr_threshold_max)}
