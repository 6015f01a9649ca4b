"""Whose mean, std and resizing count, against open_clip's tags and transformers' processors."""

import dataclasses
import json

import open_clip
import pytest
import torch
import transformers
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
from PIL import Image
from safetensors.torch import load_file
from tiny_models import CAPTIONS, write_config
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from degla_ray.config import ModelConfig
from degla_ray.errors import DataError, SettingError
from degla_ray.model import encode_image, encode_text, load
from degla_ray.model.build import WEIGHTS_FILE, build
from degla_ray.model.export import export, export_huggingface
from degla_ray.model.preprocess import decide_preprocessing, eval_transform

FIELDS = ("mean", "std", "interpolation", "resize_mode")
TAGGED = [name for name in open_clip.list_models() if list_pretrained_tags_by_model(name)]
OPENAI = {
    "mean": open_clip.OPENAI_DATASET_MEAN,
    "std": open_clip.OPENAI_DATASET_STD,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


def of_tag(name, tag):
    stated = get_pretrained_cfg(name, tag)
    return {field: stated.get(field) or default for field, default in OPENAI.items()}


def test_decide_checkpoint_under_an_open_clip_name_gets_the_values_of_all_its_tags_or_stops():
    stopped, others = [], 0
    for name in TAGGED:
        config = ModelConfig(name=name, pretrained="weights.pt")
        try:
            found = decide_preprocessing(config, {}, from_file=True, registry_name=name)
        except SettingError:
            stopped.append(name)
            continue
        for tag in list_pretrained_tags_by_model(name):
            assert found == of_tag(name, tag), (name, tag)
            others += found != OPENAI
    assert stopped == ["ViT-H-14", "ViT-H-14-quickgelu", "ViT-L-14"]
    assert others > 50


def test_decide_tags_that_differ_names_the_settings_and_takes_them():
    config = ModelConfig(name="ViT-H-14", pretrained="weights.pt")
    with pytest.raises(SettingError, match=r"model.resize_mode: .*--model.resize_mode squash \(as dfn5b\)"):
        decide_preprocessing(config, {}, from_file=True, registry_name="ViT-H-14")
    given = dataclasses.replace(config, resize_mode="squash")
    assert decide_preprocessing(given, {}, from_file=True, registry_name="ViT-H-14") == of_tag(
        "ViT-H-14", "dfn5b"
    )
    large = ModelConfig(name="ViT-L-14", pretrained="weights.pt", mean=OPENAI["mean"])
    with pytest.raises(SettingError, match=r"^model.std: .*\[0.5, 0.5, 0.5\]' \(as laion2b_s32b_b82k\)"):
        decide_preprocessing(large, {}, from_file=True, registry_name="ViT-L-14")
    large = dataclasses.replace(large, std=OPENAI["std"])
    assert decide_preprocessing(large, {}, from_file=True, registry_name="ViT-L-14") == OPENAI


@pytest.mark.slow
def test_build_checkpoint_file_of_mobileclip_takes_its_tags_preprocessing(tmp_path):
    model = open_clip.create_model("MobileCLIP-S1")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    loaded = build(ModelConfig(name="MobileCLIP-S1", pretrained=str(tmp_path / "weights.pt")))
    found = {field: loaded.preprocess_cfg[field] for field in FIELDS}
    assert found == {
        "mean": (0.0,) * 3,
        "std": (1.0,) * 3,
        "interpolation": "bilinear",
        "resize_mode": "shortest",
    }


def test_build_settings_decide_and_the_export_keeps_them(tmp_path):
    given = {
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
        "interpolation": "bilinear",
        "resize_mode": "longest",
    }
    loaded = build(ModelConfig(name=write_config(tmp_path / "config"), **given))
    assert {field: loaded.preprocess_cfg[field] for field in FIELDS} == given
    export(loaded, str(tmp_path / "export"))
    assert load(str(tmp_path / "export")).preprocess_cfg == loaded.preprocess_cfg
    _, _, theirs = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'export'}")
    image = Image.effect_noise((50, 41), 90).convert("RGB")
    assert torch.equal(theirs(image), eval_transform(loaded.preprocess_cfg)(image))


