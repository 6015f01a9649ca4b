"""Compute the features of both towers, equal to open_clip's, without work on unused tokens.

Captions take about 12 of CLIP's 77 tokens. A causal text tower's output at the end-of-text token does not
depend on later tokens, so padding is skipped (`blocks.py`). Of a vision transformer's last block only one
token is used. open_clip's towers compute all tokens, so this file calls their modules directly. `trunks.py`
computes towers of timm and Hugging Face. Others (bidirectional, pooled over all tokens) run open_clip's own
code.

Shape suffixes: B rows, L positions, T tokens of all rows, W tower width, D features.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import TextTransformer, VisionTransformer
from torch import Tensor, nn

from degla_ray.model import trunks
from degla_ray.model.blocks import Packing, is_supported, pooled_output

# open_clip's models have attributes that torch's type annotations do not declare.
OpenClipModel = Any


def encode_image(model: OpenClipModel, images_BCHW: Tensor, normalize: bool = True) -> Tensor:
    """Return img_BD, float32 whatever the autocast type, L2-normalised if `normalize`."""
    tower = model.visual
    pools_one_token = (
        type(tower) is VisionTransformer
        and tower.attn_pool is None
        and tower.pool_type == "tok"
        and not tower.output_tokens
        and is_supported(tower.transformer)
    )
    if trunks.is_timm(tower):
        img_BD = trunks.image_features(tower, images_BCHW)
    else:
        img_BD = _class_token(tower, images_BCHW) if pools_one_token else model.encode_image(images_BCHW)
    img_BD = img_BD.float()
    return F.normalize(img_BD, dim=-1) if normalize else img_BD


def encode_text(model: OpenClipModel, tokens_BL: Tensor, normalize: bool = True) -> Tensor:
    """Return txt_BD, float32, equal to open_clip's `encode_text`.

    Args:
        model: open_clip CLIP or CustomTextCLIP.
        tokens_BL: int64 token ids, padded to any common length up to the context length.
        normalize: whether to divide by the L2 norm.
    """
    tower = _causal_tower(model)
    if len(tokens_BL) and trunks.is_huggingface(getattr(model, "text", None)):
        txt_BD = trunks.text_features(model.text, tokens_BL)
    elif tower is None or len(tokens_BL) == 0:
        txt_BD = model.encode_text(tokens_BL)
    else:
        txt_BD = _end_token(*tower, tokens_BL)
    txt_BD = txt_BD.float()
    return F.normalize(txt_BD, dim=-1) if normalize else txt_BD


def _class_token(tower: OpenClipModel, images_BCHW: Tensor) -> Tensor:
    x_BLW = tower._embeds(images_BCHW)
    B, L, _ = x_BLW.shape
    packing = Packing(shape=(B, L), causal=False)
    first_B = torch.arange(0, B * L, L, device=x_BLW.device)
    x_BW = tower.ln_post(pooled_output(tower.transformer, packing.unpad(x_BLW), packing, first_B))
    return _projected(x_BW, tower.proj)


def _causal_tower(model: OpenClipModel) -> tuple[OpenClipModel, str, int] | None:
    """Return (module with the tower's parts, pooling type, id of the end token); None for other towers."""
    if hasattr(model, "text_pool_type"):  # CLIP itself contains the parts
        tower, pool_type, end_id = model, model.text_pool_type, model.text_eos_id
    elif isinstance(getattr(model, "text", None), TextTransformer):  # CustomTextCLIP
        tower, pool_type, end_id = model.text, model.text.pool_type, model.text.eos_id
        if tower.cls_emb is not None or tower.use_pad_mask or tower.output_tokens:
            return None
    else:
        return None
    if tower.attn_mask is None or pool_type not in ("argmax", "eos") or not is_supported(tower.transformer):
        return None
    return tower, pool_type, end_id


def _end_token(tower: OpenClipModel, pool_type: str, end_id: int, tokens_BL: Tensor) -> Tensor:
    end_B = (tokens_BL if pool_type == "argmax" else (tokens_BL == end_id).int()).argmax(dim=-1)
    position_L = torch.arange(int(end_B.max()) + 1, device=tokens_BL.device)
    real_BL = position_L <= end_B[:, None]
    place_T = real_BL.flatten().nonzero()[:, 0]
    packing = Packing(shape=(len(tokens_BL), len(position_L)), causal=True, place_T=place_T)
    tokens_T = packing.unpad(tokens_BL[:, : len(position_L)])
    position_T = packing.unpad(position_L.expand(packing.shape))

    dtype = tower.transformer.get_cast_dtype()
    x_TW = tower.token_embedding(tokens_T).to(dtype) + tower.positional_embedding[position_T].to(dtype)
    last_B = (end_B + 1).cumsum(0) - 1
    # LayerNorm acts on each token separately, so only the pooled one needs it.
    x_BW = tower.ln_final(pooled_output(tower.transformer, x_TW, packing, last_B))
    return _projected(x_BW, tower.text_projection)


def _projected(x_BW: Tensor, projection: nn.Linear | Tensor | None) -> Tensor:
    """Return x_BD, projected in the weights' own type (float32) even under autocast.

    The extra cost is negligible. It lowers the bf16 rounding error of ViT-B/32's features by 5 to 10 %
    (squared distance 8.5e-5 to 8.0e-5); the rest of the error comes from the blocks.
    """
    if projection is None:
        return x_BW
    with torch.autocast(x_BW.device.type, enabled=False):
        if isinstance(projection, nn.Linear):
            return projection(x_BW.to(projection.weight.dtype))
        return x_BW.to(projection.dtype) @ projection
