"""Towers of timm and Hugging Face: built, saved, exported and trained like open_clip's own."""

import copy
import itertools
import json

import open_clip
import pytest
import torch
from tiny_models import CAPTIONS, ENCODERS, write_adapters, write_config

from degla_ray.config import AdaptConfig, ModelConfig, TeacherConfig
from degla_ray.errors import DataError, SettingError
from degla_ray.model import Teacher, encode_image, encode_text, load
from degla_ray.model.adapt import adapt, lr_multipliers
from degla_ray.model.blocks import attend_whole_text
from degla_ray.model.build import build
from degla_ray.model.encode import on_device, text_end
from degla_ray.model.export import export, export_huggingface
from degla_ray.model.frozen import OutputCache
from degla_ray.model.packing import pack
from degla_ray.model.source import check_model

IMAGES_BCHW = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LENGTHS = [*CAPTIONS, "a", "a dog and " * 30]  # the last one exceeds the context length


@pytest.fixture(params=ENCODERS)
def loaded(request, tmp_path):
    torch.manual_seed(0)
    return build(ModelConfig(name=write_adapters(tmp_path / "config", request.param)))


@pytest.fixture
def bert(tmp_path):
    torch.manual_seed(0)
    return build(ModelConfig(name=write_adapters(tmp_path / "config")))


@torch.no_grad()
@pytest.mark.parametrize("pooler", ["mean_pooler", "cls_pooler", "cls_last_hidden_state_pooler"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_encode_text_in_groups_equals_the_towers_own_pass(encoder, pooler, tmp_path):
    if encoder == "mt5" and pooler == "cls_pooler":
        pytest.skip("T5 has no class token")
    torch.manual_seed(0)
    loaded = build(ModelConfig(name=write_adapters(tmp_path, encoder, hf_pooler_type=pooler)))
    model, tokens_BL = loaded.model.eval(), loaded.tokenizer(LENGTHS)
    found, expected = encode_text(model, tokens_BL), model.encode_text(tokens_BL, normalize=True)
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found[0], found[1], atol=1e-4)


@pytest.mark.parametrize("token_multiple", [1, 256])
@pytest.mark.parametrize("pooler", ["mean_pooler", "cls_pooler", "cls_last_hidden_state_pooler"])
@pytest.mark.parametrize("encoder", ["bert", "roberta"])
def test_packed_texts_have_the_values_and_gradients_of_padded_ones(encoder, pooler, token_multiple, tmp_path):
    torch.manual_seed(0)
    loaded = build(ModelConfig(name=write_adapters(tmp_path, encoder, hf_pooler_type=pooler)))
    model, tokens_BL = loaded.model.eval(), loaded.tokenizer(LENGTHS)
    last_B = text_end(model).find(tokens_BL.numpy())
    text = on_device(pack(tokens_BL.numpy(), last_B, token_multiple), model)
    found = []
    for features in (encode_text(model, text), model.encode_text(tokens_BL, normalize=True)):
        model.zero_grad()
        (features * torch.linspace(-1, 1, features.numel()).view_as(features)).sum().backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        found.append((features.detach(), gradients))
    (packed, of_packed), (padded, of_padded) = found
    assert torch.allclose(packed, padded, atol=1e-5)
    assert of_packed.keys() == of_padded.keys()
    largest = max(float(gradient.abs().max()) for gradient in of_padded.values())
    assert len(of_padded) > 30
    for name, gradient in of_padded.items():
        assert torch.allclose(of_packed[name], gradient, rtol=1e-4, atol=1e-5 * largest), name


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_to_whole_texts_equals_that_of_each_text_alone(bert, dtype, heads, device):
    """On a GPU in bfloat16 this is the variable-length kernel, elsewhere attention of padded texts."""
    tokens = bert.tokenizer(LENGTHS).numpy()
    text = pack(tokens, text_end(bert.model).find(tokens), 256).map(lambda a: torch.as_tensor(a).to(device))
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, len(text.token_T), heads, 16, generator=generator).to(device, dtype)
    found = attend_whole_text(q, k, v, text, dropout=0.0, scale=0.3).float().cpu()
    for first, end in itertools.pairwise(text.start_S[:-1].tolist()):
        q_HLD, k_HLD, v_HLD = (x[first:end].transpose(0, 1).float().cpu() for x in (q, k, v))
        alone = (0.3 * q_HLD @ k_HLD.mT).softmax(-1) @ v_HLD
        rounding = 1e-5 if dtype == torch.float32 else 3e-2
        assert torch.allclose(found[first:end], alone.transpose(0, 1).flatten(1), atol=rounding)


@torch.no_grad()
def test_encode_text_of_a_bidirectional_encoder_computes_no_padding(bert):
    tokens_BL, seen = bert.tokenizer(LENGTHS), []
    embeddings = bert.model.text.transformer.embeddings
    embeddings.register_forward_hook(lambda module, args, out: seen.append(out[..., 0].numel()))
    encode_text(bert.model.eval(), tokens_BL)
    assert sum(seen) == int((tokens_BL != 0).sum()) < tokens_BL.numel()


