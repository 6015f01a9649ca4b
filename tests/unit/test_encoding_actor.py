"""What an encoding actor computes, without Ray: equal to open_clip's own transform and towers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from degla_ray.config import ModelConfig
from degla_ray.devices import Precision
from degla_ray.encoding.actor import GPU_CALLS, Towers
from degla_ray.encoding.reading import tokenised
from degla_ray.encoding.resize import resized
from degla_ray.encoding.rows import READ, row_of, with_array
from degla_ray.model.build import build
from degla_ray.model.loaded import LoadedModel
from tests.evaluation_suite import write_model_config

TEXTS = ["a dog", "", "a red cube next to a blue ball", "word " * 100]


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedModel:
    write_model_config(tmp_path / "tiny.json")
    torch.manual_seed(0)
    loaded = build(ModelConfig(name=str(tmp_path / "tiny.json"), random_init=True))
    loaded.model.eval()
    return loaded


def _images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = ((64, 48), (40, 40), (33, 90))
    return [Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)) for h, w in sizes]


def _plain(loaded: LoadedModel) -> tuple[np.ndarray, np.ndarray]:
    """Return img_BD and txt_BD by open_clip's transform and methods."""
    images_BCHW = torch.stack([loaded.transform(image) for image in _images()])
    with torch.no_grad():
        img_BD = loaded.model.encode_image(images_BCHW, normalize=True)  # type: ignore[operator]
        txt_BD = loaded.model.encode_text(loaded.tokenizer(TEXTS), normalize=True)  # type: ignore[operator]
    return img_BD.numpy(), txt_BD.numpy()


def _encoded(loaded: LoadedModel, device: str, precision: Precision) -> tuple[np.ndarray, np.ndarray]:
    towers = Towers(loaded, device, precision)
    pixels_BHWC = np.stack([resized(image, loaded.preprocess_cfg) for image in _images()])
    pixels_BHWC.setflags(write=False)  # as a view of Ray's object store is
    tokens_BL, _ = tokenised(loaded.tokenizer, TEXTS)
    return towers.images(pixels_BHWC), towers.texts(tokens_BL)


def test_towers_fp32_features_equal_open_clips(loaded: LoadedModel) -> None:
    for found, expected in zip(_encoded(loaded, "cpu", "fp32"), _plain(loaded), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
            ],
        ),
    ],
)
def test_towers_two_batches_in_flight_are_not_mixed_up(loaded: LoadedModel, device: str) -> None:
    towers = Towers(loaded, device, "fp32")
    rng = np.random.default_rng(0)
    shape = (8, *loaded.preprocess_cfg["size"], 3)
    batches = [rng.integers(0, 255, shape, dtype=np.uint8) for _ in range(12)]
    one_by_one = [towers.images(batch) for batch in batches]
    with ThreadPoolExecutor(GPU_CALLS) as calls:
        for found, expected in zip(calls.map(towers.images, batches), one_by_one, strict=True):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_towers_bf16_features_are_rounded_and_float32(loaded: LoadedModel) -> None:
    for found, expected in zip(_encoded(loaded, "cpu", "bf16"), _plain(loaded), strict=True):
        assert found.dtype == np.float32
        assert 1e-5 < np.abs(found - expected).max() < 3e-2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("precision", "atol"), [("fp32", 1e-5), ("tf32", 5e-3), ("bf16", 3e-2)])
def test_towers_on_a_gpu_equal_the_cpu(loaded: LoadedModel, precision: Precision, atol: float) -> None:
    expected = _plain(loaded)
    for found, plain in zip(_encoded(loaded, "cuda", precision), expected, strict=True):
        np.testing.assert_allclose(found, plain, rtol=0, atol=atol)


def test_tokenised_equals_the_tokenizer_and_names_what_it_truncates(loaded: LoadedModel) -> None:
    length = loaded.tokenizer([""]).shape[1]
    fitting = next(n for n in range(1, 2 * length) if loaded.tokenizer(["word " * n])[0, -1] != 0)
    texts = [*TEXTS, "word " * fitting, "word " * (fitting + 1)]
    tokens_BL, truncated = tokenised(loaded.tokenizer, texts)
    np.testing.assert_array_equal(tokens_BL, loaded.tokenizer(texts).numpy())
    assert truncated == [False, False, False, True, False, True]


def test_tokenised_texts_that_fit_are_tokenised_once(loaded: LoadedModel) -> None:
    counted: list[str] = []

    def tokenizer(texts: list[str], context_length: int | None = None) -> torch.Tensor:
        counted.extend(texts)
        return loaded.tokenizer(texts, context_length=context_length)

    tokenised(tokenizer, TEXTS)
    assert [counted.count(text) for text in TEXTS if text] == [1, 1, 2]


def test_row_keeps_its_array_without_a_copy() -> None:
    pixels_BHWC = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    lists = {name: [] for name in READ.names[1:]}
    before = pa.total_allocated_bytes()
    table = with_array({"source": "files", **lists, "ids": ["a", "b"]}, pixels_BHWC)
    assert pa.total_allocated_bytes() - before < 2**14
    row, array = row_of(table)
    assert row == {"source": "files", **lists, "ids": ["a", "b"]}
    np.testing.assert_array_equal(array, pixels_BHWC)
    assert np.shares_memory(array, pixels_BHWC)
