"""What is trained, how fast, and LoRA against the plain model that its weights make."""

import copy

import pytest
import torch
from tiny_models import CAPTIONS, write_config

from degla_ray.config import AdaptConfig, ModelConfig, OptimizerConfig, TeacherConfig
from degla_ray.errors import SettingError
from degla_ray.model import LoadedModel, Teacher, encode_image, encode_text, load
from degla_ray.model.adapt import adapt, merged, plain_state
from degla_ray.model.build import build
from degla_ray.training.optimizer import build_optimizer, set_learning_rate

LORA = AdaptConfig(lora_rank=3, lora_alpha=6.0)


@pytest.fixture(params=[False, True], ids=["clip", "custom_text"])
def loaded(request, tmp_path) -> LoadedModel:
    torch.manual_seed(0)
    return build(ModelConfig(name=write_config(tmp_path, custom_text=request.param)))


def stir(model: torch.nn.Module) -> None:
    """Adapters begin at 0: gives everything that is trained another value."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)


def is_adapter(name: str) -> bool:
    return name.endswith((".A_RI", ".B_OR"))


def features(loaded: LoadedModel, model: torch.nn.Module) -> torch.Tensor:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return torch.cat([encode_image(model, images), encode_text(model, loaded.tokenizer(CAPTIONS))])


def test_lora_starts_as_the_model_and_trains_only_adapters_and_scale(loaded):
    with torch.no_grad():
        before = features(loaded, loaded.model)
        plain = copy.deepcopy(loaded.model)
        adapt(loaded.model, LORA)
        assert torch.allclose(features(loaded, loaded.model), before, atol=1e-6)
    trained = {n for n, p in loaded.model.named_parameters() if p.requires_grad}
    assert {n for n in trained if not is_adapter(n)} == {"logit_scale"}
    for layer in ("attn.in_proj", "attn.out_proj", "mlp.c_fc", "mlp.c_proj"):
        of_layer = [n for n in trained if f".{layer}" in n.replace("parametrizations.", "")]
        assert len(of_layer) == 2 * 2 * 2, layer  # two factors in two blocks of two towers
    assert plain_state(loaded.model).keys() == dict(plain.named_parameters()).keys()


def test_lora_packed_text_tower_equals_open_clips(loaded):
    adapt(loaded.model, LORA)
    stir(loaded.model)
    model, tokens = loaded.model.eval(), loaded.tokenizer(CAPTIONS)
    with torch.no_grad():
        assert torch.allclose(
            encode_text(model, tokens), model.encode_text(tokens, normalize=True), atol=1e-6
        )


def test_lora_every_adapter_gets_a_gradient(loaded):
    adapt(loaded.model, LORA)
    stir(loaded.model)
    features(loaded, loaded.model)[:, 0].sum().backward()
    for name, parameter in loaded.model.named_parameters():
        if is_adapter(name):
            assert parameter.grad.norm() > 0, name


def test_merged_is_a_plain_model_with_the_same_features(loaded, tmp_path):
    names = dict(loaded.model.named_parameters()).keys()
    adapt(loaded.model, LORA)
    stir(loaded.model)
    plain = merged(loaded.model)
    assert dict(plain.named_parameters()).keys() == names
    assert all(p.requires_grad for p in plain.parameters())
    with torch.no_grad():
        assert torch.allclose(features(loaded, plain), features(loaded, loaded.model), atol=1e-6)
    assert any(is_adapter(name) for name in loaded.model.state_dict())  # the student goes on as it was


def test_teacher_of_a_lora_student_averages_weights_not_adapters(loaded):
    adapt(loaded.model, LORA)
    teacher = Teacher(loaded.model, TeacherConfig(decay=0.75))
    start = {n: p.clone() for n, p in teacher.model.named_parameters()}
    stir(loaded.model)
    teacher.update(loaded.model, 256)
    student = dict(merged(loaded.model).named_parameters())
    for name, parameter in teacher.model.named_parameters():
        assert torch.allclose(parameter, 0.75 * start[name] + 0.25 * student[name], atol=1e-6), name
    moved = "visual.transformer.resblocks.0.attn.in_proj_weight"
    assert not torch.equal(start[moved], student[moved])


@pytest.mark.parametrize(
    ("config", "stays"),
    [
        (AdaptConfig(freeze="image"), lambda n: n.startswith("visual.")),
        (AdaptConfig(freeze="text"), lambda n: not n.startswith("visual.") and n != "logit_scale"),
        (
            AdaptConfig(freeze_image_blocks=1),
            lambda n: (
                n.startswith("visual.")
                and ("resblocks.0." in n or any(x in n for x in ("conv1", "embedding", "ln_pre")))
            ),
        ),
        (
            AdaptConfig(freeze_text_blocks=2),
            lambda n: (
                not n.startswith("visual.")
                and ("resblocks." in n or any(x in n for x in ("token_embedding", "positional")))
            ),
        ),
    ],
)
def test_freeze_what_stays_is_what_was_named(config, stays, loaded):
    adapt(loaded.model, config)
    frozen = {n for n, p in loaded.model.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in loaded.model.named_parameters() if stays(n)}
    assert frozen


def test_rates_fall_block_by_block_and_adapters_run_ahead(loaded):
    optimizer = build_optimizer(
        loaded.model, OptimizerConfig(), AdaptConfig(layer_decay=0.5), device=torch.device("cpu")
    )
    set_learning_rate(optimizer, 8.0)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    named = {n.removeprefix("text."): rates[id(p)] for n, p in loaded.model.named_parameters()}
    for prefix in ("", "visual."):
        assert named[f"{prefix}positional_embedding"] == 1.0
        assert named[f"{prefix}transformer.resblocks.0.mlp.c_fc.weight"] == 2.0
        assert named[f"{prefix}transformer.resblocks.1.ln_1.bias"] == 4.0
    assert named["visual.proj"] == named["text_projection"] == named["ln_final.weight"] == 8.0
    assert named["logit_scale"] == 8.0
    adapt(loaded.model, LORA)
    optimizer = build_optimizer(loaded.model, OptimizerConfig(), LORA, device=torch.device("cpu"))
    multipliers = {len(group["params"]): group["lr_multiplier"] for group in optimizer.param_groups}
    assert sorted(multipliers.values()) == [1.0, 10.0]
    assert multipliers[1] == 1.0  # logit_scale


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (AdaptConfig(freeze_image_blocks=3), r"freeze_image_blocks: found 3; expected at most 2"),
        (AdaptConfig(freeze_text_blocks=9), r"freeze_text_blocks: found 9; expected at most 2"),
    ],
)
def test_adapt_more_blocks_than_there_are_is_refused(config, message, loaded):
    with pytest.raises(SettingError, match=message):
        adapt(loaded.model, config)


def test_adapt_lora_for_a_model_without_blocks_is_refused():
    model = load("scenes-base").model
    model.transformer = torch.nn.Identity() if hasattr(model, "transformer") else None
    if getattr(model, "text", None) is not None:
        model.text = torch.nn.Identity()
    with pytest.raises(SettingError, match=r"lora_rank: found 3; expected 0: .* no transformer blocks"):
        adapt(model, LORA)
