"""CE-CLIP (arXiv 2306.08832): L = L_base + λ_cmr·CMR + λ_imc·IMC.

    S_i = s·v_i·t_i,  D_ik = s·v_i·n_ik,  m_ik = 1 where the negative exists

CMR ranks each pair above its own negatives by a margin th_k, which follows their current mean distance. IMC
pushes captions away from all negatives of the global batch. The margins are the objective's only state: each
step computes those of the next, and every epoch starts with 0. The released code's IMC omits the positive and
uses the batch's first negative as the target of every row; `imc_target: released` reproduces this.

Shape suffixes as in degla.py; J = N·K all negatives of the global batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from degla_ray.config import ObjectiveConfig
from degla_ray.objectives.degla import base
from degla_ray.objectives.features import Features
from degla_ray.objectives.gather import GlobalBatch, gather, sum_over_workers


def cmr(own: Features, scale: Tensor, threshold_K: Tensor) -> Tensor:
    """Return CMR = 1/(N·K) Σ_ik m_ik · relu( th_k + D_ik − S_i ); entries without a negative count as 0.

    Args:
        own: this worker's rows.
        scale: s, already exponentiated.
        threshold_K: th, in logits, without gradient.
    """
    pair_B, neg_BK = _logits(own, scale)
    hinge_BK = F.relu(threshold_K + neg_BK - pair_B[:, None]) * own.neg_mask_BK
    return hinge_BK.sum() / max(1, hinge_BK.numel())


def imc(own: Features, batch: GlobalBatch, scale: Tensor, target: str = "paper") -> Tensor:
    """Return IMC = −mean_i log e^{S_i} / ( e^{S_i} + Σ_{j,k} e^{s t_i·n_jk} ) over the batch's negatives.

    Args:
        own: this worker's rows.
        batch: the global batch.
        scale: s, already exponentiated.
        target: `paper` (the formula above), or `released`: −mean_i log e^{s t_i·n_0} / Σ_{j,k} e^{s t_i·n_jk}
            with n_0 the batch's first negative.
    """
    exists_J = batch.neg_mask_NK.flatten()
    negative_BJ = scale * own.txt_BD @ batch.neg_NKD.flatten(0, 1).T
    if target == "paper":
        pair_B, _ = _logits(own, scale)
        logits = torch.cat([pair_B[:, None], negative_BJ.masked_fill(~exists_J, -torch.inf)], dim=1)
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
    if not len(exists_J):
        return negative_BJ.sum()  # K = 0: 0, but still part of the autograd graph
    # A batch without any negative is unmasked and then multiplied by 0, so the device is not asked for sizes.
    any_exists = exists_J.any()
    logits = negative_BJ.masked_fill(~exists_J & any_exists, -torch.inf)
    first = exists_J.int().argmax().expand(len(logits))
    return F.cross_entropy(logits, first) * any_exists


@torch.no_grad()
def next_threshold(own: Features, logit_scale: Tensor, largest: float) -> Tensor:
    """Return th_k = clamp( mean_i S_i − Σ_i D_ik / #{i: m_ik}, 0, `largest` ), [K], over the global batch.

    A column k without any negative gets clamp(mean_i S_i), where the released code computes 0/0.

    Args:
        own: this worker's rows.
        logit_scale: s, already exponentiated.
        largest: upper bound of a margin, in logits.
    """
    pair_B, neg_BK = _logits(own, logit_scale.float())
    sums = torch.cat([pair_B.sum()[None], (neg_BK * own.neg_mask_BK).sum(0), own.neg_mask_BK.sum(0).float()])
    sums = sum_over_workers(torch.cat([sums, pair_B.new_full((1,), len(pair_B))]))
    K = neg_BK.shape[1]
    return (sums[0] / sums[-1] - sums[1 : K + 1] / sums[K + 1 : -1].clamp(min=1.0)).clamp(0.0, largest)


def losses(
    features: Features,
    logit_scale: Tensor,
    config: ObjectiveConfig,
    logit_bias: Tensor | None = None,
    threshold_K: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return `loss` and the unweighted terms `base`, `cmr` and `imc`.

    Args:
        features: this worker's rows; teacher features are ignored.
        logit_scale: s, already exponentiated.
        config: weights and variants.
        logit_bias: b of a SigLIP-style model; it enters L_base only, as it cancels in the other terms.
        threshold_K: margins from the previous step (`next_threshold`); None means 0.
    """
    with torch.autocast(features.img_BD.device.type, enabled=False):
        scale = logit_scale.float()
        batch = gather(features)
        if threshold_K is None:
            threshold_K = features.neg_BKD.new_zeros(features.neg_BKD.shape[1])
        terms = {
            "base": base(features, batch, scale, logit_bias),
            "cmr": cmr(features, scale, threshold_K),
            "imc": imc(features, batch, scale, config.imc_target),
        }
        loss = terms["base"] + config.lambda_cmr * terms["cmr"] + config.lambda_imc * terms["imc"]
    return {"loss": loss, **terms}


def _logits(own: Features, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return S_B and D_BK."""
    pair_B = scale * (own.img_BD * own.txt_BD).sum(dim=-1)
    return pair_B, scale * torch.einsum("bd,bkd->bk", own.img_BD, own.neg_BKD)