def test_build_file_beside_its_config_takes_that_configs_preprocessing(tmp_path):
    name = write_config(tmp_path / "config")
    export(build(ModelConfig(name=name, resize_mode="squash", mean=(0.5,) * 3)), str(tmp_path / "v1.2"))
    weights = tmp_path / "v1.2" / WEIGHTS_FILE
    index = weights.with_name(f"{weights.name}.index.json")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(load_file(weights), weights.name)}))
    for pretrained in (weights, index, tmp_path / "v1.2"):
        loaded = build(ModelConfig(name=name, pretrained=str(pretrained)))
        assert (loaded.preprocess_cfg["resize_mode"], loaded.preprocess_cfg["mean"]) == ("squash", (0.5,) * 3)
        given = build(ModelConfig(name=name, pretrained=str(pretrained), resize_mode="shortest"))
        assert given.preprocess_cfg["resize_mode"] == "shortest"


@pytest.mark.parametrize(
    ("stated", "named"),
    [
        ({"interpolation": "lanczos"}, "interpolation 'lanczos'"),
        ({"resize_mode": "crop"}, "resize_mode 'crop'"),
        ({"std": [0.5, 0.0, 0.5]}, "std"),
        ({"mean": [0.5, 0.5]}, "mean"),
    ],
)
def test_build_config_with_impossible_preprocessing_is_refused_by_name(stated, named, tmp_path):
    path = write_config(tmp_path)
    content = json.loads((tmp_path / "tiny.json").read_text())
    (tmp_path / "tiny.json").write_text(json.dumps({"model_cfg": content, "preprocess_cfg": stated}))
    with pytest.raises(DataError, match=named):
        build(ModelConfig(name=path))


def test_model_config_std_of_zero_is_refused():
    with pytest.raises(SettingError, match=r"model\.std"):
        ModelConfig(name="scenes-base", std=(0.5, 0.0, 0.5))


@pytest.fixture
def folder(tmp_path):
    """A CLIPModel that says nothing of its images."""
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    config = CLIPConfig(
        projection_dim=16,
        vision_config=size | {"image_size": 32, "patch_size": 16},
        text_config=size | {"vocab_size": 49408},
    )
    CLIPModel(config).save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


def assert_alike(transform, processor, image):
    """Pixels are the same but for the last digit of two resizing programs; a crop a pixel aside gives 0.5."""
    pixels = processor(image, return_tensors="pt")["pixel_values"][0].float()
    assert (transform(image) - pixels).abs().mean() < 0.02


SQUARE = {"height": 32, "width": 32}
SHORTEST = {"size": {"shortest_edge": 32}, "crop_size": SQUARE}
MAPPED = {
    "shortest": ("CLIPImageProcessor", SHORTEST),
    "numbers": ("CLIPImageProcessor", {"size": 32, "crop_size": 32}),
    "squash": ("CLIPImageProcessor", {"size": SQUARE, "do_center_crop": False}),
    "squash_then_the_same_crop": ("CLIPImageProcessor", {"size": SQUARE, "crop_size": SQUARE}),
    "bilinear": ("CLIPImageProcessor", SHORTEST | {"resample": 2}),
    "no_normalize": ("CLIPImageProcessor", SHORTEST | {"do_normalize": False}),
    "rescale_factor": (
        "CLIPImageProcessor",
        SHORTEST | {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3},
    ),
    "no_rescale": (
        "CLIPImageProcessor",
        SHORTEST | {"do_rescale": False, "image_mean": [120.0] * 3, "image_std": [60.0] * 3},
    ),
    "one_number_as_mean": ("CLIPImageProcessor", SHORTEST | {"image_mean": 0.5, "image_std": 0.5}),
    "siglip": ("SiglipImageProcessor", {"size": SQUARE}),
    "vit": ("ViTImageProcessor", {"size": 32}),
    "older_name": ("CLIPFeatureExtractor", SHORTEST),
}


