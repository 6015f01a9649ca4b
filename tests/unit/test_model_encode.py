import pytest
import torch
from tiny_models import CAPTIONS, write_config
from torch.utils.flop_counter import FlopCounterMode

from degla_ray.config import ModelConfig
from degla_ray.model import encode_image, encode_text
from degla_ray.model.build import build

TOWERS = {
    "clip": {},
    "custom_text": {"custom_text": True},
    "quick_gelu": {"quick_gelu": True},
    "eos_pool": {"text": {"pool_type": "eos"}, "custom_text": True},
    "eos_pool_clip": {"text": {"pool_type": "eos"}},
    "linear_projection": {"text": {"proj_bias": True}},
    "no_projection": {"text": {"proj_type": "none"}, "embed_dim": 32},
    "bidirectional": {"text": {"no_causal_mask": True}},
    "first_pool": {"text": {"pool_type": "first"}},
    "last_pool": {"text": {"pool_type": "last"}, "custom_text": True},
    "class_token": {"text": {"embed_cls": True}, "custom_text": True},
}
PACKED = {
    "clip",
    "custom_text",
    "quick_gelu",
    "eos_pool",
    "eos_pool_clip",
    "linear_projection",
    "no_projection",
}


@pytest.fixture(params=TOWERS)
def tower(request, tmp_path):
    """(name, model, tokens of captions that are all shorter than the context)."""
    torch.manual_seed(0)
    loaded = build(ModelConfig(name=write_config(tmp_path, **TOWERS[request.param])))
    model = loaded.model
    tokens_BL = loaded.tokenizer(CAPTIONS)
    end = loaded.tokenizer.tokenizer.eos_token_id
    for part in (model, getattr(model, "text", None)):
        if hasattr(part, "text_eos_id"):
            part.text_eos_id = end
        elif hasattr(part, "eos_id"):
            part.eos_id = end
    return request.param, model.eval(), tokens_BL


@torch.no_grad()
def test_encode_text_any_tower_equals_open_clip(tower):
    _, model, tokens_BL = tower
    for normalize in (True, False):
        found = encode_text(model, tokens_BL, normalize=normalize)
        expected = model.encode_text(tokens_BL, normalize=normalize)
        assert found.dtype == torch.float32
        scale = expected.abs().max().clamp(min=1.0)  # up to 3 where they are not normalised
        assert torch.allclose(found, expected, rtol=0, atol=1e-6 * scale)


def _flops(function, *arguments):
    with FlopCounterMode(display=False) as counter:
        function(*arguments)
    return counter.get_total_flops()


@torch.no_grad()
def test_encode_text_causal_tower_computes_only_real_tokens(tower):
    name, model, tokens_BL = tower
    share = _flops(encode_text, model, tokens_BL) / _flops(model.encode_text, tokens_BL)
    real = int((tokens_BL != 0).sum()) / tokens_BL.numel()
    assert real < 0.5
    assert share < real if name in PACKED else share == 1.0


IMAGE_TOWERS = {
    "class_token": {},
    "norm_after_pooling": {"vision": {"final_ln_after_pool": True}},
    "no_projection_norm_before": {"vision": {"no_ln_pre": True}},
    "layer_scale": {"vision": {"ls_init_value": 0.1}},
    "quick_gelu": {"quick_gelu": True},
    "average": {"vision": {"pool_type": "avg"}},
    "attention_pooling": {"vision": {"attentional_pool": True, "attn_pooler_heads": 2}},
}


