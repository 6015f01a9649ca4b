"""Mistakes that only a GPU would punish, found without one.

Under FakeTensorMode tensors claim to be on a GPU: a tensor left on the CPU raises, and so does everything
that asks the device for a value (`.item()`, `nonzero`, a boolean index). The backward pass does not run
there, so its operations are counted on the CPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import CAPTIONS, write_adapters, write_config
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils._python_dispatch import TorchDispatchMode

from degla_ray.config import AdaptConfig, ModelConfig, ObjectiveConfig, TeacherConfig, TrainComputeConfig
from degla_ray.loader.decode import tower_input
from degla_ray.loader.loader import LocalBatch
from degla_ray.loader.samples import Texts
from degla_ray.model import LoadedModel, Teacher, encode_image, encode_text
from degla_ray.model.adapt import adapt
from degla_ray.model.build import build
from degla_ray.model.encode import on_device, text_end
from degla_ray.model.packing import PackedText, pack
from degla_ray.objectives import Features, losses, next_state
from degla_ray.training.forward import Forward, Normalise
from degla_ray.training.gradients import backward

B, K = 3, 4
OBJECTIVES = {
    "clip": ObjectiveConfig(name="clip"),
    "negclip": ObjectiveConfig(name="negclip", negatives_per_caption=K),
    "ceclip": ObjectiveConfig(name="ceclip"),
    "ceclip_released": ObjectiveConfig(name="ceclip", imc_target="released"),
    "degla": ObjectiveConfig(name="degla"),
    "degla_released_pairs": ObjectiveConfig(name="degla", tgc_negatives="released"),
    "degla_focal": ObjectiveConfig(name="degla", focal_gamma=2.0, label_smoothing=0.1),
}
TOWERS: dict[str, Any] = {
    "clip": {"quick_gelu": True},
    "gelu": {},
    "siglip": {"init_logit_bias": -3.0},
    "bidirectional": {"text": {"no_causal_mask": True}},
    "huggingface": None,  # packed too, with an image tower of timm
}
ADAPTED = {
    "all": AdaptConfig(),
    "lora": AdaptConfig(lora_rank=2),
    "frozen_image": AdaptConfig(freeze="image"),
    "frozen_blocks": AdaptConfig(freeze_text_blocks=1),
}


def _build(tmp_path: Any, tower: str = "clip", config: AdaptConfig = ADAPTED["all"]) -> LoadedModel:
    torch.manual_seed(0)
    settings = TOWERS[tower]
    config_path = write_adapters(tmp_path) if settings is None else write_config(tmp_path, **settings)
    loaded = build(ModelConfig(name=config_path))
    adapt(loaded.model, config)
    return loaded


def _text(loaded: LoadedModel, mask_BK: np.ndarray) -> PackedText | np.ndarray:
    tokens_XL = loaded.tokenizer((CAPTIONS * (1 + K))[: B * (1 + K)]).numpy()
    return tower_input(Texts.of(tokens_XL, padding=0), mask_BK, text_end(loaded.model), 256)


def _terms(model: nn.Module, image: Tensor, text: Any, mask_BK: Tensor, config: ObjectiveConfig) -> Any:
    """Return the loss terms and the next state, with the student as its own teacher."""
    img_BD, txt_XD = encode_image(model, image), encode_text(model, text)
    k = config.num_negatives
    mine = {"img_BD": img_BD, "txt_BD": txt_XD[:B], "neg_BKD": txt_XD[B:].reshape(B, K, -1)[:, :k]}
    theirs = {f"teacher_{name}": value for name, value in mine.items()} if config.wants_teacher else {}
    features = Features(**mine, neg_mask_BK=mask_BK[:, :k], **theirs)
    scale = model.logit_scale.exp()  # type: ignore[operator]
    bias = getattr(model, "logit_bias", None)
    return losses(features, scale, config, logit_bias=bias), next_state(features, scale, config)


@contextmanager
def _on_fake_gpu(model: nn.Module, dtype: torch.dtype = torch.float32) -> Iterator[FakeTensorMode]:
    """Let the model's parameters and buffers claim to be on a GPU."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        moved = {
            name: torch.empty(
                t.shape,
                dtype=dtype if t.is_floating_point() else t.dtype,
                device="cuda",
                requires_grad=t.requires_grad,
            )
            for name, t in tensors.items()
        }
        with _reparametrize_module(model, moved):
            yield mode


def _fake(array: Any) -> Tensor:
    return torch.empty(array.shape, dtype=torch.from_numpy(array).dtype, device="cuda")


