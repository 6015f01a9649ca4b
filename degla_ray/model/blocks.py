"""open_clip's transformer blocks without padding, and in the last block only for the pooled tokens.

The tokens of all rows form one sequence [T, W] for the layers that act on each token separately (linear
layers and norms, at least 95 % of the FLOPs). Only attention, which must not cross rows, sees rows side by
side. A tower uses one token per row of the last block's output, so only that token is a query there and
passes through the MLP. In float32 the result equals open_clip's. A ViT-B/32 step with 16 images and 80
captions computes a third of the FLOPs that 77 tokens per caption take.

Under autocast a tower's weights are converted to the autocast type in one operation, and a block's gradients
back in one, where autocast itself needs one for each weight: a third of a step's kernel launches. Norms
compute in float32 inside their kernel, on activations of the autocast type.

Shape suffixes: B rows, L positions per row, T tokens of all rows, W width, X 3 W or 2 W, H heads, D W / H.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from open_clip.transformer import LayerNorm, QuickGELU, ResidualAttentionBlock, Transformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from degla_ray.model.packing import PackedText

_QUICK_GELU = 1.702


class Layout(Protocol):
    """How attention sees the packed tokens of B rows."""

    def attend(self, qkv_TX: Tensor, heads: int) -> Tensor:
        """Return attention's output x_TW for queries, keys and values of all tokens."""
        ...

    def attend_pooled(self, q_BW: Tensor, kv_TX: Tensor, heads: int) -> Tensor:
        """Return attention's output x_BW for one query per row."""
        ...


@dataclass(frozen=True)
class Dense:
    """Rows of `length` tokens each, without padding; every token attends to its whole row."""

    length: int

    def attend(self, qkv_TX: Tensor, heads: int) -> Tensor:
        q_BHLD, k_BHLD, v_BHLD = _heads(qkv_TX.unflatten(0, (-1, self.length)), 3, heads)
        return _flat(F.scaled_dot_product_attention(q_BHLD, k_BHLD, v_BHLD)).flatten(0, 1)

    def attend_pooled(self, q_BW: Tensor, kv_TX: Tensor, heads: int) -> Tensor:
        k_BHLD, v_BHLD = _heads(kv_TX.unflatten(0, (-1, self.length)), 2, heads)
        (q_BH1D,) = _heads(q_BW[:, None], 1, heads)
        return _flat(F.scaled_dot_product_attention(q_BH1D, k_BHLD, v_BHLD)).flatten(0, 1)


@dataclass(frozen=True)
class Causal:
    """Texts of several lengths; a token attends to itself and the tokens before it.

    On a GPU in half precision, attention runs on the packed tokens (torch's variable-length kernel);
    elsewhere texts are padded for attention alone.
    """

    text: PackedText

    def attend(self, qkv_TX: Tensor, heads: int) -> Tensor:
        text = self.text
        if _packed_attention_runs(qkv_TX):
            from torch.nn.attention.varlen import varlen_attn  # imports torch's compiler: a second of a core

            q_THD, k_THD, v_THD = qkv_TX.unflatten(-1, (3, heads, -1)).unbind(1)
            longest = text.longest
            seen_THD = varlen_attn(
                q_THD, k_THD, v_THD, text.start_S, text.start_S, longest, longest, window_size=(-1, 0)
            )
            assert isinstance(seen_THD, Tensor)  # a pair only if its log-sum-exp is asked for
            return seen_THD.flatten(1)
        q_BHLD, k_BHLD, v_BHLD = _heads(padded(qkv_TX, text), 3, heads)
        # Padding follows the tokens, so the causal rule hides it.
        seen_BLW = _flat(F.scaled_dot_product_attention(q_BHLD, k_BHLD, v_BHLD, is_causal=True))
        if not torch.is_grad_enabled():
            return seen_BLW.flatten(0, 1).index_select(0, text.place_T)
        return _Unpad.apply(seen_BLW.flatten(0, 1), text.place_T)

    def attend_pooled(self, q_BW: Tensor, kv_TX: Tensor, heads: int) -> Tensor:
        text = self.text
        k_BHLD, v_BHLD = _heads(padded(kv_TX, text), 2, heads)
        (q_BH1D,) = _heads(q_BW[:, None], 1, heads)
        mask_B11L = text.real_XL[:, None, None]
        seen = F.scaled_dot_product_attention(q_BH1D, k_BHLD, v_BHLD, attn_mask=mask_B11L)
        return _flat(seen).flatten(0, 1)