@pytest.mark.parametrize("kind", IMAGE_TOWERS)
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_encode_image_features_and_gradients_equal_open_clip(kind, recompute, tmp_path):
    torch.manual_seed(0)
    model = build(ModelConfig(name=write_config(tmp_path, **IMAGE_TOWERS[kind]))).model.train()
    model.set_grad_checkpointing(recompute)
    images_BCHW = torch.randn(3, 3, 32, 32)
    found = []
    for encode in (encode_image, lambda m, i: m.encode_image(i, normalize=True)):
        model.zero_grad()
        img_BD = encode(model, images_BCHW)
        img_BD[:, 0].sum().backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        found.append((img_BD.detach(), gradients))
    (ours, our_gradients), (theirs, their_gradients) = found
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)
    assert our_gradients.keys() == their_gradients.keys()
    for name, gradient in their_gradients.items():
        assert torch.allclose(our_gradients[name], gradient, rtol=1e-4, atol=1e-6), name
    pools_all_tokens = kind in ("average", "attention_pooling")
    share = _flops(encode_image, model, images_BCHW) / _flops(model.encode_image, images_BCHW)
    assert share == 1.0 if pools_all_tokens else share < 0.85


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_encode_text_gradients_equal_open_clip(tower, recompute):
    _, model, tokens_BL = tower
    model.set_grad_checkpointing(recompute)
    gradients = []
    for encode in (encode_text, lambda m, t: m.encode_text(t, normalize=True)):
        model.zero_grad()
        encode(model, tokens_BL)[:, 0].sum().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    ours, theirs = gradients
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        largest = max(1.0, float(gradient.abs().max()))  # a sum of large terms of both signs
        assert torch.allclose(ours[name], gradient, rtol=1e-4, atol=1e-6 * largest), name


@pytest.mark.parametrize("tower", sorted(PACKED), indirect=True)
@torch.no_grad()
def test_encode_text_already_cut_tokens_equal_full_length(tower):
    _, model, tokens_BL = tower
    cut_BL = tokens_BL[:, : int((tokens_BL != 0).sum(dim=1).max())]
    assert torch.equal(encode_text(model, cut_BL), encode_text(model, tokens_BL))


@torch.no_grad()
def test_encode_text_no_rows_gives_no_rows(tmp_path):
    model = build(ModelConfig(name=write_config(tmp_path))).model
    assert encode_text(model, torch.zeros(0, 32, dtype=torch.long)).shape == (0, 16)


@torch.no_grad()
def test_encode_under_bfloat16_autocast_returns_normalised_float32(tmp_path):
    loaded = build(ModelConfig(name=write_config(tmp_path)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        img_BD = encode_image(loaded.model, torch.randn(2, 3, 32, 32))
        txt_BD = encode_text(loaded.model, loaded.tokenizer(CAPTIONS))
    for features in (img_BD, txt_BD):
        assert features.dtype == torch.float32
        assert torch.allclose(features.norm(dim=-1), torch.ones(len(features)), atol=1e-6)


@pytest.mark.parametrize("kind", IMAGE_TOWERS)
def test_encode_under_bfloat16_autocast_every_image_tower_is_near_float32(kind, tmp_path):
    torch.manual_seed(0)
    model = build(ModelConfig(name=write_config(tmp_path, **IMAGE_TOWERS[kind]))).model
    images_BCHW = torch.randn(3, 3, 32, 32)
    exact = encode_image(model, images_BCHW)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = encode_image(model, images_BCHW)
    found[:, 0].sum().backward()
    assert (found - exact).square().sum(dim=-1).max() < 1e-3
    assert all(p.grad.dtype == p.dtype for p in model.visual.parameters() if p.grad is not None)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["clip", "custom_text", "linear_projection"])
def test_encode_under_bf16_autocast_projects_in_float32(kind, tmp_path):
    """A bf16 product would leave features that bf16 can hold."""
    torch.manual_seed(0)
    loaded = build(ModelConfig(name=write_config(tmp_path, **TOWERS[kind])))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        img_BD = encode_image(loaded.model, torch.randn(3, 3, 32, 32), normalize=False)
        txt_BD = encode_text(loaded.model, loaded.tokenizer(CAPTIONS), normalize=False)
    for features in (img_BD, txt_BD):
        assert features.dtype == torch.float32
        assert (features.bfloat16().float() != features).float().mean() > 0.9
