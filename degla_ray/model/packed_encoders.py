"""Hugging Face's BERT-like encoders on packed texts: only attention and pooling see texts side by side.

All texts pass through the encoder as one sequence, with each token's own position. transformers lets an
attention function be registered; ours gets the texts and keeps them apart. The encoder's other callers reach
transformers' own attention through it. transformers takes seconds to import, so only such a tower imports it.

Shape suffixes: X texts, L positions, T tokens of all texts, H heads, D head width, W encoder width.
"""

from __future__ import annotations

import functools
from typing import Any

from open_clip.hf_model import HFTextEncoder
from torch import Tensor, nn

from degla_ray.model.blocks import attend_whole_text, padded
from degla_ray.model.packing import PackedText

_ATTENTION = "degla_packed"
_COUNTS_FROM_PADDING = {"bert": False, "roberta": True, "xlm-roberta": True}
"""Model type -> whether positions begin after the padding token's id instead of at 0."""


def is_packable(tower: HFTextEncoder) -> bool:
    """Return whether `pooled_states` computes this tower."""
    return tower.config.model_type in _COUNTS_FROM_PADDING


def pooled_states(tower: HFTextEncoder, text: PackedText) -> Tensor:
    """Return what the tower's pooler makes of the encoder's states, [X, W]."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    _register_attention()
    encoder, config = tower.transformer, tower.config
    if config._attn_implementation != _ATTENTION:
        encoder.set_attn_implementation(_ATTENTION)
    first = config.pad_token_id + 1 if _COUNTS_FROM_PADDING[config.model_type] else 0
    states = encoder(
        input_ids=text.token_T[None], position_ids=text.position_T[None].long() + first, packed=text
    )
    states_XLW = padded(states.last_hidden_state[0], text)
    pooler_output = None if encoder.pooler is None else encoder.pooler(states_XLW)
    output = BaseModelOutputWithPooling(last_hidden_state=states_XLW, pooler_output=pooler_output)
    pooled_XW: Tensor = tower.pooler(output, text.real_XL.long())
    return pooled_XW


@functools.cache
def _register_attention() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(_ATTENTION, _attend)
    AttentionMaskInterface.register(_ATTENTION, sdpa_mask)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed: PackedText | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Return the output [1, T, W] of an attention layer for [1, H, T, D], and no weights."""
    if packed is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        seen, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return seen, None
    q_THD, k_THD, v_THD = (x[0].transpose(0, 1) for x in (query, key, value))
    return attend_whole_text(q_THD, k_THD, v_THD, packed, dropout=dropout, scale=scaling)[None], None
