"""compute.compile: compiled blocks against the same blocks uncompiled."""

from __future__ import annotations

import copy
import functools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_models import write_config
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._inductor.cpp_builder import cpp_compiler_search
from torch._inductor.utils import fresh_cache

from degla_ray.config import ModelConfig
from degla_ray.errors import DeglaError
from degla_ray.model import encode_image, encode_text
from degla_ray.model.blocks import compile_blocks
from degla_ray.model.build import build
from degla_ray.training.loop import cannot_compile

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
BATCHES = [(3, 6), (8, 20), (2, 3)]
"""(images, tokens of the longest text) of batches, of which each has other sizes."""


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def _towers(folder: Path, *, layers: int, quick_gelu: bool) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"layers": layers}
    config = write_config(folder / "model", text=sizes, vision=sizes, quick_gelu=quick_gelu)
    return build(ModelConfig(name=config)).model


def _loss_and_gradients(model: nn.Module, images: int, longest: int) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(longest)
    image_BCHW = torch.randn(images, 3, 32, 32, generator=generator)
    tokens_XL = torch.zeros(2 * images, 32, dtype=torch.long)
    for row in tokens_XL:
        words = int(torch.randint(1, longest, (), generator=generator))
        row[:words], row[words] = torch.randint(1, 398, (words,), generator=generator), 399
    model.zero_grad()
    with torch.no_grad():
        teacher_XD = encode_text(model, tokens_XL)
    img_BD, txt_XD = encode_image(model, image_BCHW), encode_text(model, tokens_XL)
    loss = (img_BD @ txt_XD.T).logsumexp(0).sum() + (txt_XD * teacher_XD).pow(3).sum()
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def _assert_equal(one: nn.Module, other: nn.Module, tolerance: float) -> None:
    for batch in BATCHES:
        (loss, gradients), (compiled_loss, compiled) = (_loss_and_gradients(m, *batch) for m in (one, other))
        assert compiled_loss.item() == pytest.approx(loss.item(), rel=tolerance)
        assert gradients.keys() == compiled.keys()
        largest = max(gradient.abs().max() for gradient in gradients.values())
        for name, gradient in gradients.items():
            assert (compiled[name] - gradient).abs().max() <= tolerance * largest, name


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_compiled_blocks_give_equal_results_with_one_graph_for_all_blocks_and_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_gelu: bool
) -> None:
    """Traced as for inductor, but without generating code, which takes a minute."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    model = _towers(tmp_path, layers=3, quick_gelu=quick_gelu)
    compiled = copy.deepcopy(model)
    assert compile_blocks(compiled)
    _assert_equal(model, compiled, 1e-6)
    assert counters["stats"]["unique_graphs"] <= 4  # image and text, with gradient and without
    assert not counters["graph_break"]


@pytest.mark.slow  # the test above has the rule
@needs_compiler
def test_compiled_blocks_give_equal_results_in_generated_code(tmp_path: Path) -> None:
    model = _towers(tmp_path, layers=3, quick_gelu=True)
    compiled = copy.deepcopy(model)
    assert compile_blocks(compiled)
    _assert_equal(model, compiled, 1e-5)


def test_compile_blocks_of_a_model_without_blocks_finds_none() -> None:
    assert not compile_blocks(nn.Linear(2, 2))


def test_compile_without_a_compiler_names_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    cpp_compiler_search.cache_clear()
    model = _towers(tmp_path, layers=2, quick_gelu=True)
    compile_blocks(model)
    with fresh_cache(), pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as failed:
        _loss_and_gradients(model, 2, 4)
    cpp_compiler_search.cache_clear()
    error = cannot_compile(failed.value)
    assert isinstance(error, DeglaError)
    assert str(error).startswith("compute.compile: found True; expected false, or a C++ compiler")
    assert "\n" not in str(error)
