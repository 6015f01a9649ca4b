"""A training step: micro-batches, precision, a resume in between, and what a skipped step leaves."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import torch
from tiny_models import CAPTIONS, EFFICIENTNET, write_config
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from degla_ray.config import (
    AdaptConfig,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TeacherConfig,
    TrainComputeConfig,
    TrainConfig,
)
from degla_ray.loader.decode import HostBatch, tower_input
from degla_ray.loader.loader import LocalBatch, local_batch
from degla_ray.loader.samples import Texts
from degla_ray.model import LoadedModel, Teacher
from degla_ray.model.adapt import adapt
from degla_ray.model.build import build
from degla_ray.model.encode import text_end
from degla_ray.objectives import Features, losses, next_state
from degla_ray.storage import Storage
from degla_ray.training import checkpoint
from degla_ray.training.forward import freeze_unreached
from degla_ray.training.gradients import backward
from degla_ray.training.optimizer import (
    build_optimizer,
    clamp_logit_scale,
    learning_rate,
    set_learning_rate,
)
from degla_ray.training.state import TrainState
from degla_ray.training.step import TrainStep
from degla_ray.training.workers import Workers

B, K = 12, 3
CPU = torch.device("cpu")
MODELS = {"clip": {}, "siglip": {"init_logit_bias": -3.0}}
OBJECTIVES = {name: ObjectiveConfig(name=name) for name in ("clip", "negclip", "ceclip", "degla")} | {
    "degla_released": ObjectiveConfig(tgc_negatives="released", distill_reduction="sum", lambda_distill=0.005)
}


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


def a_batch(loaded: LoadedModel, micro_batches: int, device: torch.device = CPU) -> LocalBatch:
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
    for row_b, mask_bK in zip(
        torch.arange(B).tensor_split(micro_batches), mask_BK.tensor_split(micro_batches), strict=True
    ):
        tokens_bL, tokens_bKL = tokens_XL[row_b], tokens_XL[B:].unflatten(0, (B, K))[row_b]
        own = Texts.of(torch.cat([tokens_bL, tokens_bKL.flatten(0, 1)]).numpy(), padding=0)
        texts.append(tower_input(own, mask_bK.numpy(), text_end(loaded.model)))
    host = HostBatch(images_BHWC=images_BHWC.numpy(), texts=tuple(texts), mask_BK=mask_BK.numpy())
    return local_batch(0, host, device)


def step_of(
    loaded: LoadedModel,
    objective: str,
    micro_batches: int,
    lr: float = 0.0,
    *,
    device: torch.device = CPU,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    scaler: torch.amp.GradScaler | None = None,
    nonfinite_steps: Literal["stop", "skip"] = "stop",
) -> TrainStep:
    config = TrainConfig(
        name="x",
        data=DataConfig(prepared="", negatives=""),
        model=ModelConfig(name="scenes-base"),
        objective=OBJECTIVES[objective],
        optimizer=OptimizerConfig(lr=lr, warmup_steps=0),
        global_batch_size=B,
        compute=TrainComputeConfig(precision=precision),
        nonfinite_steps=nonfinite_steps,
    )
    student = loaded.model.to(device).train()
    state = TrainState(
        student=student,
        teacher=Teacher(student, TeacherConfig()) if config.objective.wants_teacher else None,
        optimizer=build_optimizer(student, config.optimizer, device=device),
        scaler=scaler or torch.amp.GradScaler(device.type, enabled=False),
    )
    return TrainStep(state, config, loaded.preprocess_cfg, total_steps=10)


def of_step(
    loaded: LoadedModel,
    objective: str,
    micro_batches: int,
    device: torch.device = CPU,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Terms and gradients of the second of two steps at rate 0: CE-CLIP's margins are then not 0."""
    step = step_of(loaded, objective, micro_batches, device=device, precision=precision)
    if step.state.teacher is not None:
        with torch.no_grad():  # so that distillation has gradients
            for parameter in step.state.teacher.model.parameters():
                parameter.mul_(0.9)
    for seed in range(2):
        terms = step(a_batch(loaded, micro_batches, device), seed=seed)
    terms.pop("lr")
    gradients = {n: p.grad.cpu() for n, p in loaded.model.named_parameters() if p.grad is not None}
    return terms, gradients


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("micro_batches", [2, 5, 12])
def test_gradients_in_micro_batches_equal_those_at_once(loaded, objective, micro_batches):
    terms, whole = of_step(loaded, objective, 1)
    terms_accumulated, accumulated = of_step(loaded, objective, micro_batches)
    assert terms.keys() == terms_accumulated.keys()
    for name, value in terms.items():
        assert terms_accumulated[name].item() == pytest.approx(value.item(), rel=1e-5), name
    assert whole.keys() == accumulated.keys() == dict(loaded.model.named_parameters()).keys()
    for name, gradient in whole.items():
        assert gradient.norm() > 0 or name.endswith("attn.in_proj_bias"), name
        # a key's bias changes no attention: its gradient is rounding
        assert torch.allclose(
            accumulated[name], gradient, rtol=1e-4, atol=1e-5 * whole["logit_scale"].norm()
        ), name


