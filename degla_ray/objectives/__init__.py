"""Objectives: pure functions of features. To add one, write a file with `losses` and register it below."""

from __future__ import annotations

from torch import Tensor

from degla_ray.config import ObjectiveConfig
from degla_ray.objectives import ceclip, clip, degla, negclip
from degla_ray.objectives.features import Features

ObjectiveState = dict[str, Tensor]
"""Tensors that an objective carries from one step to the next; {} for most objectives."""

_OBJECTIVES = {
    "clip": clip.losses,
    "negclip": negclip.losses,
    "ceclip": ceclip.losses,
    "degla": degla.losses,
}

__all__ = ["Features", "ObjectiveState", "losses", "next_state"]


def losses(
    features: Features,
    logit_scale: Tensor,
    config: ObjectiveConfig,
    *,
    logit_bias: Tensor | None = None,
    state: ObjectiveState | None = None,
) -> dict[str, Tensor]:
    """Return the loss and the terms of the objective that `config` selects.

    Args:
        features: this worker's rows.
        logit_scale: exp of the model's parameter, scalar.
        config: the objective, its weights and variants.
        logit_bias: bias of a SigLIP-style model, scalar; None for other models.
        state: what `next_state` returned after the previous step; None or {} at the start of an epoch.

    Returns:
        Scalars, float32: `loss` to backpropagate, and its unweighted terms (always `base`). Each is a mean
        over this worker's rows; its average over the workers is the global value.
    """
    return _OBJECTIVES[config.name](features, logit_scale, config, logit_bias, **(state or {}))


def next_state(features: Features, logit_scale: Tensor, config: ObjectiveConfig) -> ObjectiveState:
    """Return the state for the next step's `losses`, computed from this step's features.

    Every worker must call this, because CE-CLIP's state is summed over the workers.
    """
    if config.name != "ceclip":
        return {}
    return {"threshold_K": ceclip.next_threshold(features, logit_scale, config.cmr_threshold_max)}