def attend_whole_text(
    q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, text: PackedText, *, dropout: float, scale: float | None
) -> Tensor:
    """Return attention's output x_TW where each token attends to its whole text.

    It runs on packed or padded texts as in `Causal`; torch's variable-length kernel has no dropout.

    Args:
        q_THD, k_THD, v_THD: queries, keys and values.
        text: the texts that the tokens form.
        dropout: share of the attention weights to drop.
        scale: factor of the products; None for 1 / sqrt(D).
    """
    if _packed_attention_runs(q_THD) and not dropout:
        from torch.nn.attention.varlen import varlen_attn  # as above

        start_S, longest = text.start_S, text.longest
        seen_THD = varlen_attn(q_THD, k_THD, v_THD, start_S, start_S, longest, longest, scale=scale)
        assert isinstance(seen_THD, Tensor)
        return seen_THD.flatten(1)
    heads = q_THD.shape[1]
    q_BHLD, k_BHLD, v_BHLD = (_heads(padded(x.flatten(1), text), 1, heads)[0] for x in (q_THD, k_THD, v_THD))
    mask_B11L = text.real_XL[:, None, None]
    seen = F.scaled_dot_product_attention(
        q_BHLD, k_BHLD, v_BHLD, attn_mask=mask_B11L, dropout_p=dropout, scale=scale
    )
    return _Unpad.apply(_flat(seen).flatten(0, 1), text.place_T)


# The functions below have a backward pass of their own. Without a graph (the teacher) their forward pass is
# called alone: `apply` costs host time, and torch.compile would not trace it.


def padded(x_TX: Tensor, text: PackedText) -> Tensor:
    """Return packed tokens padded, x_BLX: padded places hold a copy of their text's last token.

    Nothing may depend on the padding, whose gradient must be 0.
    """
    if not torch.is_grad_enabled():
        return x_TX.index_select(0, text.token_P).unflatten(0, text.shape)
    return _Pad.apply(x_TX, text.token_P, text.place_T).unflatten(0, text.shape)


class _Pad(torch.autograd.Function):
    """Packed tokens to places. A padded place's gradient is 0, so backward reads only the tokens'."""

    @staticmethod
    def forward(ctx: Any, x_TX: Tensor, token_P: Tensor, place_T: Tensor) -> Tensor:
        ctx.save_for_backward(place_T)
        return x_TX.index_select(0, token_P)

    @staticmethod
    def backward(ctx: Any, grad_PX: Tensor) -> tuple[Tensor, None, None]:
        return grad_PX.index_select(0, *ctx.saved_tensors), None, None


class _Unpad(torch.autograd.Function):
    """Places to packed tokens. Spare tokens share a padded place; their gradient is 0."""

    @staticmethod
    def forward(ctx: Any, x_PX: Tensor, place_T: Tensor) -> Tensor:
        ctx.save_for_backward(place_T)
        ctx.places = len(x_PX)
        return x_PX.index_select(0, place_T)

    @staticmethod
    def backward(ctx: Any, grad_TX: Tensor) -> tuple[Tensor, None]:
        grad_PX = grad_TX.new_zeros(ctx.places, grad_TX.shape[1])
        (place_T,) = ctx.saved_tensors
        return grad_PX.index_copy_(0, place_T, grad_TX), None


class BlockWeights(NamedTuple):
    """The weights of one block that enter its matrix products and norms."""

    norm_1: Tensor
    norm_1_bias: Tensor
    qkv: Tensor
    qkv_bias: Tensor
    out: Tensor
    out_bias: Tensor
    norm_2: Tensor
    norm_2_bias: Tensor
    fc: Tensor
    fc_bias: Tensor
    proj: Tensor
    proj_bias: Tensor


