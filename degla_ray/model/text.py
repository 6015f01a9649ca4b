"""Features of both towers, with captions cut to the batch's longest.

A causal text tower's output at the end-of-text token does not depend on what follows it, so padding need
not be computed: captions are ~12 tokens of CLIP's 77, which makes the text tower about six times cheaper
at no change of result. open_clip's own `encode_text` adds the whole positional table and refuses shorter
input, hence the tower's parts are called here. A tower that cannot be cut (bidirectional, Hugging Face,
an appended class token) gets its full length.

Shape suffixes: B rows, L tokens, W tower width, D feature dimension.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from open_clip.transformer import TextTransformer, text_global_pool
from torch import Tensor, nn

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
        txt_BD = _encode_cut(*tower, tokens_BL)
    txt_BD = txt_BD.float()
    return F.normalize(txt_BD, dim=-1) if normalize else txt_BD


def _causal_tower(model: OpenClipModel) -> tuple[OpenClipModel, str, int] | None:
    """(the module that holds the tower's parts, its pooling, its end token); none if it must not be cut."""
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
    return tower, pool_type, end_id


def _encode_cut(tower: OpenClipModel, pool_type: str, end_id: int, tokens_BL: Tensor) -> Tensor:
    pooled_BL = tokens_BL if pool_type == "argmax" else (tokens_BL == end_id).int()
    length = int(pooled_BL.argmax(dim=-1).max()) + 1
    tokens_BL = tokens_BL[:, :length]
    dtype = tower.transformer.get_cast_dtype()
    x_BLW = tower.token_embedding(tokens_BL).to(dtype) + tower.positional_embedding[:length].to(dtype)
    x_BLW = tower.transformer(x_BLW, attn_mask=tower.attn_mask[:length, :length])
    # Pooled before the norm: LayerNorm works on each token alone, so only the pooled one needs it.
    x_BW = tower.ln_final(text_global_pool(x_BLW, tokens_BL, pool_type, eos_token_id=end_id))
    projection = tower.text_projection
    if projection is None:
        return x_BW
    return projection(x_BW) if isinstance(projection, nn.Linear) else x_BW @ projection
