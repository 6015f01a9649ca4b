"""NegCLIP (arXiv 2210.01936): CLIP's loss with one random negative per caption among the texts.

    X = [I; I'],  Y = [T; T'; T⁻; T'⁻],  L = ½ [ CE(s·X·Yᵀ) + CE(s·Y[:2B]·Xᵀ) ]

This is DeGLA's L_base with K = 1 over the concatenated rows I and I'. I' are hard-negative images, each a
neighbour of an image in I with its own caption and negative; without them the rows are I alone. The data
loader supplies them (`data.neighbours`), so this file does not distinguish them.
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
    """Return `loss` and `base`, which are equal; teacher features are ignored."""
    del config  # its only setting is K, which the features' shape gives
    with torch.autocast(features.img_BD.device.type, enabled=False):
        loss = base(features, gather(features), logit_scale.float(), logit_bias)
    return {"loss": loss, "base": loss}
