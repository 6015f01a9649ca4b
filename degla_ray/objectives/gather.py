"""The global batch as one worker sees it: the only file that knows of ranks.

Each worker's loss is a mean over its own B rows against the columns of the whole global batch. The mean
of the workers' losses is then the single-process loss, and since every column keeps its gradient and the
backward pass brings it home to its owner (summed over the workers), DDP's average over the workers is the
single-process gradient of every parameter, logit_scale included.

Cost: one all-gather of B*(2+K)*D floats forward and its reduce-scatter backward, nothing else: which
negatives exist is read off their features, and teacher features stay where they were made. The N x N(1+K)
logits are never made on one worker, only B x N(1+K).

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
    """Every worker's features, in rank order, with gradient.

    Attributes:
        img_ND: student image features.
        txt_ND: student caption features.
        neg_NKD: student features of the negatives.
        neg_mask_NK: bool, which negatives exist.
        own_B: int64, the global rows that are this worker's own.
    """

    img_ND: Tensor
    txt_ND: Tensor
    neg_NKD: Tensor
    neg_mask_NK: Tensor
    own_B: Tensor


def gather(own: Features, *, negatives: bool = True) -> GlobalBatch:
    """The global batch around `own`; without a process group, `own` is the global batch.

    Args:
        own: this worker's rows; every worker must bring equally many rows and the same K.
        negatives: False leaves the negatives out (K = 0).
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
        # Features are 0 where a negative is missing and have norm 1 elsewhere.
        neg_mask_NK=(neg_NKD.detach() != 0).any(dim=-1),
        own_B=torch.arange(B, device=own.img_BD.device) + dist.get_rank() * B,
    )


def sum_over_workers(values: Tensor) -> Tensor:
    """`values` summed over all workers, without gradient; without a process group, a copy."""
    total = values.detach().clone()
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(total)
    return total


def _all_gather(rows_BX: Tensor) -> Tensor:
    rows_NX = rows_BX.new_empty(rows_BX.shape[0] * dist.get_world_size(), *rows_BX.shape[1:])
    dist.all_gather_single(rows_NX, rows_BX.contiguous())
    return rows_NX


class _AllGather(torch.autograd.Function):
    """Rows of every worker; backward sums what all workers' losses ask of this worker's rows."""

    @staticmethod
    def forward(ctx: Any, rows_BX: Tensor) -> Tensor:
        return _all_gather(rows_BX)

    @staticmethod
    def backward(ctx: Any, grad_NX: Tensor) -> Tensor:
        grad_BX = grad_NX.new_empty(grad_NX.shape[0] // dist.get_world_size(), *grad_NX.shape[1:])
        dist.reduce_scatter_single(grad_BX, grad_NX.contiguous())
        return grad_BX
