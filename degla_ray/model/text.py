"""Features of both towers; of captions, only the real tokens are computed.

A causal text tower's output at the end-of-text token does not depend on what follows it, so padding need
not be computed: captions are ~12 tokens of CLIP's 77. The tokens of all captions are packed into one long
row for everything that works on each token alone (the linear layers and norms, 95 % of the FLOPs and
more); only attention, which must not cross captions, sees them side by side, cut to the longest. The
result is the same. open_clip's own `encode_text` computes all 77, hence the tower's parts are called
here. A tower that is not of this kind (bidirectional, Hugging Face, an appended class token) is left to it.

Shape suffixes: B rows, L tokens of the longest, T tokens of all rows, W tower width, H heads, D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, TextTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# open_clip's models reach their parts by attributes that torch's types know nothing of.
OpenClipModel = Any


def encode_image(model: OpenClipModel, images_BCHW: Tensor, normalize: bool = True) -> Tensor:
    """img_BD, float32 (whatever autocast computed in), L2-normalised unless told otherwise."""
    img_BD = model.encode_image(images_BCHW).float()
    return F.normalize(img_BD, dim=-1) if normalize else img_BD


def encode_text(model: OpenClipModel, tokens_BL: Tensor, normalize: bool = True) -> Tensor:
    """txt_BD, float32, L2-normalised unless told otherwise; equals open_clip's `encode_text`.

    Args:
        model: open_clip CLIP or CustomTextCLIP.
        tokens_BL: int64 token numbers, padded to any common length up to the context length.
        normalize: divide by the L2 norm.
    """
    tower = _causal_tower(model)
    if tower is None or len(tokens_BL) == 0:
        txt_BD = model.encode_text(tokens_BL)
    else:
        txt_BD = _encode_packed(*tower, tokens_BL)
    txt_BD = txt_BD.float()
    return F.normalize(txt_BD, dim=-1) if normalize else txt_BD


def _causal_tower(model: OpenClipModel) -> tuple[OpenClipModel, str, int] | None:
    """(the module that holds the tower's parts, its pooling, its end token); none if of another kind."""
    if hasattr(model, "text_pool_type"):  # CLIP holds the parts itself
        tower, pool_type, end_id = model, model.text_pool_type, model.text_eos_id
    elif isinstance(getattr(model, "text", None), TextTransformer):  # CustomTextCLIP
        tower, pool_type, end_id = model.text, model.text.pool_type, model.text.eos_id
        if tower.cls_emb is not None or tower.use_pad_mask or tower.output_tokens:
            return None
    else:
        return None
    if tower.attn_mask is None or pool_type not in ("argmax", "eos"):
        return None
    if not all(type(block) is ResidualAttentionBlock for block in tower.transformer.resblocks):
        return None
    return tower, pool_type, end_id


@dataclass(frozen=True, kw_only=True)
class _Packing:
    """Where the tokens of B captions lie, side by side or packed.

    Attributes:
        shape: (B, L).
        place_T: index of each real token among the B * L places.
    """

    shape: tuple[int, int]
    place_T: Tensor

    def pack(self, side_by_side: Tensor) -> Tensor:
        """[B, L, ...] -> [T, ...]"""
        return side_by_side.flatten(0, 1)[self.place_T]

    def spread(self, packed: Tensor) -> Tensor:
        """[T, ...] -> [B, L, ...], 0 where there is no token."""
        B, L = self.shape
        places = packed.new_zeros(B * L, *packed.shape[1:])
        return places.index_copy(0, self.place_T, packed).unflatten(0, self.shape)


def _encode_packed(tower: OpenClipModel, pool_type: str, end_id: int, tokens_BL: Tensor) -> Tensor:
    end_B = (tokens_BL if pool_type == "argmax" else (tokens_BL == end_id).int()).argmax(dim=-1)
    position_L = torch.arange(int(end_B.max()) + 1, device=tokens_BL.device)
    real_BL = position_L <= end_B[:, None]
    packing = _Packing(shape=(len(tokens_BL), len(position_L)), place_T=real_BL.flatten().nonzero()[:, 0])
    tokens_T = packing.pack(tokens_BL[:, : len(position_L)])
    position_T = packing.pack(position_L.expand(packing.shape))

    dtype = tower.transformer.get_cast_dtype()
    x_TW = tower.token_embedding(tokens_T).to(dtype) + tower.positional_embedding[position_T].to(dtype)
    for block in tower.transformer.resblocks:
        if tower.transformer.grad_checkpointing and torch.is_grad_enabled():
            x_TW = checkpoint(_block, block, x_TW, packing, use_reentrant=False)
        else:
            x_TW = _block(block, x_TW, packing)
    # Pooled before the norm: LayerNorm works on each token alone, so only the pooled one needs it.
    x_BW = tower.ln_final(x_TW[(end_B + 1).cumsum(0) - 1])
    projection = tower.text_projection
    if projection is None:
        return x_BW
    return projection(x_BW) if isinstance(projection, nn.Linear) else x_BW @ projection


def _block(block: ResidualAttentionBlock, x_TW: Tensor, packing: _Packing) -> Tensor:
    """What open_clip's block does, on packed tokens."""
    x_TW = x_TW + block.ls_1(_attention(block.attn, block.ln_1(x_TW), packing))
    return x_TW + block.ls_2(block.mlp(block.ln_2(x_TW)))


def _attention(attn: nn.MultiheadAttention, x_TW: Tensor, packing: _Packing) -> Tensor:
    """Causal self-attention within each caption; padding comes after what is real, so it needs no mask."""
    qkv_TX = F.linear(x_TW, attn.in_proj_weight, attn.in_proj_bias)
    q_BHLD, k_BHLD, v_BHLD = (
        x_BLW.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)
        for x_BLW in packing.spread(qkv_TX).chunk(3, dim=-1)
    )
    out_BHLD = F.scaled_dot_product_attention(q_BHLD, k_BHLD, v_BHLD, is_causal=True)
    return attn.out_proj(packing.pack(out_BHLD.transpose(1, 2).flatten(2)))
