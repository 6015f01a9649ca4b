"""NegCLIP (arXiv 2210.01936): CLIP's loss with one random negative of each caption among the texts.

    X = [I; I'],  Y = [T; T'; T⁻; T'⁻],  L = ½ [ CE(s·X·Yᵀ) + CE(s·Y[:2B]·Xᵀ) ]

which is DeGLA's L_base with K = 1 over the rows I and I' laid end to end. I' are hard-negative images, each
a neighbour of its row with its own caption and negative; without them, the rows are I alone. So hard images
are a matter of the data (`data.neighbours`), and this file need not know of them.
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
    """`loss` and `base`, which are the same; teacher features are ignored if given."""
    del config  # all it says is K
    with torch.autocast(features.img_BD.device.type, enabled=False):
        loss = base(features, gather(features), logit_scale.float(), logit_bias)
    return {"loss": loss, "base": loss}
