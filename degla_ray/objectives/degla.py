"""DeGLA (arXiv 2504.16801): L = L_base + λ_igc·L_IGC + λ_tgc·L_TGC + λ_distill·L_distill.

Four functions implement the paper's four terms. Each is a mean over a worker's own rows; thanks to
`gather.py`, the mean over the workers is that of the global batch.

Where the released code differs from the paper, the paper is the default and the code is an option:
`tgc_negatives: released` (TGC against other captions' negatives) and `distill_reduction: sum`.

Symbols: v image, t caption, n negative, a hat (here `teacher_`) the EMA teacher; s = exp(logit_scale);
N global batch, B own rows, K negatives per caption, U = N(1+K) all texts of the global batch, D feature
dimension. All features are L2-normalised float32. A negative whose mask is False does not exist.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from degla_ray.config import ObjectiveConfig
from degla_ray.objectives.features import Features
from degla_ray.objectives.gather import GlobalBatch, gather


@dataclass(frozen=True, kw_only=True)
class Softening:
    """Focal factor and label smoothing of IGC and TGC (FSC-CLIP, arXiv 2410.05210).

    −Σ_c y_c (1 − p_c)^γ log p_c over the candidates c (the positive and the existing negatives), where y is
    (1 − β) on the positive plus β spread evenly over all. γ = β = 0 is cross-entropy.

    Attributes:
        gamma: γ of the focal factor.
        smoothing: β of the labels.
    """

    gamma: float = 0.0
    smoothing: float = 0.0


PLAIN = Softening()


def base(own: Features, batch: GlobalBatch, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return L_base = ½ [ mean_i CE( s·v_i·U , t_i ) + mean_i CE( s·t_i·{v_1..v_N} , v_i ) ].

    Images are contrasted with every text of the global batch, negatives included; captions, but not
    negatives, are contrasted with the images. A model with a `logit_bias` b was trained with SigLIP's
    pairwise loss (arXiv 2303.15343), which is then kept:
    L_base = −mean_i Σ_{u ∈ U} log σ( ±(s·v_i·u + b) ), + for u = t_i and − for every other text.

    Args:
        own: this worker's rows.
        batch: the global batch.
        scale: s, already exponentiated.
        bias: b of a SigLIP-style model; None for other models.
    """
    texts_UD = torch.cat([batch.txt_ND, batch.neg_NKD.flatten(0, 1)])
    exists_U = torch.cat([batch.neg_mask_NK.new_ones(len(batch.txt_ND)), batch.neg_mask_NK.flatten()])
    image_to_text_BU = scale * own.img_BD @ texts_UD.T
    if bias is not None:
        sign_BU = torch.full_like(image_to_text_BU, -1.0).scatter(1, batch.own_B[:, None], 1.0)
        pairs_BU = F.softplus(-sign_BU * (image_to_text_BU + bias)).masked_fill(~exists_U, 0.0)
        return pairs_BU.sum(dim=1).mean()
    image_to_text_BU = image_to_text_BU.masked_fill(~exists_U, -torch.inf)
    text_to_image_BN = scale * own.txt_BD @ batch.img_ND.T
    return (
        F.cross_entropy(image_to_text_BU, batch.own_B) + F.cross_entropy(text_to_image_BN, batch.own_B)
    ) / 2


def igc(own: Features, scale: Tensor, softening: Softening = PLAIN) -> Tensor:
    """Return L_IGC = mean_i −log e^{s v_i·t_i} / ( e^{s v_i·t_i} + Σ_k e^{s v_i·n_ik} ); n_ik are i's own."""
    return _contrast(own.img_BD, own.txt_BD, own.neg_BKD, own.neg_mask_BK, scale, softening)


def tgc(
    own: Features,
    batch: GlobalBatch,
    temperature: float,
    negatives: str = "own",
    softening: Softening = PLAIN,
) -> Tensor:
    """Return L_TGC = mean_i −log e^{τ t_i·t̂_i} / ( e^{τ t_i·t̂_i} + Σ_k e^{τ t_i·n_ik} ).

    The anchor is the student's caption, the positive the teacher's embedding of the same caption; the
    negatives are the student's.

    Args:
        own: this worker's rows.
        batch: the global batch, used by `released` only.
        temperature: τ, which multiplies the similarities (an inverse temperature).
        negatives: `own` (the paper), or `released`, the released code's mask: it selects columns i+m·N for
            row i, though caption i's negatives are in columns i·K+k (right for 4 of 1024 at N = 256, K = 4).
        softening: focal factor and label smoothing of the cross-entropy.
    """
    assert own.teacher_txt_BD is not None
    neg_BKD, mask_BK = own.neg_BKD, own.neg_mask_BK
    if negatives == "released":
        N, K = batch.neg_mask_NK.shape
        column_BK = batch.own_B[:, None] + N * torch.arange(K, device=batch.own_B.device)
        column_J = column_BK.flatten()  # index_select: the backward pass of [] sorts its indices
        neg_BKD = batch.neg_NKD.flatten(0, 1).index_select(0, column_J).unflatten(0, column_BK.shape)
        mask_BK = batch.neg_mask_NK.flatten().index_select(0, column_J).unflatten(0, column_BK.shape)
    return _contrast(own.txt_BD, own.teacher_txt_BD, neg_BKD, mask_BK, temperature, softening)