@torch.no_grad()
def test_export_opens_anywhere_with_the_same_features(loaded, tmp_path, monkeypatch):
    export(loaded, str(tmp_path / "export"))
    for path in (tmp_path / "config").rglob("*"):  # nothing of the source is needed
        if path.is_file():
            path.unlink()
    again, model = load(str(tmp_path / "export")), loaded.model.eval()
    tokens_BL = loaded.tokenizer(LENGTHS)
    assert torch.equal(again.tokenizer(LENGTHS), tokens_BL)
    assert torch.equal(encode_image(again.model, IMAGES_BCHW), encode_image(model, IMAGES_BCHW))
    assert torch.equal(encode_text(again.model, tokens_BL), encode_text(model, tokens_BL))

    export(again, str(tmp_path / "twice"))
    for name in ("config.json", "open_clip_config.json", "open_clip_model.safetensors"):
        first, second = (tmp_path / folder / name for folder in ("export", "twice"))
        assert first.read_bytes() == second.read_bytes(), name
        if first.suffix == ".json":
            assert str(tmp_path) not in first.read_text()

    monkeypatch.chdir(tmp_path / "export")  # as its README says
    theirs, *_ = open_clip.create_model_and_transforms("local-dir:.")
    assert torch.equal(
        theirs.eval().encode_text(tokens_BL),
        model.encode_text(open_clip.get_tokenizer("local-dir:.")(LENGTHS)),
    )
    assert torch.equal(theirs.encode_image(IMAGES_BCHW), model.encode_image(IMAGES_BCHW))


def test_export_huggingface_names_what_clip_model_cannot_represent(bert, tmp_path):
    with pytest.raises(DataError, match="timm_model_name"):
        export_huggingface(bert, str(tmp_path / "export"))


def test_encoder_folder_that_is_missing_or_empty_is_named_before_anything_is_built(tmp_path):
    path = write_adapters(tmp_path / "a", hf_model_name="./elsewhere")
    with pytest.raises(
        DataError, match=r"no folder .*elsewhere; expected the folder of text_cfg.hf_model_name"
    ):
        check_model(ModelConfig(name=path, random_init=True))
    path = write_adapters(tmp_path / "b", hf_model_name="tokenizer")
    (tmp_path / "b" / "tokenizer" / "config.json").unlink(missing_ok=True)
    with pytest.raises(DataError, match=r"tokenizer: found no config.json"):
        check_model(ModelConfig(name=path, random_init=True))


def test_encoder_config_that_would_run_code_is_refused(tmp_path):
    path = write_adapters(tmp_path)
    config = tmp_path / "encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"auto_map": {"AutoModel": "x.Y"}}))
    with pytest.raises(DataError, match="auto_map"):
        check_model(ModelConfig(name=path, random_init=True))


def test_tokenizer_is_held_to_the_encoders_vocabulary(tmp_path):
    with pytest.raises(DataError, match=r"at most vocab_size in .*encoder = 300"):
        build(ModelConfig(name=write_adapters(tmp_path, vocab_size=300)))


def test_timm_trunk_of_another_image_size_is_refused(tmp_path):
    vision = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "token", "image_size": 64}
    with pytest.raises(DataError, match=r"image_size \(64, 64\); expected \(224, 224\)"):
        build(ModelConfig(name=write_config(tmp_path, vision=vision)))


def step(loaded, model):
    """Run one training step of both towers and return the loss."""
    images, tokens = IMAGES_BCHW, loaded.tokenizer(CAPTIONS)
    loss = (encode_image(model, images) * encode_text(model, tokens)).sum()
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(0.1 * parameter.grad)
                parameter.grad = None
    return loss.detach()


@pytest.mark.parametrize(
    ("config", "trained"),
    [
        (AdaptConfig(freeze="trunks"), ("visual.head.", "text.proj.")),
        (AdaptConfig(freeze="image"), ("text.",)),
        (AdaptConfig(freeze="text"), ("visual.",)),
        (AdaptConfig(freeze_text_blocks=2), ("visual.", "text.proj.")),
    ],
)
def test_frozen_parts_keep_weights_and_batch_statistics_in_train_mode(config, trained, bert):
    model = bert.model.train()
    adapt(model, config)
    model.train()
    before = copy.deepcopy(model.state_dict())
    step(bert, model)
    changed = {n for n, tensor in model.state_dict().items() if not torch.equal(tensor, before[n])}
    assert {n for n in changed if not n.startswith(trained)} == set()
    assert {prefix for prefix in trained if any(n.startswith(prefix) for n in changed)} == set(trained)


def test_frozen_trunks_give_the_features_of_eval_mode(bert):
    """No dropout in the encoder, and no statistics of the batch in the image tower."""
    expected = encode_image(bert.model.eval(), IMAGES_BCHW), encode_text(bert.model, bert.tokenizer(CAPTIONS))
    adapt(bert.model, AdaptConfig(freeze="trunks"))
    bert.model.train()
    assert torch.equal(encode_image(bert.model, IMAGES_BCHW), expected[0])
    assert torch.equal(encode_text(bert.model, bert.tokenizer(CAPTIONS)), expected[1])
    alone = encode_image(bert.model, IMAGES_BCHW[:1])  # another batch, so other statistics
    assert torch.allclose(alone, expected[0][:1], atol=1e-6)