def test_gradients_of_a_tower_with_batch_norm_do_not_depend_on_the_micro_batch(tmp_path):
    torch.manual_seed(0)
    loaded = build(ModelConfig(name=write_config(tmp_path, vision=EFFICIENTNET)))
    adapt(loaded.model, AdaptConfig())
    statistics = {name: buffer.clone() for name, buffer in loaded.model.named_buffers() if "running" in name}
    _, whole = of_step(loaded, "degla", 1)
    _, accumulated = of_step(loaded, "degla", 3)
    norms = [name for name in whole if ".bn1." in name]
    assert norms
    assert statistics
    assert all(whole[name].norm() > 0 for name in norms)
    for name, gradient in whole.items():
        distance = (accumulated[name] - gradient).norm()
        assert distance <= 1e-4 * gradient.norm() + 1e-5 * whole["logit_scale"].norm(), name
    for name, buffer in statistics.items():
        assert torch.equal(loaded.model.get_buffer(name), buffer), name


@pytest.mark.parametrize("objective", ["clip", "degla"])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_step_in_bf16_is_near_the_step_in_fp32_on_the_cpu(loaded, objective, micro_batches, device):
    """Losses to 2 %, a gradient to 10 % of its length: bf16 rounds to 0.4 %, and a step adds up."""
    terms, gradients = of_step(copy.deepcopy(loaded), objective, 1)
    found, rounded = of_step(loaded, objective, micro_batches, device, "bf16")
    for name, value in terms.items():
        assert found[name].item() == pytest.approx(value.item(), rel=2e-2, abs=2e-3), name
    largest = max(gradient.norm() for gradient in gradients.values())
    assert gradients.keys() == rounded.keys()
    for name, gradient in gradients.items():
        distance = (rounded[name] - gradient).norm()
        assert distance <= 0.1 * gradient.norm() + 1e-3 * largest, name
    assert any(not torch.equal(rounded[name], gradient) for name, gradient in gradients.items())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_step_after_a_resume_continues_the_run(loaded, precision, device, tmp_path):
    """Equal on the CPU; on a GPU to 1e-3, because attention's backward pass adds in no fixed order."""

    def losses_of(step: TrainStep, steps: int) -> list[float]:
        return [float(step(a_batch(loaded, 2, device), seed=n)["loss"]) for n in range(steps)]

    other = copy.deepcopy(loaded)
    step = step_of(loaded, "degla", 2, 1e-3, device=device, precision=precision)
    losses_of(step, 2)
    run = Storage(str(tmp_path / "run"))
    name = checkpoint.write(run, checkpoint.snapshot(step.state, {}))
    resumed = step_of(other, "degla", 2, 1e-3, device=device, precision=precision)
    checkpoint.load(run, name, resumed.state, Workers(rank=0, world_size=1, device=device))
    expected, found = losses_of(step, 3), losses_of(resumed, 3)
    assert len(set(expected)) == 3
    assert found == (expected if device.type == "cpu" else pytest.approx(expected, rel=1e-3))