def distill(own: Features) -> Tensor:
    """Return L_distill = mean_i ( |v_i−v̂_i|² + |t_i−t̂_i|² + Σ_k |n_ik−n̂_ik|² )."""
    assert own.teacher_img_BD is not None
    assert own.teacher_txt_BD is not None
    assert own.teacher_neg_BKD is not None
    img_B = (own.img_BD - own.teacher_img_BD).square().sum(dim=-1)
    txt_B = (own.txt_BD - own.teacher_txt_BD).square().sum(dim=-1)
    neg_B = (own.neg_BKD - own.teacher_neg_BKD).square().sum(dim=(-1, -2))  # 0 for missing negatives
    return (img_B + txt_B + neg_B).mean()


def losses(
    features: Features, logit_scale: Tensor, config: ObjectiveConfig, logit_bias: Tensor | None = None
) -> dict[str, Tensor]:
    """Return the four terms and their weighted sum; their average over the workers is the global value.

    Args:
        features: this worker's rows, with teacher features unless λ_tgc and λ_distill are 0.
        logit_scale: s, already exponentiated.
        config: weights and variants.
        logit_bias: b of a SigLIP-style model; it enters L_base only, as it cancels in IGC.

    Returns:
        Scalars `loss`, `base`, `igc`, `tgc`, `distill`; only `loss` is weighted.

    Raises:
        ValueError: a term with non-zero weight needs teacher features, which are missing.
    """
    if features.teacher_img_BD is None and config.wants_teacher:
        raise ValueError("objective degla needs teacher features unless lambda_tgc = lambda_distill = 0")
    softening = Softening(gamma=config.focal_gamma, smoothing=config.label_smoothing)
    with torch.autocast(features.img_BD.device.type, enabled=False):
        scale = logit_scale.float()
        batch = gather(features)
        terms = {"base": base(features, batch, scale, logit_bias), "igc": igc(features, scale, softening)}
        if features.teacher_img_BD is None:
            terms["tgc"] = terms["distill"] = terms["base"].new_zeros(())
        else:
            terms["tgc"] = tgc(features, batch, config.tgc_scale, config.tgc_negatives, softening)
            terms["distill"] = distill(features)
            if config.distill_reduction == "sum":
                terms["distill"] = terms["distill"] * len(batch.img_ND)
        loss = (
            terms["base"]
            + config.lambda_igc * terms["igc"]
            + config.lambda_tgc * terms["tgc"]
            + config.lambda_distill * terms["distill"]
        )
    return {"loss": loss, **terms}


def _contrast(
    anchor_BD: Tensor,
    positive_BD: Tensor,
    neg_BKD: Tensor,
    mask_BK: Tensor,
    scale: Tensor | float,
    softening: Softening,
) -> Tensor:
    """Return mean_i −log e^{s a_i·p_i} / ( e^{s a_i·p_i} + Σ_k e^{s a_i·n_ik} ).

    A row without negatives contributes 0.
    """
    positive_B1 = (anchor_BD * positive_BD).sum(dim=-1, keepdim=True)
    negative_BK = torch.einsum("bd,bkd->bk", anchor_BD, neg_BKD)
    # Masked after scaling: -inf times the scale would give the scale a gradient of 0 * -inf = NaN.
    logits = torch.cat([scale * positive_B1, (scale * negative_BK).masked_fill(~mask_BK, -torch.inf)], dim=1)
    if softening == PLAIN:
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
    exists = torch.cat([mask_BK.new_ones(len(mask_BK), 1), mask_BK], dim=1)
    log_p = F.log_softmax(logits, dim=1).masked_fill(~exists, 0.0)
    target = exists * (softening.smoothing / exists.sum(dim=1, keepdim=True))
    target[:, 0] += 1.0 - softening.smoothing
    # At p = 1, the power of 1 - p = 0 has an infinite gradient for an exponent below 1.
    doubt = (1.0 - log_p.exp()).clamp(min=torch.finfo(log_p.dtype).tiny) ** softening.gamma
    return -(target * doubt * log_p).sum(dim=1).mean()
