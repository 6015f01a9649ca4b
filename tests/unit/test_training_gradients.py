"""A step in pieces against the same step at once: values and the gradient of every parameter."""

import pytest
import torch
from tiny_models import CAPTIONS, write_config
from torch import Tensor

from degla_ray.config import (
    AdaptConfig,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    TeacherConfig,
    TrainConfig,
)
from degla_ray.loader.decode import HostBatch, tower_input
from degla_ray.loader.loader import LocalBatch, local_batch
from degla_ray.loader.samples import Texts
from degla_ray.model import LoadedModel, Teacher
from degla_ray.model.adapt import adapt
from degla_ray.model.build import build
from degla_ray.model.encode import text_end
from degla_ray.training.gradients import Gradients, freeze_unreached

B, K = 12, 3
MODELS = {"clip": {}, "siglip": {"init_logit_bias": -3.0}}
OBJECTIVES = ["clip", "negclip", "ceclip", "degla", "degla_released"]


COCA = {
    "multimodal_cfg": {
        "context_length": 32,
        "vocab_size": 400,
        "width": 32,
        "heads": 2,
        "layers": 2,
        "attn_pooler_heads": 2,
    },
    "text": {"embed_cls": True, "output_tokens": True, "context_length": 31},
    "vision": {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
    "custom_text": True,
}


@pytest.fixture(params=["clip", "siglip"])
def loaded(request, tmp_path) -> LoadedModel:
    torch.manual_seed(0)
    return build(ModelConfig(name=write_config(tmp_path, **MODELS[request.param])))


def a_batch(loaded: LoadedModel, pieces: int) -> LocalBatch:
    generator = torch.Generator().manual_seed(0)
    words = " ".join(CAPTIONS).split()
    texts = [
        " ".join(words[int(i)] for i in torch.randint(len(words), (3 + n % 5,), generator=generator))
        for n in range(B * (1 + K))
    ]
    tokens_XL = loaded.tokenizer(texts)
    images_BHWC = torch.randint(256, (B, 32, 32, 3), dtype=torch.uint8, generator=generator)
    mask_BK = torch.rand(B, K, generator=generator) < 0.7
    texts = []
    for row_b, mask_bK in zip(torch.arange(B).chunk(pieces), mask_BK.chunk(pieces), strict=True):
        tokens_bL, tokens_bKL = tokens_XL[row_b], tokens_XL[B:].unflatten(0, (B, K))[row_b]
        own = Texts.of(torch.cat([tokens_bL, tokens_bKL.flatten(0, 1)]).numpy(), padding=0)
        texts.append(tower_input(own, mask_bK.numpy(), text_end(loaded.model)))
    host = HostBatch(images_BHWC=images_BHWC.numpy(), texts=tuple(texts), mask_BK=mask_BK.numpy())
    return local_batch(0, host, torch.device("cpu"))


def of_step(loaded: LoadedModel, objective: str, pieces: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Terms and gradients of the second of two steps whose weights stay: CE-CLIP's margins are then not 0."""
    config = TrainConfig(
        name="x",
        data=DataConfig(prepared="", negatives=""),
        objective=ObjectiveConfig(name=objective),
        accumulation_steps=pieces,
        global_batch_size=B,
    )
    student = loaded.model.train()
    teacher = None
    if config.objective.wants_teacher:
        teacher = Teacher(student, TeacherConfig())
        with torch.no_grad():  # so that distillation has gradients
            for parameter in teacher.model.parameters():
                parameter.mul_(0.9)
    gradients = Gradients(student, teacher, config, loaded.preprocess_cfg)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for step in range(2):
        student.zero_grad()
        terms = gradients.compute(a_batch(loaded, pieces), scaler, seed=step)
    return terms, {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("pieces", [2, 4, 12])
def test_gradients_in_pieces_equal_those_at_once(loaded, objective, pieces):
    terms, whole = of_step(loaded, objective, 1)
    terms_in_pieces, in_pieces = of_step(loaded, objective, pieces)
    assert terms.keys() == terms_in_pieces.keys()
    for name, value in terms.items():
        assert terms_in_pieces[name].item() == pytest.approx(value.item(), rel=1e-5), name
    assert whole.keys() == in_pieces.keys() == dict(loaded.model.named_parameters()).keys()
    for name, gradient in whole.items():
        assert gradient.norm() > 0 or name.endswith("attn.in_proj_bias"), name
        # a key's bias changes no attention: its gradient is rounding
        assert torch.allclose(
            in_pieces[name], gradient, rtol=1e-4, atol=1e-5 * whole["logit_scale"].norm()
        ), name


@pytest.mark.parametrize(
    "config", [AdaptConfig(freeze="image"), AdaptConfig(lora_rank=2)], ids=["frozen", "lora"]
)
def test_gradients_of_what_is_trained_in_pieces_equal_those_at_once(loaded, config):
    adapt(loaded.model, config)
    with torch.no_grad():  # adapters begin at 0
        for parameter in loaded.model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter) * parameter.requires_grad)
    _, whole = of_step(loaded, "degla", 1)
    _, in_pieces = of_step(loaded, "degla", 3)
    trained = {name for name, p in loaded.model.named_parameters() if p.requires_grad}
    assert whole.keys() == in_pieces.keys() == trained < dict(loaded.model.named_parameters()).keys()
    for name, gradient in whole.items():
        assert gradient.norm() > 0, name
        assert (in_pieces[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_gradients_a_model_with_dropout_drops_the_same_in_both_passes(tmp_path):
    torch.manual_seed(0)
    loaded = build(ModelConfig(name=write_config(tmp_path)))
    loaded.model.visual.patch_dropout = torch.nn.Dropout(0.5)
    images = []
    loaded.model.visual.patch_dropout.register_forward_hook(lambda *call: images.append(call[2].detach()))
    of_step(loaded, "clip", 2)
    first, second, first_again, second_again = images[4:]
    assert torch.equal(first, first_again)
    assert torch.equal(second, second_again)
    assert (first == 0).any()


def test_gradients_frozen_teacher_stays_and_ema_moves(loaded):
    for kind, moves in (("frozen", False), ("ema", True)):
        teacher = Teacher(loaded.model, TeacherConfig(kind=kind, decay=0.5))
        with torch.no_grad():
            loaded.model.logit_scale.add_(0.5)
        before = teacher.model.logit_scale.item()
        teacher.update(loaded.model, 256)
        assert (teacher.model.logit_scale.item() != before) == moves


@pytest.mark.parametrize("name", ["clip", "siglip", "coca", "resnet"])
def test_freeze_unreached_freezes_what_a_step_leaves_without_gradient_and_nothing_else(name, tmp_path):
    settings = MODELS | {
        "coca": COCA,
        "resnet": {"vision": {"layers": [1, 1, 1, 1], "width": 8, "head_width": 8, "patch_size": None}},
    }
    torch.manual_seed(0)
    loaded = build(ModelConfig(name=write_config(tmp_path, **settings[name])))
    before = {key: value.clone() for key, value in loaded.model.state_dict().items()}
    model = loaded.model.train()
    frozen = freeze_unreached(model, loaded)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert {key.partition(".")[0] for key in frozen} == ({"text_decoder"} if name == "coca" else set())
    _, reached = of_step(loaded, "degla", 1)
    trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == reached.keys()
    assert trained | set(frozen) == {key for key, _ in model.named_parameters()}
