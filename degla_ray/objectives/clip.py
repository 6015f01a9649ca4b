"""Plain CLIP: symmetric cross-entropy over the global batch, no negatives, no teacher.

This is DeGLA's L_base with K = 0, and the two share one definition. For a model with a `logit_bias` it is
SigLIP's loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from degla_ray.config import ObjectiveConfig
from degla_ray.objectives.degla import base
from degla_ray.objectives.features import Features
from degla_ray.objectives.gather import gather


def losses(
    features: Features, logit_scale: Tensor, config: ObjectiveConfig, logit_bias: Tensor | None = None
) -> dict[str, Tensor]:
    """Return `loss` and `base`, which are equal; negatives and teacher features are ignored."""
    del config  # plain CLIP has no settings
    with torch.autocast(features.img_BD.device.type, enabled=False):
        loss = base(features, gather(features, negatives=False), logit_scale.float(), logit_bias)
    return {"loss": loss, "base": loss}
