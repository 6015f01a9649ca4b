"""The towers and the teacher as they were before texts were packed on the host, for `step_trace.py`.

Lengths and indices were asked of the device, autocast converted every weight by itself, and each step walked
the modules of both models. Kept as a fixed point to compare with; nothing else uses it.

Shape suffixes as in degla_ray/model/blocks.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from degla_ray.model.adapt import plain_state


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Mapping between padded [B, L, ...] and packed [T, ...] tokens; `place_T` is None without padding."""

    shape: tuple[int, int]
    causal: bool
    place_T: Tensor | None = None

    def unpad(self, padded: Tensor) -> Tensor:
        places = padded.flatten(0, 1)
        return places if self.place_T is None else places[self.place_T]

    def pad(self, packed: Tensor) -> Tensor:
        if self.place_T is not None:
            B, L = self.shape
            packed = packed.new_zeros(B * L, *packed.shape[1:]).index_copy(0, self.place_T, packed)
        return packed.unflatten(0, self.shape)

    def mask_B11L(self) -> Tensor | None:
        if self.place_T is None:
            return None
        return self.pad(torch.ones_like(self.place_T, dtype=torch.bool))[:, None, None]


def encode_image(model: Any, images_BCHW: Tensor) -> Tensor:
    tower = model.visual
    x_BLW = tower._embeds(images_BCHW)
    B, L, _ = x_BLW.shape
    packing = Packing(shape=(B, L), causal=False)
    first_B = torch.arange(0, B * L, L, device=x_BLW.device)
    x_BW = tower.ln_post(_pooled_output(tower.transformer, packing.unpad(x_BLW), packing, first_B))
    return F.normalize(_projected(x_BW, tower.proj).float(), dim=-1)


def encode_text(model: Any, tokens_BL: Tensor) -> Tensor:
    end_B = tokens_BL.argmax(dim=-1)
    position_L = torch.arange(int(end_B.max()) + 1, device=tokens_BL.device)
    place_T = (position_L <= end_B[:, None]).flatten().nonzero()[:, 0]
    packing = Packing(shape=(len(tokens_BL), len(position_L)), causal=True, place_T=place_T)
    tokens_T = packing.unpad(tokens_BL[:, : len(position_L)])
    position_T = packing.unpad(position_L.expand(packing.shape))
    x_TW = model.token_embedding(tokens_T) + model.positional_embedding[position_T]
    last_B = (end_B + 1).cumsum(0) - 1
    x_BW = model.ln_final(_pooled_output(model.transformer, x_TW, packing, last_B))
    return F.normalize(_projected(x_BW, model.text_projection).float(), dim=-1)


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, step: float) -> None:
    theirs, mine = plain_state(student), dict(teacher.named_parameters())
    torch._foreach_lerp_([p.detach() for p in mine.values()], [theirs[name] for name in mine], step)
    for own, other in zip(teacher.buffers(), student.buffers(), strict=True):
        own.copy_(other)


def teacher_step(decay: float, samples: int, reference_batch: int) -> float:
    return -math.expm1(math.log(decay) * samples / reference_batch)


def _pooled_output(transformer: Any, x_TW: Tensor, packing: Packing, pooled_B: Tensor) -> Tensor:
    *blocks, last = transformer.resblocks
    for block in blocks:
        x_TW = _block(block, x_TW, packing)
    return _last_block(last, x_TW, packing, pooled_B)


def _block(block: Any, x_TW: Tensor, packing: Packing) -> Tensor:
    attn, y_TW = block.attn, block.ln_1(x_TW)
    qkv_TX = F.linear(y_TW, attn.in_proj_weight, attn.in_proj_bias)
    q_BHLD, k_BHLD, v_BHLD = (_heads(x_BLW, attn) for x_BLW in packing.pad(qkv_TX).chunk(3, dim=-1))
    seen_BHLD = F.scaled_dot_product_attention(q_BHLD, k_BHLD, v_BHLD, is_causal=packing.causal)
    x_TW = x_TW + block.ls_1(attn.out_proj(packing.unpad(seen_BHLD.transpose(1, 2).flatten(2))))
    return x_TW + block.ls_2(_mlp(block.mlp, block.ln_2(x_TW)))


def _last_block(block: Any, x_TW: Tensor, packing: Packing, pooled_B: Tensor) -> Tensor:
    attn, y_TW, x_BW = block.attn, block.ln_1(x_TW), x_TW[pooled_B]
    weight_XW, bias_X, W = attn.in_proj_weight, attn.in_proj_bias, x_TW.shape[1]
    q_BW = F.linear(y_TW[pooled_B], weight_XW[:W], bias_X[:W])
    kv_BLX = packing.pad(F.linear(y_TW, weight_XW[W:], bias_X[W:]))
    k_BHLD, v_BHLD = (_heads(x_BLW, attn) for x_BLW in kv_BLX.chunk(2, dim=-1))
    seen_BHLD = F.scaled_dot_product_attention(
        _heads(q_BW[:, None], attn), k_BHLD, v_BHLD, attn_mask=packing.mask_B11L()
    )
    x_BW = x_BW + block.ls_1(attn.out_proj(seen_BHLD.flatten(1)))
    return x_BW + block.ls_2(_mlp(block.mlp, block.ln_2(x_BW)))


def _mlp(mlp: Any, x_TW: Tensor) -> Tensor:
    if not isinstance(mlp.gelu, QuickGELU):
        return mlp(x_TW)
    return mlp.c_proj(F.silu(1.702 * mlp.c_fc(x_TW)) / 1.702)


def _heads(x_BLW: Tensor, attn: nn.MultiheadAttention) -> Tensor:
    return x_BLW.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)


def _projected(x_BW: Tensor, projection: Tensor) -> Tensor:
    with torch.autocast(x_BW.device.type, enabled=False):
        return x_BW.to(projection.dtype) @ projection