@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
@pytest.mark.parametrize("case", MAPPED)
def test_huggingface_folder_prepares_images_as_transformers_does(case, file, folder):
    kind, fields = MAPPED[case]
    stated = {"image_processor_type": kind} | fields
    if file == "processor_config.json":
        stated = {"image_processor": stated, "processor_class": "CLIPProcessor"}
    (folder / file).write_text(json.dumps(stated))
    transform = eval_transform(load(str(folder)).preprocess_cfg)
    kind = kind.replace("FeatureExtractor", "ImageProcessor")
    theirs = getattr(transformers, kind).from_dict(fields)
    for size in ((50, 40), (40, 50), (32, 32)):
        assert_alike(transform, theirs, Image.effect_noise(size, 90).convert("RGB"))


REFUSED = {
    "resample": ({"resample": 1}, r"resample 1.*model\.interpolation"),
    "resize_then_crop": ({"size": {"shortest_edge": 40}}, r"size .*40.*crop_size.*model\.resize_mode"),
    "squash_then_crop": ({"size": {"height": 40, "width": 40}}, r"size .*40.*crop_size.*model\.resize_mode"),
    "longest_edge": ({"size": {"shortest_edge": 32, "longest_edge": 40}}, r"longest_edge"),
    "no_crop": ({"do_center_crop": False}, "no do_center_crop"),
    "no_resize": ({"do_resize": False}, "do_resize false"),
    "another_size": ({"size": 48, "crop_size": 48}, "48.*for a model of 32 x 32"),
    "another_field": ({"do_pad": True}, "do_pad True"),
    "another_processor": ({"image_processor_type": "ConvNextImageProcessor"}, "ConvNextImageProcessor"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_huggingface_folder_with_what_open_clip_cannot_do_is_refused_by_name(case, folder):
    fields, named = REFUSED[case]
    (folder / "preprocessor_config.json").write_text(json.dumps(SHORTEST | fields))
    with pytest.raises(DataError, match=named):
        load(str(folder))


def test_huggingface_folder_settings_decide_what_it_states_otherwise(folder):
    stated = {"size": {"shortest_edge": 40}, "crop_size": SQUARE, "resample": 1, "image_mean": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(stated))
    loaded = build(ModelConfig(name=str(folder), resize_mode="shortest", interpolation="bicubic"))
    assert loaded.preprocess_cfg["resize_mode"] == "shortest"
    assert loaded.preprocess_cfg["interpolation"] == "bicubic"
    assert loaded.preprocess_cfg["mean"] == (0.5,) * 3


EPS = {"norm_kwargs": {"eps": 0.1}}


@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
@torch.no_grad()
def test_export_huggingface_keeps_resize_mode_interpolation_and_norm_eps(resize_mode, tmp_path):
    name = write_config(tmp_path / "config", vision=EPS, text=EPS)
    loaded = build(ModelConfig(name=name, resize_mode=resize_mode, interpolation="bilinear", mean=(0.5,) * 3))
    loaded.model.eval()
    export_huggingface(loaded, str(tmp_path / "hf"))
    model = CLIPModel.from_pretrained(tmp_path / "hf").eval()
    processor = CLIPImageProcessor.from_pretrained(tmp_path / "hf")
    image = Image.effect_noise((60, 40), 90).convert("RGB")
    assert_alike(eval_transform(loaded.preprocess_cfg), processor, image)
    ours_BCHW = eval_transform(loaded.preprocess_cfg)(image)[None]
    tokens_BL = loaded.tokenizer(CAPTIONS)
    found = model(input_ids=tokens_BL, pixel_values=ours_BCHW)
    assert torch.allclose(found.image_embeds, encode_image(loaded.model, ours_BCHW), atol=1e-5)
    assert torch.allclose(found.text_embeds, encode_text(loaded.model, tokens_BL), atol=1e-5)
    again = load(str(tmp_path / "hf"))
    assert again.preprocess_cfg == loaded.preprocess_cfg
    assert torch.allclose(
        encode_image(again.model, ours_BCHW), encode_image(loaded.model, ours_BCHW), atol=1e-6
    )


@pytest.mark.parametrize(("margin", "aside"), [(20, False), (21, False), (22, False), (23, True)])
def test_export_huggingface_crops_a_pixel_aside_where_its_readme_says_so(margin, aside, tmp_path):
    loaded = build(ModelConfig(name=write_config(tmp_path / "config")))
    export_huggingface(loaded, str(tmp_path / "hf"))
    assert "remainder 3 when divided by 4" in (tmp_path / "hf" / "README.md").read_text()
    processor = CLIPImageProcessor.from_pretrained(tmp_path / "hf")
    image = Image.effect_noise((32 + margin, 32), 90).convert("RGB")
    ours_CHW = eval_transform(loaded.preprocess_cfg)(image)
    theirs_CHW = processor(image, return_tensors="pt")["pixel_values"][0]
    assert torch.allclose(ours_CHW, theirs_CHW, atol=1e-5) != aside
    if aside:
        assert torch.allclose(ours_CHW[:, :, :-1], theirs_CHW[:, :, 1:], atol=1e-5)


def test_export_huggingface_tokenizer_leaves_what_open_clip_cleans(tmp_path):
    name = write_config(tmp_path / "config", text={"hf_tokenizer_name": None, "vocab_size": 49408})
    loaded = build(ModelConfig(name=name))
    export_huggingface(loaded, str(tmp_path / "hf"))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")

    def equal(caption):
        ours = [t for t in loaded.tokenizer([caption])[0].tolist() if t]
        return ours == theirs(caption)["input_ids"]

    assert all(equal(c) for c in ("a man's dog", "cats & dogs", "a CAFÉ", "cafe\u0301", "a  b\tc"))
    assert not any(equal(c) for c in ("a man\u2019s dog", "cats &amp; dogs", "\ufb01sh"))


NOT_HELD = {
    "no_ln_pre": ({"no_ln_pre": True}, {}),
    "pool_type": ({"pool_type": "avg"}, {}),
    "ls_init_value": ({"ls_init_value": 0.1}, {}),
    "qk_norm": ({"qk_norm": True}, {}),
    "no_causal_mask": ({}, {"no_causal_mask": True}),
    "proj_bias": ({}, {"proj_bias": True}),
    "norm_kwargs": ({"norm_kwargs": {"elementwise_affine": True}}, {}),
    "act_kwargs": ({"act_kwargs": {"approximate": "tanh"}}, {}),
}


@pytest.mark.parametrize("field", NOT_HELD)
def test_export_huggingface_of_what_clipmodel_lacks_names_the_setting(field, tmp_path):
    vision, text = NOT_HELD[field]
    loaded = build(ModelConfig(name=write_config(tmp_path / "config", vision=vision, text=text)))
    with pytest.raises(DataError, match=rf"{'vision' if vision else 'text'}_cfg: found {field}"):
        export_huggingface(loaded, str(tmp_path / "hf"))
    longest = build(ModelConfig(name=write_config(tmp_path / "longest"), resize_mode="longest"))
    with pytest.raises(DataError, match="resize_mode 'longest'"):
        export_huggingface(longest, str(tmp_path / "hf"))


def test_huggingface_folder_inner_size_that_is_no_ratio_loads(tmp_path):
    size = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 176, "intermediate_size": 240}
    vision = size | {"image_size": 32, "patch_size": 16}
    config = CLIPConfig(projection_dim=16, vision_config=vision, text_config=size | {"vocab_size": 49408})
    CLIPModel(config).save_pretrained(tmp_path / "hf")
    loaded = load(str(tmp_path / "hf"))
    assert loaded.model.state_dict()["visual.transformer.resblocks.0.mlp.c_fc.bias"].shape == (240,)
