"""Features of both towers, equal to open_clip's own and computed only where they are used.

Captions are ~12 tokens of CLIP's 77. A causal text tower's output at the end-of-text token does not depend
on what follows it, so padding is not computed (`blocks.py`), and a vision transformer's output is one token
of its last block. open_clip's towers compute the rest too, hence their parts are called here. A tower of
another kind (bidirectional, Hugging Face, timm, pooled over all its tokens) is left to open_clip.

Shape suffixes: B rows, L places, T tokens of all rows, W tower width, D features.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import TextTransformer, VisionTransformer
from torch import Tensor, nn

from degla_ray.model.blocks import Packing, known, pooled_output

# open_clip's models reach their parts by attributes that torch's types know nothing of.
OpenClipModel = Any


def encode_image(model: OpenClipModel, images_BCHW: Tensor, normalize: bool = True) -> Tensor:
    """img_BD, float32 (whatever autocast computed in), L2-normalised unless told otherwise."""
    tower = model.visual
    pools_one_token = (
        type(tower) is VisionTransformer
        and tower.attn_pool is None
        and tower.pool_type == "tok"
        and not tower.output_tokens
        and known(tower.transformer)
    )
    img_BD = _class_token(tower, images_BCHW) if pools_one_token else model.encode_image(images_BCHW)
    img_BD = img_BD.float()
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
        txt_BD = _end_token(*tower, tokens_BL)
    txt_BD = txt_BD.float()
    return F.normalize(txt_BD, dim=-1) if normalize else txt_BD


def _class_token(tower: OpenClipModel, images_BCHW: Tensor) -> Tensor:
    x_BLW = tower._embeds(images_BCHW)
    B, L, _ = x_BLW.shape
    packing = Packing(shape=(B, L), causal=False)
    first_B = torch.arange(0, B * L, L, device=x_BLW.device)
    x_BW = tower.ln_post(pooled_output(tower.transformer, packing.pack(x_BLW), packing, first_B))
    return _projected(x_BW, tower.proj)


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
    if tower.attn_mask is None or pool_type not in ("argmax", "eos") or not known(tower.transformer):
        return None
    return tower, pool_type, end_id


def _end_token(tower: OpenClipModel, pool_type: str, end_id: int, tokens_BL: Tensor) -> Tensor:
    end_B = (tokens_BL if pool_type == "argmax" else (tokens_BL == end_id).int()).argmax(dim=-1)
    position_L = torch.arange(int(end_B.max()) + 1, device=tokens_BL.device)
    real_BL = position_L <= end_B[:, None]
    place_T = real_BL.flatten().nonzero()[:, 0]
    packing = Packing(shape=(len(tokens_BL), len(position_L)), causal=True, place_T=place_T)
    tokens_T = packing.pack(tokens_BL[:, : len(position_L)])
    position_T = packing.pack(position_L.expand(packing.shape))

    dtype = tower.transformer.get_cast_dtype()
    x_TW = tower.token_embedding(tokens_T).to(dtype) + tower.positional_embedding[position_T].to(dtype)
    last_B = (end_B + 1).cumsum(0) - 1
    # LayerNorm works on each token alone, so only the pooled one needs it.
    x_BW = tower.ln_final(pooled_output(tower.transformer, x_TW, packing, last_B))
    return _projected(x_BW, tower.text_projection)


def _projected(x_BW: Tensor, projection: nn.Linear | Tensor | None) -> Tensor:
    """x_BD in the weights' own type, float32, also under autocast.

    It costs nothing, and takes 5 to 10 % off what bf16 rounds off ViT-B/32's features (8.5e-5 of squared
    distance become 8.0e-5); the blocks before it make the rest.
    """
    if projection is None:
        return x_BW
    with torch.autocast(x_BW.device.type, enabled=False):
        if isinstance(projection, nn.Linear):
            return projection(x_BW.to(projection.weight.dtype))
        return x_BW.to(projection.dtype) @ projection
