"""Assembling a model from weights that packages bring. The packages themselves are not needed here."""

import json
import zipfile

import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny_models import CAPTIONS, EFFICIENTNET, write_adapters

from degla_ray.config import ModelConfig
from degla_ray.errors import DataError
from degla_ray.model import encode_image, encode_text, load, photos_base
from degla_ray.model.build import build
from degla_ray.model.photos_base import IMAGE_WEIGHTS, TEXT_MODEL, assemble, load_in_order

IMAGES_BCHW = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Two packages in miniature, in the layout of the real ones; returns their folder and their towers."""
    torch.manual_seed(1)
    towers = build(ModelConfig(name=write_adapters(tmp_path / "towers"))).model.eval()
    folder, trunk = tmp_path / "packages", towers.visual.trunk.state_dict()
    names = {f"_layer{i}": tensor for i, tensor in enumerate(trunk.values())}
    (folder / IMAGE_WEIGHTS).parent.mkdir(parents=True)
    torch.save(names | {"_fc.weight": torch.ones(3, 3), "_fc.bias": torch.ones(3)}, folder / IMAGE_WEIGHTS)
    extra = {"embeddings.position_ids": torch.arange(4), "pooler.dense.bias": torch.ones(3)}
    encoder = {name: tensor.contiguous() for name, tensor in towers.text.transformer.state_dict().items()}
    save_file(encoder | extra, tmp_path / "model.safetensors")
    (folder / TEXT_MODEL).parent.mkdir()
    with zipfile.ZipFile(folder / TEXT_MODEL, "w") as archive:
        archive.write(tmp_path / "model.safetensors", "model.safetensors")
        archive.write(tmp_path / "towers" / "encoder" / "config.json", "config.json")
        for path in (tmp_path / "towers" / "tokenizer").iterdir():
            archive.write(path, path.name)
    tiny = json.loads(json.dumps(photos_base.ARCHITECTURE))
    tiny["model_cfg"]["vision_cfg"] = EFFICIENTNET
    monkeypatch.setattr(photos_base, "ARCHITECTURE", tiny)
    return folder, towers


@torch.no_grad()
def test_assemble_gives_a_model_with_the_packages_trunks(packages, tmp_path):
    folder, towers = packages
    assemble(folder, str(tmp_path / "base"))
    base = load(str(tmp_path / "base"))
    assert torch.equal(base.model.visual.trunk(IMAGES_BCHW), towers.visual.trunk(IMAGES_BCHW))
    tokens_BL = base.tokenizer(CAPTIONS)
    states = [model.text.transformer(input_ids=tokens_BL).last_hidden_state for model in (base.model, towers)]
    assert torch.equal(*states)
    assert encode_image(base.model, IMAGES_BCHW).shape == (2, 256)
    assert encode_text(base.model, tokens_BL).shape == (len(CAPTIONS), 256)
    assert base.preprocess_cfg["std"] == pytest.approx((128 / 255,) * 3)
    assert not base.is_random


def test_assemble_names_the_file_that_is_missing(packages, tmp_path):
    folder, _ = packages
    (folder / TEXT_MODEL).unlink()
    with pytest.raises(DataError, match=r"model.zip: found no such file; expected .*make photos-base"):
        assemble(folder, str(tmp_path / "base"))


def test_load_in_order_refuses_weights_of_another_network():
    trunk, other = (timm.create_model(name, num_classes=0) for name in ("test_efficientnet", "test_resnet"))
    with pytest.raises(
        DataError, match=r"shapes differ .*; expected weights of EfficientNet in its own order"
    ):
        load_in_order(trunk, other.state_dict(), "weights.pth")
