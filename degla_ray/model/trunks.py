"""Features of open_clip's two adapters: a trunk of timm or Hugging Face, then a small head of open_clip's.

A Hugging Face tokenizer pads every text to the context length. BERT-like encoders run on packed texts instead
(`packed_encoders.py`). Of other encoders (mT5) texts of similar length pass through together, padded to a
multiple of 8, since attention ignores the padding.

Shape suffixes: B rows, L positions, W trunk width, D features.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.timm_model import TimmModel
from torch import Tensor, nn

from degla_ray.errors import DataError
from degla_ray.model.packed_encoders import is_packable, pooled_states
from degla_ray.model.packing import PackedText, TextEnd, pack

_STEP = 8


def is_timm(tower: object) -> bool:
    """Return whether `image_features` computes this image tower."""
    return isinstance(tower, TimmModel)


def is_huggingface(tower: object) -> bool:
    """Return whether `text_features` computes this text tower."""
    return isinstance(tower, HFTextEncoder) and not tower.output_tokens


def trunk_of(tower: Any) -> nn.Module | None:
    """Return the part of a tower before its head; None for other towers."""
    if is_timm(tower):
        return cast(nn.Module, tower.trunk)
    return cast(nn.Module, tower.transformer) if is_huggingface(tower) else None


def require_size(tower: object, name: str) -> None:
    """Check that a timm trunk with position embeddings is built for the config's image size.

    Raises:
        DataError: it is not; open_clip builds timm's networks at their own size.
    """
    if not isinstance(tower, TimmModel):
        return
    patches = getattr(tower.trunk, "patch_embed", None)
    size = getattr(patches, "img_size", None)
    if size is not None and getattr(patches, "strict_img_size", False) and size != tower.image_size:
        raise DataError(
            name, f"vision_cfg.image_size {tower.image_size}", f"{size}, the size of its timm trunk"
        )


def image_features(tower: TimmModel, images_BCHW: Tensor) -> Tensor:
    """Return img_BD, not normalised."""
    img_BD: Tensor = tower.head(_through(tower, tower.trunk, images_BCHW))
    return img_BD


def text_features(tower: HFTextEncoder, text: Tensor | PackedText) -> Tensor:
    """Return txt_BD, not normalised, equal to the tower's own forward pass.

    Args:
        tower: the text tower.
        text: texts packed as `text_end` says, or padded token ids on the tower's device.
    """
    if isinstance(text, PackedText):
        pooled_BW = pooled_states(tower, text)
    else:
        pooled_BW = _through(tower, partial(_pooled, tower), text)
    txt_BD: Tensor = tower.proj(pooled_BW)
    return txt_BD


def text_end(tower: HFTextEncoder) -> TextEnd | None:
    """Return where the tower's texts end, or None for a tower that takes padded texts.

    A tower whose outputs are cached takes padded texts, by which it finds them.
    """
    if not is_packable(tower) or getattr(tower, "output_cache", None) is not None:
        return None
    return TextEnd(padding=tower.config.pad_token_id)


def _through(tower: Any, trunk: Any, rows_BX: Tensor) -> Tensor:
    cache = getattr(tower, "output_cache", None)
    return trunk(rows_BX) if cache is None else cache.through(trunk, rows_BX)


def _pooled(tower: HFTextEncoder, tokens_BL: Tensor) -> Tensor:
    """Return the pooled states [B, W]."""
    if not is_packable(tower):
        return in_groups(tower, tokens_BL)
    tokens = tokens_BL.numpy(force=True)
    packed = pack(tokens, TextEnd(padding=tower.config.pad_token_id).find(tokens))
    return pooled_states(tower, packed.map(lambda array: torch.as_tensor(array).to(tokens_BL.device)))


def in_groups(tower: HFTextEncoder, tokens_BL: Tensor) -> Tensor:
    """Return the pooled states [B, W], computed in groups of similar length."""
    real_BL = tokens_BL != tower.config.pad_token_id
    position_L = torch.arange(1, tokens_BL.shape[1] + 1, device=tokens_BL.device)
    length_B = (real_BL * position_L).amax(dim=1).clamp(min=1)
    padded_B = (length_B + _STEP - 1) // _STEP * _STEP
    rows, pooled = [], []
    for length in padded_B.unique().tolist():
        row_G = (padded_B == length).nonzero()[:, 0]
        mask_GL = real_BL[row_G, :length].long()
        states = tower.transformer(input_ids=tokens_BL[row_G, :length], attention_mask=mask_GL)
        rows.append(row_G)
        pooled.append(tower.pooler(states, mask_GL))
    return torch.cat(pooled)[torch.cat(rows).argsort()]
