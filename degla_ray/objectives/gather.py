"""The global batch as one worker sees it; the only objective code that knows ranks.

Each worker's loss is a mean over its own B rows against the columns of the whole global batch. The mean of
the workers' losses is therefore the single-process loss. Every column keeps its gradient, and the backward
pass returns it, summed over the workers, to the worker that owns the column. DDP's average over the workers
is thus the single-process gradient of every parameter, logit_scale included.

Cost: one all-gather of B*(2+K)*D floats in the forward pass and its reduce-scatter in the backward pass. No
masks are sent, as an absent negative has zero features, and teacher features stay on their worker. No worker
computes the N x N(1+K) logits, only its own B x N(1+K).

Shape suffixes: N global batch, B own rows, K negatives per caption, D feature dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from degla_ray.objectives.features import Features


@dataclass(frozen=True, kw_only=True)
class GlobalBatch:
    """Features of all workers in rank order, with gradient.

    Attributes:
        img_ND: student image features.
        txt_ND: student caption features.
        neg_NKD: student features of the negatives.
        neg_mask_NK: bool, which negatives exist.
        own_B: int64, indices of this worker's rows in the global batch.
    """

    img_ND: Tensor
    txt_ND: Tensor
    neg_NKD: Tensor
    neg_mask_NK: Tensor
    own_B: Tensor


def gather(own: Features, *, negatives: bool = True) -> GlobalBatch:
    """Return the global batch of all workers' rows; without a process group, `own` is the global batch.

    Args:
        own: this worker's rows; all workers must pass the same number of rows and the same K.
        negatives: whether to include the negatives (False means K = 0).
    """
    neg_BKD = own.neg_BKD if negatives else own.neg_BKD[:, :0]
    mask_BK = own.neg_mask_BK if negatives else own.neg_mask_BK[:, :0]
    B, K, D = neg_BKD.shape
    workers = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if workers == 1:
        own_B = torch.arange(B, device=own.img_BD.device)
        return GlobalBatch(
            img_ND=own.img_BD, txt_ND=own.txt_BD, neg_NKD=neg_BKD, neg_mask_NK=mask_BK, own_B=own_B
        )

    packed_NX = _AllGather.apply(torch.cat([own.img_BD, own.txt_BD, neg_BKD.flatten(1)], dim=1))
    neg_NKD = packed_NX[:, 2 * D :].unflatten(1, (K, D)) if K else packed_NX.new_zeros(B * workers, 0, D)
    return GlobalBatch(
        img_ND=packed_NX[:, :D],
        txt_ND=packed_NX[:, D : 2 * D],
        neg_NKD=neg_NKD,
        # An absent negative's features are 0; all others have norm 1.
        neg_mask_NK=(neg_NKD.detach() != 0).any(dim=-1),
        own_B=torch.arange(B, device=own.img_BD.device) + dist.get_rank() * B,
    )


def sum_over_workers(values: Tensor) -> Tensor:
    """Return `values` summed over all workers, without gradient; without a process group, a copy."""
    total = values.detach().clone()
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(total)
    return total


def _all_gather(rows_BX: Tensor) -> Tensor:
    rows_NX = rows_BX.new_empty(rows_BX.shape[0] * dist.get_world_size(), *rows_BX.shape[1:])
    dist.all_gather_single(rows_NX, rows_BX.contiguous())
    return rows_NX


class _AllGather(torch.autograd.Function):
    """All-gather of rows. The backward pass sums all workers' gradients of this worker's rows."""

    @staticmethod
    def forward(ctx: Any, rows_BX: Tensor) -> Tensor:
        return _all_gather(rows_BX)

    @staticmethod
    def backward(ctx: Any, grad_NX: Tensor) -> Tensor:
        grad_BX = grad_NX.new_empty(grad_NX.shape[0] // dist.get_world_size(), *grad_NX.shape[1:])
        dist.reduce_scatter_single(grad_BX, grad_NX.contiguous())
        return grad_BX
