"""open_clip's transformer blocks on the tokens that matter: no padding, and last only what is pooled.

The tokens of all rows are packed into one long row for everything that works on each token alone (linear
layers and norms, 95 % of the FLOPs and more); only attention, which must not cross rows, sees them side by
side. Of the last block's output a tower uses one token a row, so only that one asks, and goes through the
MLP. The result is open_clip's own; a ViT-B/32 step with 16 images and 80 captions computes a third of
the FLOPs that 77 tokens a caption take.

Shape suffixes: B rows, L places side by side, T tokens of all rows, W width, X 3 W or 2 W, H heads, D W / H.
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
    """Where the tokens of B rows lie, side by side or packed.

    Attributes:
        shape: (B, L).
        causal: a token sees only those before it.
        place_T: index of each token among the B * L places, a row's tokens before its padding; none where
            every place holds one.
    """

    shape: tuple[int, int]
    causal: bool
    place_T: Tensor | None = None

    def pack(self, side_by_side: Tensor) -> Tensor:
        """[B, L, ...] -> [T, ...]"""
        places = side_by_side.flatten(0, 1)
        return places if self.place_T is None else places[self.place_T]

    def spread(self, packed: Tensor) -> Tensor:
        """[T, ...] -> [B, L, ...], 0 where there is no token."""
        if self.place_T is not None:
            B, L = self.shape
            places = packed.new_zeros(B * L, *packed.shape[1:])
            packed = places.index_copy(0, self.place_T, packed)
        return packed.unflatten(0, self.shape)

    def mask_B11L(self) -> Tensor | None:
        """bool, where there is a token, as attention wants it; none where there is one everywhere."""
        if self.place_T is None:
            return None
        real = self.spread(torch.ones_like(self.place_T, dtype=torch.bool))
        return real[:, None, None]


def known(transformer: Any) -> bool:
    """Whether `transformer` is made of the blocks that this file computes."""
    return all(type(block) is ResidualAttentionBlock for block in transformer.resblocks)


def pooled_output(transformer: Any, x_TW: Tensor, packing: Packing, pooled_B: Tensor) -> Tensor:
    """x_BW: what the transformer makes of one token of each row.

    Args:
        transformer: open_clip Transformer, of which `known` is true.
        x_TW: embedded tokens, packed.
        packing: their places.
        pooled_B: index of each row's pooled token among the T. Where `causal`, its last one.
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
    q_BHLD, k_BHLD, v_BHLD = (_heads(x_BLW, attn) for x_BLW in packing.spread(qkv_TX).chunk(3, dim=-1))
    # Padding comes after what is real, so a causal row needs no mask; a row that is not has no padding.
    seen_BHLD = F.scaled_dot_product_attention(q_BHLD, k_BHLD, v_BHLD, is_causal=packing.causal)
    x_TW = x_TW + block.ls_1(attn.out_proj(packing.pack(seen_BHLD.transpose(1, 2).flatten(2))))
    return x_TW + block.ls_2(_mlp(block.mlp, block.ln_2(x_TW)))


def _last_block(block: ResidualAttentionBlock, x_TW: Tensor, packing: Packing, pooled_B: Tensor) -> Tensor:
    attn, y_TW, x_BW = block.attn, block.ln_1(x_TW), x_TW[pooled_B]
    weight_XW, bias_X, W = attn.in_proj_weight, attn.in_proj_bias, x_TW.shape[1]
    q_BW = F.linear(y_TW[pooled_B], weight_XW[:W], bias_X[:W])
    k_BHLD, v_BHLD = (
        _heads(x_BLW, attn)
        for x_BLW in packing.spread(F.linear(y_TW, weight_XW[W:], bias_X[W:])).chunk(2, dim=-1)
    )
    seen_BHLD = F.scaled_dot_product_attention(
        _heads(q_BW[:, None], attn), k_BHLD, v_BHLD, attn_mask=packing.mask_B11L()
    )
    x_BW = x_BW + block.ls_1(attn.out_proj(seen_BHLD.flatten(1)))
    return x_BW + block.ls_2(_mlp(block.mlp, block.ln_2(x_BW)))


def _mlp(mlp: Any, x_TW: Tensor) -> Tensor:
    if not isinstance(mlp.gelu, QuickGELU):
        return mlp(x_TW)
    # x·σ(1.702 x) as SiLU, which keeps one tensor for the backward pass where the product keeps two.
    return mlp.c_proj(F.silu(1.702 * mlp.c_fc(x_TW)) / 1.702)


def _heads(x_BLW: Tensor, attn: nn.MultiheadAttention) -> Tensor:
    return x_BLW.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)