class _Attach(torch.autograd.Function):
    """Weights that were converted to another type, with their gradients led back in one operation."""

    @staticmethod
    def forward(ctx: Any, converted: Sequence[Tensor], *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.dtype = weights[0].dtype
        ctx.set_materialize_grads(False)
        needed = ctx.needs_input_grad[1:]
        ctx.mark_non_differentiable(*(t for t, need in zip(converted, needed, strict=True) if not need))
        return tuple(converted)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        present = iter(_converted([g for g in grads if g is not None], ctx.dtype))
        return None, *(None if g is None else next(present) for g in grads)


class _QuickMlp(torch.autograd.Function):
    """Linear, QuickGELU x·σ(a x), linear, with a folded into the products: 3 kernels instead of 5.

    QuickGELU is silu(a x) / a, so one factor enters the first product and the other the second.
    """

    @staticmethod
    def forward(
        ctx: Any, x_TW: Tensor, fc: Tensor, fc_bias: Tensor, proj: Tensor, proj_bias: Tensor
    ) -> Tensor:
        output, scaled, hidden = _QuickMlp.compute(x_TW, fc, fc_bias, proj, proj_bias)
        ctx.save_for_backward(x_TW, fc, proj, scaled, hidden)
        return output

    @staticmethod
    def compute(
        x_TW: Tensor, fc: Tensor, fc_bias: Tensor, proj: Tensor, proj_bias: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        a = _QUICK_GELU
        scaled = torch.addmm(fc_bias, x_TW, fc.t(), beta=a, alpha=a)
        hidden = F.silu(scaled)
        return torch.addmm(proj_bias, hidden, proj.t(), alpha=1 / a), scaled, hidden

    @staticmethod
    def backward(ctx: Any, grad_TW: Tensor) -> tuple[Tensor | None, ...]:
        x_TW, fc, proj, scaled, hidden = ctx.saved_tensors
        a, (for_x, for_fc, for_fc_bias, for_proj, for_proj_bias) = _QUICK_GELU, ctx.needs_input_grad
        grad_scaled = torch.ops.aten.silu_backward(_product(grad_TW, proj, 1 / a), scaled)
        return (
            _product(grad_scaled, fc, a) if for_x else None,
            _product(grad_scaled.t(), x_TW, a) if for_fc else None,
            grad_scaled.sum(0).mul_(a) if for_fc_bias else None,
            _product(grad_TW.t(), hidden, 1 / a) if for_proj else None,
            grad_TW.sum(0) if for_proj_bias else None,
        )


def is_supported(transformer: Any) -> bool:
    """Return whether this file computes all blocks of `transformer`."""
    return all(
        type(block) is ResidualAttentionBlock and type(block.ln_1) is type(block.ln_2) is LayerNorm
        for block in transformer.resblocks
    )


def compile_blocks(model: nn.Module) -> bool:
    """Let torch.compile compute the blocks of both towers, and return whether the model has such blocks.

    One block is compiled for all, with sizes that may change; the last block of a tower is not compiled. In
    float32 the results are equal up to rounding.
    """
    transformers = [m for m in model.modules() if isinstance(m, Transformer) and is_supported(m)]
    compiled = torch.compile(_block, dynamic=True)
    for transformer in transformers:
        transformer.compiled_block = compiled
    return bool(transformers)


def pooled_output(transformer: Any, x_TW: Tensor, layout: Layout, pooled_B: Tensor) -> Tensor:
    """Return x_BW, the transformer's output for one token per row.

    Args:
        transformer: open_clip Transformer for which `is_supported` is true.
        x_TW: embedded tokens, packed.
        layout: rows that the tokens form.
        pooled_B: index of each row's pooled token among the T tokens; if causal, the row's last token.
    """
    device = x_TW.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_TW.dtype
    with torch.autocast(device, enabled=False):
        x_TW = x_TW.to(dtype)
        *blocks, last = zip(transformer.resblocks, _weights(transformer, dtype), strict=True)
        compute = getattr(transformer, "compiled_block", _block)
        for block, weights in blocks:
            if transformer.grad_checkpointing and torch.is_grad_enabled():
                x_TW = checkpoint(compute, block, weights, x_TW, layout, use_reentrant=False)
            else:
                x_TW = compute(block, weights, x_TW, layout)
        return _last_block(*last, x_TW, layout, pooled_B)


def _block(block: ResidualAttentionBlock, w: BlockWeights, x_TW: Tensor, layout: Layout) -> Tensor:
    qkv_TX = F.linear(_norm(x_TW, w.norm_1, w.norm_1_bias, block.ln_1), w.qkv, w.qkv_bias)
    seen_TW = layout.attend(qkv_TX, block.attn.num_heads)
    x_TW = x_TW + _scaled(block.ls_1, F.linear(seen_TW, w.out, w.out_bias))
    return x_TW + _scaled(block.ls_2, _mlp(block, w, x_TW))


def _last_block(
    block: ResidualAttentionBlock, w: BlockWeights, x_TW: Tensor, layout: Layout, pooled_B: Tensor
) -> Tensor:
    W = x_TW.shape[1]
    y_TW = _norm(x_TW, w.norm_1, w.norm_1_bias, block.ln_1)
    (q, kv), (q_bias, kv_bias) = w.qkv.split((W, 2 * W)), w.qkv_bias.split((W, 2 * W))
    q_BW, kv_TX = F.linear(y_TW.index_select(0, pooled_B), q, q_bias), F.linear(y_TW, kv, kv_bias)
    seen_BW = layout.attend_pooled(q_BW, kv_TX, block.attn.num_heads)
    x_BW = x_TW.index_select(0, pooled_B) + _scaled(block.ls_1, F.linear(seen_BW, w.out, w.out_bias))
    return x_BW + _scaled(block.ls_2, _mlp(block, w, x_BW))


def _mlp(block: ResidualAttentionBlock, w: BlockWeights, x_TW: Tensor) -> Tensor:
    y_TW = _norm(x_TW, w.norm_2, w.norm_2_bias, block.ln_2)
    if isinstance(block.mlp.gelu, QuickGELU):
        if not torch.is_grad_enabled():
            return _QuickMlp.compute(y_TW, w.fc, w.fc_bias, w.proj, w.proj_bias)[0]
        return _QuickMlp.apply(y_TW, w.fc, w.fc_bias, w.proj, w.proj_bias)
    return F.linear(block.mlp.gelu(F.linear(y_TW, w.fc, w.fc_bias)), w.proj, w.proj_bias)


def _scaled(layer_scale: nn.Module, x_TW: Tensor) -> Tensor:
    """Return x_TW scaled, in its own type: the scale is a float32 weight."""
    return layer_scale(x_TW).to(x_TW.dtype)


def _norm(x_TW: Tensor, weight_W: Tensor, bias_W: Tensor, norm: nn.LayerNorm) -> Tensor:
    return F.layer_norm(x_TW, norm.normalized_shape, weight_W, bias_W, norm.eps)


def _weights(transformer: Any, dtype: torch.dtype) -> list[BlockWeights]:
    """Return every block's weights in `dtype`, converted in one operation if they have another."""
    own = [_own_weights(block) for block in transformer.resblocks]
    if own[0].qkv.dtype == dtype:
        return own
    with torch.no_grad():
        converted = iter(_converted([weight for weights in own for weight in weights], dtype))
    each = [[next(converted) for _ in weights] for weights in own]
    if not torch.is_grad_enabled():
        return [BlockWeights(*weights) for weights in each]
    return [BlockWeights(*_Attach.apply(new, *w)) for new, w in zip(each, own, strict=True)]


def _own_weights(block: ResidualAttentionBlock) -> BlockWeights:
    attn, fc, proj = block.attn, block.mlp.c_fc, block.mlp.c_proj
    return BlockWeights(
        norm_1=block.ln_1.weight,
        norm_1_bias=block.ln_1.bias,
        qkv=attn.in_proj_weight,
        qkv_bias=attn.in_proj_bias,
        out=attn.out_proj.weight,
        out_bias=attn.out_proj.bias,
        norm_2=block.ln_2.weight,
        norm_2_bias=block.ln_2.bias,
        fc=fc.weight,
        fc_bias=fc.bias,
        proj=proj.weight,
        proj_bias=proj.bias,
    )


def _product(left: Tensor, right: Tensor, factor: float) -> Tensor:
    """Return factor · left @ right in one kernel."""
    return torch.addmm(right[:1, :1], left, right, beta=0, alpha=factor)  # beta = 0: the summand is not read


def _converted(tensors: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    if not tensors:
        return ()
    flat = torch.empty(sum(t.numel() for t in tensors), dtype=dtype, device=tensors[0].device)
    views = [v.view_as(t) for v, t in zip(flat.split([t.numel() for t in tensors]), tensors, strict=True)]
    torch._foreach_copy_(views, list(tensors))
    return tuple(views)


def _packed_attention_runs(qkv_TX: Tensor) -> bool:
    return qkv_TX.is_cuda and qkv_TX.dtype in (torch.float16, torch.bfloat16)


def _heads(x_BLX: Tensor, count: int, heads: int) -> tuple[Tensor, ...]:
    """Split [B, L, count · H · D] into `count` tensors [B, H, L, D]."""
    return tuple(x.transpose(1, 2) for x in x_BLX.unflatten(-1, (count, heads, -1)).unbind(2))


def _flat(x_BHLD: Tensor) -> Tensor:
    return x_BHLD.transpose(1, 2).flatten(2)