@pytest.mark.parametrize(
    "config", [AdaptConfig(freeze="image"), AdaptConfig(lora_rank=2)], ids=["frozen", "lora"]
)
def test_gradients_of_what_is_trained_in_micro_batches_equal_those_at_once(loaded, config):
    adapt(loaded.model, config)
    with torch.no_grad():  # adapters begin at 0
        for parameter in loaded.model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter) * parameter.requires_grad)
    _, whole = of_step(loaded, "degla", 1)
    _, accumulated = of_step(loaded, "degla", 3)
    trained = {name for name, p in loaded.model.named_parameters() if p.requires_grad}
    assert whole.keys() == accumulated.keys() == trained < dict(loaded.model.named_parameters()).keys()
    for name, gradient in whole.items():
        assert gradient.norm() > 0, name
        assert (accumulated[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


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


def test_step_that_the_scaler_skips_changes_only_the_counts(loaded):
    scaler = torch.amp.GradScaler("cpu", init_scale=1e38)  # the scaled gradients overflow
    step = step_of(loaded, "degla", 1, lr=0.1, scaler=scaler)
    state = step.state
    before = [p.clone() for p in (*state.student.parameters(), *state.teacher.model.parameters())]
    step(a_batch(loaded, 1), seed=0)
    step.settle()
    after = [*state.student.parameters(), *state.teacher.model.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert (state.step, state.optimizer_steps, state.skipped) == (1, 0, 1)
    scaler.update(1.0)
    terms = step(a_batch(loaded, 1), seed=0)
    step.settle()
    assert terms["lr"].item() == 0.1  # the schedule has not moved either
    assert (state.step, state.optimizer_steps, state.skipped) == (2, 1, 0)
    assert not any(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def by_asking(step: TrainStep, batch: LocalBatch, seed: int) -> tuple[float, bool]:
    """Take a step that asks after it whether the scaler skipped it; return its rate, and whether."""
    state, config = step.state, step.config
    lr = learning_rate(config.optimizer, state.optimizer_steps, step.total_steps)
    set_learning_rate(state.optimizer, lr)
    state.optimizer.zero_grad()

    def objective(features: Features, scale: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
        return losses(features, scale, config.objective, logit_bias=bias, state=state.objective_state)

    rows = step.normalise(batch)
    found = backward(step.forward, objective, state.scaler, rows, seed, lambda phase: None)
    state.objective_state = next_state(found.features, found.scale, config.objective)
    if config.optimizer.clip_grad_norm is not None:
        state.scaler.unscale_(state.optimizer)
        torch.nn.utils.clip_grad_norm_(state.student.parameters(), config.optimizer.clip_grad_norm)
    before = state.scaler.get_scale()
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if skipped := state.scaler.get_scale() < before:
        return lr, skipped
    clamp_logit_scale(state.student)
    state.teacher.update(state.student, config.global_batch_size)
    state.optimizer_steps += 1
    return lr, skipped


@pytest.mark.parametrize("batch_norm", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_steps_in_fp16_equal_those_that_ask_after_each_whether_it_was_skipped(tmp_path, batch_norm):
    """Rates, skipped steps and weights, bit for bit; the scale grows every two steps, until it overflows."""
    torch.manual_seed(0)
    towers = {"vision": EFFICIENTNET} if batch_norm else {}
    loaded = build(ModelConfig(name=write_config(tmp_path, **towers)))
    ours, theirs = (
        step_of(
            model,
            "degla",
            1,
            lr=1e-3,
            precision="fp16",
            scaler=torch.amp.GradScaler("cpu", init_scale=2.0**13, growth_interval=2, growth_factor=8.0),
        )
        for model in (loaded, copy.deepcopy(loaded))
    )
    was_skipped, in_a_row = [], 0
    for seed in range(10):
        batch = a_batch(loaded, 1)
        terms = ours(batch, seed=seed)
        lr, skipped = by_asking(theirs, batch, seed)
        was_skipped.append(skipped)
        assert terms["lr"].item() == lr
        in_a_row = in_a_row + 1 if skipped else 0
        if seed % 3 == 0:  # a log interval ends
            ours.settle()
            found = (ours.state.optimizer_steps, ours.state.skipped)
            assert found == (theirs.state.optimizer_steps, in_a_row)
    assert was_skipped[0]
    assert True in was_skipped[was_skipped.index(False) :]
    models = [(s.state.student, s.state.teacher.model) for s in (ours, theirs)]
    for one, other in zip(*models, strict=True):
        for name, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name


@contextlib.contextmanager
def without_a_finite_loss(step: TrainStep) -> Iterator[None]:
    """Turn the student's image features into NaN."""
    broken = step.state.student.visual.ln_pre.register_forward_hook(lambda *call: call[2] * torch.nan)
    yield
    broken.remove()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("objective", ["degla", "ceclip"])  # ceclip carries margins to the next step
def test_run_that_skips_a_step_that_is_not_finite_equals_one_without_it(loaded, objective, precision):
    skips, stops = (
        step_of(model, objective, 1, lr=1e-3, precision=precision, nonfinite_steps=setting)
        for model, setting in ((copy.deepcopy(loaded), "skip"), (loaded, "stop"))
    )
    batch = a_batch(loaded, 1)
    for seed in range(4):
        if seed in (1, 3):
            with without_a_finite_loss(skips):
                assert skips(batch, seed=seed)["loss"].isnan()
            continue
        found, expected = skips(batch, seed=seed), stops(batch, seed=seed)
        assert {k: float(v) for k, v in found.items()} == {k: float(v) for k, v in expected.items()}
    skips.settle()
    assert (skips.state.step, skips.state.optimizer_steps, skips.state.skipped) == (4, 2, 1)
    for state in ("student", "teacher"):
        one, other = (getattr(step.state, state) for step in (skips, stops))
        if one is not None:
            for name, value in one.state_dict().items():
                assert torch.equal(value, other.state_dict()[name]), name


class _Questions(TorchDispatchMode):
    """Counts operations whose result the host waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function._overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "is_nonzero")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("precision", "nonfinite_steps"), [("fp32", "stop"), ("bf16", "stop"), ("bf16", "skip"), ("fp16", "stop")]
)
def test_step_asks_the_device_nothing_until_the_counts_are_settled(loaded, precision, nonfinite_steps):
    scaler = torch.amp.GradScaler("cpu", enabled=precision == "fp16")
    step = step_of(
        loaded, "degla", 2, lr=1e-3, precision=precision, scaler=scaler, nonfinite_steps=nonfinite_steps
    )
    step(a_batch(loaded, 2), seed=0)
    batch = a_batch(loaded, 2)
    with _Questions() as questions:
        step(batch, seed=1)
        asked = questions.count
        scaler.get_scale()  # a question, in fp16
    assert (asked, questions.count) == (0, int(precision == "fp16"))


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
