"""Pixels for evaluation: equal to open_clip's transform, bit for bit."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from degla_ray.encoding.resize import resized
from degla_ray.model.preprocess import eval_transform

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def _image(mode: str, width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * height).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("resize_mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_resized_and_normalised_equals_open_clips_transform(
    resize_mode: str, interpolation: str, size: tuple[int, int]
) -> None:
    cfg = {"size": size, "mean": MEAN, "std": STD, "resize_mode": resize_mode, "interpolation": interpolation}
    transform = eval_transform(cfg)
    mean_C11, std_C11 = (torch.tensor(x)[:, None, None] for x in (MEAN, STD))
    for mode in ("RGB", "L", "P", "RGBA", "LA", "CMYK", "1", "I", "YCbCr"):
        for width, height in ((32, 32), (77, 50), (41, 93), (20, 11), (32, 33), (5, 64)):
            image = _image("RGB" if mode == "LA" else mode, width, height)
            image = image.convert("L").convert("LA") if mode == "LA" else image
            pixels_HWC = resized(image, cfg)
            assert pixels_HWC.dtype == np.uint8
            pixels_CHW = torch.from_numpy(pixels_HWC.copy()).permute(2, 0, 1)
            found_CHW = (pixels_CHW.float() / 255 - mean_C11) / std_C11
            assert torch.equal(found_CHW, transform(image)), (mode, width, height)


@pytest.mark.parametrize("module", ["degla_ray.encoding.reading", "degla_ray.evaluation.run"])
def test_module_that_reads_or_starts_imports_no_heavy_library(module: str) -> None:
    heavy = "{'torch', 'open_clip', 'transformers', 'ray', 'mlflow', 'scipy'}"
    code = f"import sys, {module}; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