def _forward_on_fake_gpu(
    loaded: LoadedModel, config: ObjectiveConfig, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    mask_BK = np.ones((B, K), bool)
    text = _text(loaded, mask_BK)
    with _on_fake_gpu(loaded.model, dtype):
        image = torch.empty(B, 3, 32, 32, device="cuda", dtype=dtype)
        moved = text.map(_fake) if isinstance(text, PackedText) else _fake(text).long()
        terms, _ = _terms(loaded.model, image, moved, _fake(mask_BK), config)
        return terms


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_step_every_objective_stays_on_the_gpu_and_asks_it_nothing(objective: str, tmp_path: Any) -> None:
    terms = _forward_on_fake_gpu(_build(tmp_path), OBJECTIVES[objective])
    assert {value.device.type for value in terms.values()} == {"cuda"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tower", TOWERS)
def test_step_every_tower_stays_on_the_gpu_and_asks_it_nothing(
    tower: str, dtype: torch.dtype, tmp_path: Any
) -> None:
    """In bfloat16, packed texts go through the variable-length attention kernel."""
    terms = _forward_on_fake_gpu(_build(tmp_path, tower), OBJECTIVES["degla"], dtype)
    assert terms["loss"].device.type == "cuda"


@pytest.mark.parametrize("adapted", ADAPTED)
def test_step_partly_trained_models_stay_on_the_gpu(adapted: str, tmp_path: Any) -> None:
    terms = _forward_on_fake_gpu(_build(tmp_path, config=ADAPTED[adapted]), OBJECTIVES["degla"])
    assert terms["loss"].device.type == "cuda"


class _Reached(Exception):
    """The losses are computed; the backward pass does not run with fake tensors."""


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("adapted", ADAPTED)
def test_trainers_step_stays_on_the_gpu_up_to_the_backward_pass(
    adapted: str, micro_batches: int, tmp_path: Any
) -> None:
    """Normalisation, student and teacher over all micro-batches, and the losses of the whole batch."""
    loaded = _build(tmp_path, config=ADAPTED[adapted])
    teacher = Teacher(loaded.model, TeacherConfig())
    tokens_XL = loaded.tokenizer((CAPTIONS * (1 + K))[: B * (1 + K)]).numpy()
    tokens_BKL = tokens_XL[B:].reshape(B, K, -1)
    mask_BK, texts, found = np.ones((B, K), bool), [], []
    for rows in np.split(np.arange(B), micro_batches):
        own = np.concatenate([tokens_XL[rows], tokens_BKL[rows].reshape(len(rows) * K, -1)])
        end = text_end(loaded.model)
        texts.append(tower_input(Texts.of(own, padding=0), mask_BK[rows], end, 256))

    def objective(features: Features, scale: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
        found.append(losses(features, scale, OBJECTIVES["degla"], logit_bias=bias))
        raise _Reached

    with _on_fake_gpu(nn.ModuleDict({"student": loaded.model, "teacher": teacher.model})):
        forward = Forward(loaded.model, teacher, TrainComputeConfig())
        batch = LocalBatch(
            step=0,
            images_BHWC=torch.empty(B, 32, 32, 3, dtype=torch.uint8, device="cuda"),
            texts=tuple(text.map(_fake) for text in texts),  # type: ignore[union-attr]
            mask_BK=_fake(mask_BK),
        )
        rows = Normalise(loaded.preprocess_cfg, forward.device)(batch)
        assert len(rows) == micro_batches
        scaler = torch.amp.GradScaler("cuda", enabled=False)
        with pytest.raises(_Reached):
            backward(forward, objective, scaler, rows, seed=0, mark=lambda _: None)
    assert {value.device.type for value in found[0].values()} == {"cuda"}


@pytest.mark.parametrize("tower", ["clip", "siglip", "bidirectional", "huggingface"])
def test_evaluation_encodes_on_the_gpu_and_asks_it_nothing(tower: str, tmp_path: Any) -> None:
    """Texts are packed on the host, where the tokenizer is."""
    loaded = _build(tmp_path, tower)
    tokens, end = loaded.tokenizer(CAPTIONS).numpy(), text_end(loaded.model)
    text = None if end is None else pack(tokens, end.find(tokens))
    with _on_fake_gpu(loaded.model.eval()), torch.inference_mode():
        img_BD = encode_image(loaded.model, torch.empty(B, 3, 32, 32, device="cuda"))
        on_gpu = _fake(tokens) if text is None else on_device(text, loaded.model)
        txt_XD = encode_text(loaded.model, on_gpu)
    assert (img_BD.device.type, txt_XD.device.type) == ("cuda", "cuda")
    assert len(txt_XD) == len(CAPTIONS)


def test_fake_gpu_a_tensor_left_on_the_cpu_is_found(tmp_path: Any) -> None:
    loaded = _build(tmp_path)
    left = torch.ones(loaded.model.visual.ln_pre.normalized_shape)
    loaded.model.visual.ln_pre.forward = lambda x: x + left
    with pytest.raises(Exception, match="cpu"):
        _forward_on_fake_gpu(loaded, OBJECTIVES["degla"])


@pytest.mark.parametrize(
    ("ask", "error"),
    [
        (lambda x: x * float(x.sum()), DataDependentOutputException),
        (lambda x: x * len(x.flatten().nonzero()), DynamicOutputShapeException),
        (lambda x: x * x[x > 0].sum(), DynamicOutputShapeException),
    ],
    ids=["item", "nonzero", "boolean_index"],
)
def test_fake_gpu_a_question_to_the_device_is_found(ask: Any, error: type, tmp_path: Any) -> None:
    loaded = _build(tmp_path)
    loaded.model.visual.ln_pre.forward = ask
    with pytest.raises(error):
        _forward_on_fake_gpu(loaded, OBJECTIVES["degla"])


class _Operations(TorchDispatchMode):
    """Counts operations, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[function._overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


ASKING = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal"}
SORTING = {"index_put", "index_put_", "_index_put_impl_", "index"}


@pytest.mark.parametrize(
    ("objective", "tower"), [*((name, "clip") for name in OBJECTIVES), ("degla", "huggingface")]
)
def test_step_and_backward_ask_nothing_and_sort_no_indices(objective: str, tower: str, tmp_path: Any) -> None:
    """The backward pass of advanced indexing sorts its indices; a step once did so 14 to 16 times."""
    loaded = _build(tmp_path, tower)
    mask_BK = np.array([[True] * K, [True, False, True, False], [False] * K])
    text, image = on_device(_text(loaded, mask_BK), loaded.model), torch.randn(B, 3, 32, 32)
    operations = _Operations()
    with operations:
        terms, _ = _terms(loaded.model, image, text, torch.from_numpy(mask_BK), OBJECTIVES[objective])
        terms["loss"].backward()
    assert operations.count["addmm"] > 10
    assert not {name for name in operations.count if name in ASKING | SORTING}