def test_unfrozen_parts_still_change_with_train_mode(bert):
    adapt(bert.model, AdaptConfig(freeze="image"))
    bert.model.train()
    tokens = bert.tokenizer(CAPTIONS)
    assert not torch.equal(encode_text(bert.model, tokens), encode_text(bert.model, tokens))  # dropout
    bert.model.eval()
    assert torch.equal(encode_text(bert.model, tokens), encode_text(bert.model, tokens))


def test_freeze_blocks_counts_the_blocks_of_both_towers_and_their_stems(bert):
    present = {"image": len(bert.model.visual.trunk.blocks), "text": 2}
    for tower, blocks in present.items():
        with pytest.raises(SettingError, match=f"at most {blocks}, the tower's blocks"):
            adapt(bert.model, AdaptConfig(**{f"freeze_{tower}_blocks": blocks + 1}))
    adapt(bert.model, AdaptConfig(freeze_image_blocks=1, freeze_text_blocks=1))
    frozen = {n for n, p in bert.model.named_parameters() if not p.requires_grad}
    expected = ("visual.trunk.conv_stem", "visual.trunk.bn1", "visual.trunk.blocks.0.")
    expected += ("text.transformer.embeddings.", "text.transformer.encoder.layer.0.")
    assert frozen == {n for n, _ in bert.model.named_parameters() if n.startswith(expected)}


@pytest.mark.parametrize(
    ("trunk", "first", "blocks"),
    [("test_resnet", "visual.trunk.conv1.0.weight", 4), ("test_vit", "visual.trunk.cls_token", 6)],
)
def test_layer_decay_reaches_the_stem_of_any_timm_trunk(trunk, first, blocks, tmp_path):
    vision = {"timm_model_name": trunk, "timm_pool": "", "image_size": 160}
    model = build(ModelConfig(name=write_config(tmp_path, vision=vision))).model
    factors = lr_multipliers(model, AdaptConfig(layer_decay=0.5))
    assert factors[first] == 0.5 ** (blocks + 1)
    assert factors["visual.head.proj.weight"] == factors["logit_scale"] == 1.0


def test_cached_trunks_give_the_same_steps_and_compute_each_input_once(bert):
    losses, states, passed = {}, {}, {True: 0, False: 0}
    for cached in (False, True):
        model = copy.deepcopy(bert.model)
        adapt(model, AdaptConfig(freeze="trunks", cache_frozen=cached))

        def count(*_, cached=cached):
            passed[cached] += 1

        model.visual.trunk.conv_stem.register_forward_hook(count)
        model.train()
        losses[cached] = torch.stack([step(bert, model) for _ in range(3)])
        states[cached] = model.state_dict()
    assert torch.allclose(losses[True], losses[False], atol=1e-6)
    assert all(torch.allclose(states[True][n], t, atol=1e-6) for n, t in states[False].items())
    assert passed == {False: 3, True: 1}


def test_teacher_of_cached_trunks_shares_their_outputs_but_has_its_own_head(bert):
    adapt(bert.model, AdaptConfig(freeze="trunks", cache_frozen=True))
    teacher, tokens = Teacher(bert.model, TeacherConfig(decay=0.5)), bert.tokenizer(CAPTIONS)
    encode_image(bert.model, IMAGES_BCHW)
    teacher.model.visual.trunk.register_forward_hook(lambda *_: pytest.fail("computed twice"))
    start = teacher.encode(IMAGES_BCHW, tokens)
    step(bert, bert.model)
    assert torch.equal(teacher.encode(IMAGES_BCHW, tokens)[0], start[0])
    teacher.update(bert.model, 256)
    assert not torch.equal(teacher.encode(IMAGES_BCHW, tokens)[0], start[0])


def test_cache_frozen_without_a_frozen_trunk_is_refused(bert, tmp_path):
    for config in (AdaptConfig(cache_frozen=True), AdaptConfig(cache_frozen=True, freeze_text_blocks=1)):
        with pytest.raises(SettingError, match=r"cache_frozen: found True; expected false"):
            adapt(copy.deepcopy(bert.model), config)


def test_output_cache_computes_repeated_rows_once_and_stops_growing_at_its_limit():
    rows, computed = torch.arange(6.0).reshape(6, 1)[[0, 1, 1, 2, 0]], []

    def trunk(x):
        computed.extend(x[:, 0].tolist())
        return x * 10

    cache = OutputCache(limit_bytes=2 * 4)  # two outputs of one float
    for _ in range(2):
        assert torch.equal(cache.through(trunk, rows), rows * 10)
    assert sorted(computed) == [0.0, 1.0, 2.0, 2.0]  # the third does not fit
