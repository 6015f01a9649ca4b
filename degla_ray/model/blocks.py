"""open_clip's transformer blocks without padding, and in the last block only for the pooled tokens.

The tokens of all rows are packed into one sequence for layers that act on each token separately (linear
layers and norms, at least 95 % of the FLOPs). Only attention, which must not cross rows, sees the padded
[B, L] layout. A tower uses one token per row of the last block's output, so only that token is a query there
and passes through the MLP. The result equals open_clip's. A ViT-B/32 step with 16 images and 80 captions
computes a third of the FLOPs that 77 tokens per caption take.

Shape suffixes: B rows, L positions per row, T tokens of all rows, W width, X 3 W or 2 W, H heads, D W / H.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Mapping between the padded layout [B, L, ...] and the packed layout [T, ...] of the same tokens.

    Attributes:
        shape: (B, L).
        causal: whether a token attends only to itself and earlier tokens of its row.
        place_T: int64, index of each token in the flattened B * L positions, where a row's tokens precede its
            padding; None without padding.
    """

    shape: tuple[int, int]
    causal: bool
    place_T: Tensor | None = None

    def unpad(self, padded: Tensor) -> Tensor:
        """Remove the padding: [B, L, ...] -> [T, ...]."""
        places = padded.flatten(0, 1)
        return places if self.place_T is None else places[self.place_T]

    def pad(self, packed: Tensor) -> Tensor:
        """Restore the padding: [T, ...] -> [B, L, ...], with 0 at padded positions."""
        if self.place_T is not None:
            B, L = self.shape
            places = packed.new_zeros(B * L, *packed.shape[1:])
            packed = places.index_copy(0, self.place_T, packed)
        return packed.unflatten(0, self.shape)

    def mask_B11L(self) -> Tensor | None:
        """Return attention's bool mask [B, 1, 1, L], True at tokens; None without padding."""
        if self.place_T is None:
            return None
        real = self.pad(torch.ones_like(self.place_T, dtype=torch.bool))
        return real[:, None, None]


def known(transformer: Any) -> bool:
    """Return whether all blocks of `transformer` are of the type that this file computes."""
    return all(type(block) is ResidualAttentionBlock for block in transformer.resblocks)


def pooled_output(transformer: Any, x_TW: Tensor, packing: Packing, pooled_B: Tensor) -> Tensor:
    """Return x_BW, the transformer's output for one token per row.

    Args:
        transformer: open_clip Transformer for which `known` is true.
        x_TW: embedded tokens, packed.
        packing: layout of the tokens.
        pooled_B: int64, index of each row's pooled token among the T tokens; if causal, the row's last token.
    """
    *blocks, last = transformer.resblocks
    for block in blocks:
        if transformer.grad_checkpointing and torch.is_grad_enabled():
            x_TW = checkpoint(_block, block, x_TW, packing, use_reentrant=False)
        else:
            x_TW = _block(block, x_TW, packing)
    return _last_block(last, x_TW, packing, pooled_B)


def _block(block: ResidualAttentionBlock, x_TW: Tensor, packing: Packing) -> Tensor:
    attn, y_TW = block.attn, block.ln_1(x_TW)
    qkv_TX = F.linear(y_TW, attn.in_proj_weight, attn.in_proj_bias)
    q_BHLD, k_BHLD, v_BHLD = (_heads(x_BLW, attn) for x_BLW in packing.pad(qkv_TX).chunk(3, dim=-1))
    # Padding follows the tokens, so causal rows need no mask; non-causal rows have no padding.
    seen_BHLD = F.scaled_dot_product_attention(q_BHLD, k_BHLD, v_BHLD, is_causal=packing.causal)
    x_TW = x_TW + block.ls_1(attn.out_proj(packing.unpad(seen_BHLD.transpose(1, 2).flatten(2))))
    return x_TW + block.ls_2(_mlp(block.mlp, block.ln_2(x_TW)))


def _last_block(block: ResidualAttentionBlock, x_TW: Tensor, packing: Packing, pooled_B: Tensor) -> Tensor:
    attn, y_TW, x_BW = block.attn, block.ln_1(x_TW), x_TW[pooled_B]
    weight_XW, bias_X, W = attn.in_proj_weight, attn.in_proj_bias, x_TW.shape[1]
    q_BW = F.linear(y_TW[pooled_B], weight_XW[:W], bias_X[:W])
    k_BHLD, v_BHLD = (
        _heads(x_BLW, attn)
        for x_BLW in packing.pad(F.linear(y_TW, weight_XW[W:], bias_X[W:])).chunk(2, dim=-1)
    )
    seen_BHLD = F.scaled_dot_product_attention(
        _heads(q_BW[:, None], attn), k_BHLD, v_BHLD, attn_mask=packing.mask_B11L()
    )
    x_BW = x_BW + block.ls_1(attn.out_proj(seen_BHLD.flatten(1)))
    return x_BW + block.ls_2(_mlp(block.mlp, block.ln_2(x_BW)))


def _mlp(mlp: Any, x_TW: Tensor) -> Tensor:
    if not isinstance(mlp.gelu, QuickGELU):
        return mlp(x_TW)
    # x·σ(1.702 x) computed as SiLU, which saves one tensor for the backward pass instead of two.
    return mlp.c_proj(F.silu(1.702 * mlp.c_fc(x_TW)) / 1.702)


def _heads(x_BLW: Tensor, attn: nn.MultiheadAttention) -> Tensor:
    return x_BLW.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)
