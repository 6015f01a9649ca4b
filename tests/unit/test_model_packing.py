"""Packed texts: what the loader hands to the towers, and that spare tokens change nothing."""

import itertools

import numpy as np
import pytest
import torch
from tiny_models import CAPTIONS, write_config

from degla_ray.config import ModelConfig
from degla_ray.model.blocks import Causal
from degla_ray.model.build import build
from degla_ray.model.encode import encode_text, on_device, text_end
from degla_ray.model.packing import LENGTH_MULTIPLE, pack


@pytest.fixture
def loaded(tmp_path):
    torch.manual_seed(0)
    return build(ModelConfig(name=write_config(tmp_path, quick_gelu=True)))


def _packed(loaded, token_multiple):
    tokens = loaded.tokenizer(CAPTIONS).numpy()
    return on_device(pack(tokens, text_end(loaded.model).find(tokens), token_multiple), loaded.model)


@pytest.mark.parametrize("token_multiple", [1, 64, 256])
def test_pack_sizes_are_rounded_up_and_every_token_is_found_again(loaded, token_multiple):
    tokens = loaded.tokenizer(CAPTIONS).numpy()
    last_X = text_end(loaded.model).find(tokens)
    text = pack(tokens, last_X, token_multiple)
    X, L = text.shape
    assert L % LENGTH_MULTIPLE == 0
    assert len(text.token_T) % token_multiple == 0
    padded = text.token_T[text.token_P].reshape(X, L)
    for row, (length, tokens_L) in enumerate(zip(last_X + 1, tokens, strict=True)):
        assert padded[row, :length].tolist() == tokens_L[:length].tolist()
        assert text.real_XL[row].tolist() == [place < length for place in range(L)]
    assert text.token_T[text.last_X].tolist() == tokens[np.arange(X), last_X].tolist()
    real = int((last_X + 1).sum())
    assert text.place_T[:real].tolist() == text.real_XL.reshape(-1).nonzero()[0].tolist()
    assert not text.real_XL.reshape(-1)[text.place_T[real:]].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_encode_packed_spare_tokens_change_neither_features_nor_gradients(loaded, dtype):
    found = []
    for token_multiple in (1, 256):
        loaded.model.zero_grad()
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            txt_XD = encode_text(loaded.model, _packed(loaded, token_multiple))
        txt_XD[:, 0].sum().backward()
        gradients = {n: p.grad.clone() for n, p in loaded.model.named_parameters() if p.grad is not None}
        found.append((txt_XD.detach(), gradients))
    (exact, exact_gradients), (spare, spare_gradients) = found
    rounding = 1e-6 if dtype == torch.float32 else 2e-2  # a sum over other shapes
    assert torch.allclose(exact, spare, rtol=0, atol=rounding)
    assert exact_gradients.keys() == spare_gradients.keys()
    for name, gradient in exact_gradients.items():
        largest = max(1.0, float(gradient.abs().max()))
        assert torch.allclose(gradient, spare_gradients[name], rtol=0, atol=rounding * largest), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_causal_attention_equals_that_of_each_text_alone(loaded, dtype, device):
    """On a GPU in bfloat16 this is the variable-length kernel, elsewhere attention of padded texts."""
    text = _packed(loaded, 256).map(lambda tensor: tensor.to(device))
    generator = torch.Generator().manual_seed(0)
    qkv_TX = torch.randn(len(text.token_T), 3 * 64, generator=generator).to(device, dtype).requires_grad_()
    real = int(text.start_S[-2])
    found_TW = Causal(text).attend(qkv_TX, heads=2)[:real]
    (gradient,) = torch.autograd.grad(found_TW.float().square().sum(), qkv_TX)
    expected, expected_gradient = _attention_one_by_one(qkv_TX, text.start_S[:-1].tolist(), heads=2)
    rounding = 1e-5 if dtype == torch.float32 else 3e-2  # bf16 has 8 bits; the largest values are about 4
    for one, other in ((found_TW, expected), (gradient[:real], expected_gradient[:real])):
        assert torch.allclose(one.float().cpu(), other, rtol=rounding, atol=rounding)
    assert gradient.isfinite().all()


def _attention_one_by_one(qkv_TX, start_S, heads):
    """Attention of each text by its definition, in float64 on the CPU; returns values and gradients."""
    x_TX = qkv_TX.detach().cpu().double().requires_grad_()
    seen = []
    for first, end in itertools.pairwise(start_S):
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(0, 1) for part in x_TX[first:end].chunk(3, -1))
        scores = q @ k.mT / q.shape[-1] ** 0.5
        later = torch.ones_like(scores, dtype=torch.bool).triu(1)
        seen.append((scores.masked_fill(later, -torch.inf).softmax(-1) @ v).transpose(0, 1).flatten(1))
    seen_TW = torch.cat(seen)
    (gradient,) = torch.autograd.grad(seen_TW.square().sum(), x_TX)
    return seen_TW.detach().float(), gradient.float()
