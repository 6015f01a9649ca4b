"""CLIPModel folders: written for transformers, read from it, and back."""

import json

import pytest
import torch
from PIL import Image
from tiny_models import CAPTIONS, write_config
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel

from degla_ray.config import ModelConfig
from degla_ray.errors import DataError
from degla_ray.model import encode_image, encode_text, load
from degla_ray.model.build import build
from degla_ray.model.export import export, export_huggingface

IMAGES_BCHW = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
KINDS = {
    "gelu": {},
    "quick_gelu": {"quick_gelu": True},
    "custom_text": {"custom_text": True},
    "clip_tokenizer": {"text": {"vocab_size": 49408, "hf_tokenizer_name": None}},
}


@pytest.fixture(params=KINDS)
def loaded(request, tmp_path):
    torch.manual_seed(0)
    loaded = build(ModelConfig(name=write_config(tmp_path / "config", **KINDS[request.param])))
    loaded.model.eval()
    return loaded


def theirs(model, tokens_BL):
    """transformers' features, normalised."""
    out = model(input_ids=tokens_BL, pixel_values=IMAGES_BCHW)
    return out.image_embeds, out.text_embeds


@torch.no_grad()
def test_export_huggingface_transformers_gives_the_same_features(loaded, tmp_path):
    export_huggingface(loaded, str(tmp_path / "hf"), {"objective": "degla"})
    model = CLIPModel.from_pretrained(tmp_path / "hf").eval()
    tokens_BL = loaded.tokenizer(CAPTIONS)
    images, texts = theirs(model, tokens_BL)
    assert torch.allclose(images, encode_image(loaded.model, IMAGES_BCHW), atol=1e-5)
    assert torch.allclose(texts, encode_text(loaded.model, tokens_BL), atol=1e-5)
    assert model.logit_scale.item() == pytest.approx(loaded.model.logit_scale.item())
    said = json.loads((tmp_path / "hf" / "degla.json").read_text())
    assert (said["activation"], said["objective"]) == (loaded.activation, "degla")


@torch.no_grad()
def test_export_huggingface_tokenizer_and_images_are_prepared_alike(loaded, tmp_path):
    export_huggingface(loaded, str(tmp_path / "hf"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    tokens_BL = loaded.tokenizer(CAPTIONS)
    for caption, ours in zip(CAPTIONS, tokens_BL.tolist(), strict=True):
        found = tokenizer(caption)["input_ids"]
        assert found == ours[: len(found)]
        assert set(ours[len(found) :]) <= {0}
    image = Image.effect_noise((50, 40), 90).convert("RGB")
    processor = CLIPImageProcessor.from_pretrained(tmp_path / "hf")
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    mean, std = processor.image_mean, processor.image_std
    assert pixels.shape == (1, 3, 32, 32)
    assert (tuple(mean), tuple(std)) == (loaded.preprocess_cfg["mean"], loaded.preprocess_cfg["std"])


@torch.no_grad()
def test_huggingface_folder_of_our_own_export_comes_back(loaded, tmp_path):
    export_huggingface(loaded, str(tmp_path / "hf"))
    again = load(str(tmp_path / "hf"))
    assert again.activation == loaded.activation
    assert again.preprocess_cfg["size"] == loaded.preprocess_cfg["size"]
    tokens_BL = loaded.tokenizer(CAPTIONS)
    assert torch.equal(again.tokenizer(CAPTIONS), tokens_BL)
    assert torch.allclose(
        encode_text(again.model, tokens_BL), encode_text(loaded.model, tokens_BL), atol=1e-6
    )


@pytest.mark.parametrize("eos", [2, 300], ids=["largest_number", "named"])
@torch.no_grad()
def test_huggingface_folder_of_transformers_gives_its_features(eos, tmp_path):
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = CLIPConfig(
        projection_dim=16,
        vision_config=size | {"image_size": 32, "patch_size": 16, "projection_dim": 16},
        text_config=size | {"vocab_size": 49408, "eos_token_id": eos, "projection_dim": 16},
    )
    model = CLIPModel(config).eval()
    model.save_pretrained(tmp_path / "hf")
    loaded = load(str(tmp_path / "hf"))
    assert loaded.activation == "quickgelu"  # CLIPConfig's default
    tokens_BL = torch.zeros(2, 77, dtype=torch.long)
    end = 300 if eos == 300 else 49407
    tokens_BL[0, :5] = torch.tensor([49406 if eos == 2 else 7, 5, 9, 11, end])
    tokens_BL[1, :3] = torch.tensor([49406 if eos == 2 else 7, 8, end])
    images, texts = theirs(model, tokens_BL)
    assert torch.allclose(encode_image(loaded.model, IMAGES_BCHW), images, atol=1e-5)
    assert torch.allclose(encode_text(loaded.model, tokens_BL), texts, atol=1e-5)


def test_export_huggingface_of_another_tower_names_what_has_no_place(tmp_path):
    with pytest.raises(DataError, match=r"scenes-base: vision_cfg: found timm_model_name"):
        export_huggingface(load("scenes-base"), str(tmp_path / "hf"))
    averaged = build(ModelConfig(name=write_config(tmp_path / "avg", vision={"pool_type": "avg"})))
    with pytest.raises(DataError, match=r"found pool_type 'avg'"):
        export_huggingface(averaged, str(tmp_path / "hf"))
    biased = build(ModelConfig(name=write_config(tmp_path / "bias", init_logit_bias=-3.0)))
    with pytest.raises(DataError, match=r"'logit_bias'"):
        export_huggingface(biased, str(tmp_path / "hf"))


def test_export_job_carries_on_what_the_folder_says(tmp_path, run_stage):
    name = write_config(tmp_path / "config")
    export(build(ModelConfig(name=name)), str(tmp_path / "run"), {"objective": {"name": "degla"}, "steps": 7})
    options = ["--model.name", tmp_path / "run", "--format", "huggingface", "--output", tmp_path / "hf"]
    assert run_stage("export", *options) == 0
    said = json.loads((tmp_path / "hf" / "degla.json").read_text())
    assert (said["objective"], said["steps"]) == ({"name": "degla"}, 7)
    assert said["activation"] == "gelu"
    assert said["preprocess"]["size"] == [32, 32]
