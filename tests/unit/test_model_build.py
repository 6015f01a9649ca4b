import json
import pickle
from pathlib import Path

import open_clip
import pytest
import torch
from tiny_models import CAPTIONS, VISION, write_config

import degla_ray.model
from degla_ray.config import ModelConfig
from degla_ray.errors import DataError, SettingError
from degla_ray.model import encode_image, encode_text
from degla_ray.model.build import CONFIG_FILE, WEIGHTS_FILE, build
from degla_ray.model.export import export
from degla_ray.model.tokenizer import train_tokenizer


def test_build_json_config_same_torch_seed_same_weights(tmp_path):
    config = ModelConfig(name=write_config(tmp_path))
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(build(config).model.state_dict()["visual.proj"])
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_build_json_config_reports_preprocessing_and_activation(tmp_path):
    preprocess = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear", "resize_mode": "squash"}
    path = write_config(tmp_path)
    model_cfg = json.loads((tmp_path / "tiny.json").read_text()) | {"quick_gelu": True}
    (tmp_path / "tiny.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": preprocess}))
    loaded = build(ModelConfig(name=path))
    assert loaded.activation == "quickgelu"
    assert loaded.preprocess_cfg["size"] == (32, 32)
    assert loaded.preprocess_cfg["mean"] == (0.5, 0.5, 0.5)
    assert loaded.preprocess_cfg["interpolation"] == "bilinear"
    assert loaded.preprocess_cfg["resize_mode"] == "squash"


def test_build_json_config_default_preprocessing_is_openais(tmp_path):
    loaded = build(ModelConfig(name=write_config(tmp_path)))
    assert loaded.preprocess_cfg["mean"] == open_clip.OPENAI_DATASET_MEAN
    assert loaded.preprocess_cfg["std"] == open_clip.OPENAI_DATASET_STD
    assert (loaded.preprocess_cfg["interpolation"], loaded.preprocess_cfg["resize_mode"]) == (
        "bicubic",
        "shortest",
    )
    assert loaded.activation == "gelu"
    assert loaded.source == "random"


def test_build_json_config_without_tokenizer_takes_clips_own(tmp_path):
    path = write_config(tmp_path, text={"hf_tokenizer_name": None, "vocab_size": 49408})
    tokens_BL = build(ModelConfig(name=path)).tokenizer(CAPTIONS)
    assert tokens_BL.shape == (3, 32)
    assert torch.equal(tokens_BL, open_clip.SimpleTokenizer(context_length=32)(CAPTIONS))


@pytest.mark.parametrize("name", ["scenes-tiny"])
def test_build_scenes_configs_are_small_and_have_no_batch_statistics(name, tmp_path):
    config = json.loads((Path(degla_ray.model.__file__).parent / "configs" / f"{name}.json").read_text())
    train_tokenizer(
        CAPTIONS, config["text_cfg"]["vocab_size"], tmp_path / config["text_cfg"]["hf_tokenizer_name"]
    )
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = build(ModelConfig(name=str(tmp_path / "config.json")))
    assert sum(p.numel() for p in loaded.model.parameters()) <= 3_000_000
    assert not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in loaded.model.modules())
    assert encode_image(loaded.model, torch.randn(2, 3, 64, 64)).shape == (2, 128)
    assert encode_text(loaded.model, loaded.tokenizer(CAPTIONS)).shape == (3, 128)
    assert loaded.tokenizer(CAPTIONS).shape == (3, 48)


def test_build_packaged_config_by_its_name(tmp_path):
    loaded = build(ModelConfig(name="flickr-small"))
    assert loaded.preprocess_cfg["size"] == (112, 112)
    assert encode_image(loaded.model, torch.randn(2, 3, 112, 112)).shape == (2, 256)
    assert encode_text(loaded.model, loaded.tokenizer(CAPTIONS)).shape == (3, 256)


def test_build_exported_folder_random_init_keeps_only_the_architecture(tmp_path):
    loaded = build(ModelConfig(name=write_config(tmp_path / "config")))
    export(loaded, str(tmp_path / "export"))
    same = build(ModelConfig(name=str(tmp_path / "export")))
    other = build(ModelConfig(name=str(tmp_path / "export"), random_init=True))
    assert torch.equal(same.model.visual.proj, loaded.model.visual.proj)
    assert not torch.equal(other.model.visual.proj, loaded.model.visual.proj)
    assert other.source == "random"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "ViT-B-23"}, r"model.name: found 'ViT-B-23'.*did you mean.*ViT-B-32"),
        ({"name": "scenes-bse"}, r"did you mean.*scenes-base"),
        ({"name": "nowhere.json"}, r"model.name: found 'nowhere.json'"),
        (
            {"name": "ViT-B-32", "pretrained": "laion9b"},
            r"model.pretrained: found 'laion9b'.*laion2b_s34b_b79k",
        ),
        ({"name": "flickr-small", "pretrained": "openai"}, r"model.pretrained: found 'openai'.*has no tags"),
        ({"name": "ViT-B-32", "pretrained": "a.pt", "random_init": True}, r"model.random_init"),
    ],
    ids=["unknown", "near", "no_json", "unknown_tag", "tag_of_json", "contradiction"],
)
def test_build_wrong_setting_says_what_would_be_right(settings, message):
    with pytest.raises(SettingError, match=message):
        build(ModelConfig(**settings))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "broken JSON"),
        ("[1]", "no embed_dim, vision_cfg, text_cfg"),
        ('{"embed_dim": 4, "vision_cfg": {}}', "no text_cfg"),
        ('{"embed_dim": 4, "vision_cfg": {"depth": 3}, "text_cfg": {}}', "depth"),
        ('{"embed_dim": 4, "vision_cfg": {"timm_model_name": "no_such"}, "text_cfg": {}}', "no_such"),
    ],
    ids=["broken", "list", "incomplete", "unknown_key", "unknown_timm"],
)
def test_build_bad_json_config_is_a_data_error(content, message, tmp_path):
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(DataError, match=message):
        build(ModelConfig(name=str(tmp_path / "bad.json")))


def test_build_folder_without_config_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match=CONFIG_FILE):
        build(ModelConfig(name=str(tmp_path)))


def test_build_config_whose_tokenizer_folder_is_missing_is_a_data_error(tmp_path):
    path = write_config(tmp_path, text={"hf_tokenizer_name": "./elsewhere"})
    with pytest.raises(
        DataError, match=r"no folder .*elsewhere; expected the folder of text_cfg.hf_tokenizer_name"
    ):
        build(ModelConfig(name=path))


def test_build_folder_without_weights_is_a_data_error(tmp_path):
    export(build(ModelConfig(name=write_config(tmp_path / "config"))), str(tmp_path / "export"))
    (tmp_path / "export" / WEIGHTS_FILE).unlink()
    with pytest.raises(DataError, match="no such file"):
        build(ModelConfig(name=str(tmp_path / "export")))


def test_build_tokenizer_larger_than_the_vocabulary_is_a_data_error(tmp_path):
    path = write_config(tmp_path, text={"vocab_size": 100})
    with pytest.raises(DataError, match=r"at most text_cfg.vocab_size = 100"):
        build(ModelConfig(name=path))


# The activation guard


def test_build_plain_vit_b_32_with_openai_tag_names_the_quickgelu_model():
    with pytest.raises(SettingError, match=r"model.name: found 'ViT-B-32'; expected 'ViT-B-32-quickgelu'"):
        build(ModelConfig(name="ViT-B-32", pretrained="openai"))


def test_build_own_checkpoint_into_other_activation_is_refused_unless_allowed(tmp_path):
    export(
        build(ModelConfig(name=write_config(tmp_path / "quick", quick_gelu=True))), str(tmp_path / "export")
    )
    gelu = write_config(tmp_path / "gelu")
    weights = str(tmp_path / "export" / WEIGHTS_FILE)
    for pretrained in (weights, str(tmp_path / "export")):
        with pytest.raises(SettingError, match="made with quickgelu, this model builds gelu"):
            build(ModelConfig(name=gelu, pretrained=pretrained))
        allowed = build(ModelConfig(name=gelu, pretrained=pretrained, allow_activation_mismatch=True))
        assert allowed.activation == "gelu"


def test_build_own_checkpoint_moved_elsewhere_still_states_its_activation(tmp_path):
    export(
        build(ModelConfig(name=write_config(tmp_path / "quick", quick_gelu=True))), str(tmp_path / "export")
    )
    moved = tmp_path / "moved.safetensors"
    (tmp_path / "export" / WEIGHTS_FILE).rename(moved)
    with pytest.raises(SettingError, match="quickgelu"):
        build(ModelConfig(name=write_config(tmp_path / "gelu"), pretrained=str(moved)))


def test_build_exported_folder_whose_config_was_changed_is_refused(tmp_path):
    export(build(ModelConfig(name=write_config(tmp_path / "config"))), str(tmp_path / "export"))
    path = tmp_path / "export" / CONFIG_FILE
    config = json.loads(path.read_text())
    config["model_cfg"]["quick_gelu"] = True
    path.write_text(json.dumps(config))
    with pytest.raises(SettingError, match="made with gelu, this model builds quickgelu"):
        build(ModelConfig(name=str(tmp_path / "export")))


@pytest.fixture
def small_vit_b_32(monkeypatch):
    """ViT-B-32 and its QuickGELU twin at a size a test can build, under their real names."""
    small = {
        "embed_dim": 16,
        "vision_cfg": VISION,
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
    }
    configs = open_clip.factory._MODEL_CONFIGS
    monkeypatch.setitem(configs, "ViT-B-32", small)
    monkeypatch.setitem(configs, "ViT-B-32-quickgelu", small | {"quick_gelu": True})


def test_build_unmarked_checkpoint_into_gelu_name_with_quickgelu_twin_asks(small_vit_b_32, tmp_path):
    """An official DeGLA .pt and a GELU .pt of open_clip's own training look the same: the user must say."""
    official = str(tmp_path / "degla.pt")
    donor = build(ModelConfig(name="ViT-B-32-quickgelu")).model
    torch.save(
        {"epoch": 5, "state_dict": {f"module.{n}": t for n, t in donor.state_dict().items()}}, official
    )
    with pytest.raises(SettingError, match=r"expected 'ViT-B-32-quickgelu'.*allow_activation_mismatch"):
        build(ModelConfig(name="ViT-B-32", pretrained=official))
    right = build(ModelConfig(name="ViT-B-32-quickgelu", pretrained=official))
    assert right.activation == "quickgelu"
    assert torch.equal(right.model.visual.proj, donor.visual.proj)
    anyway = build(ModelConfig(name="ViT-B-32", pretrained=official, allow_activation_mismatch=True))
    assert anyway.activation == "gelu"


def test_build_unmarked_checkpoint_into_own_json_config_loads(tmp_path):
    path = write_config(tmp_path)
    donor = build(ModelConfig(name=path)).model
    torch.save(donor.state_dict(), tmp_path / "own.pt")
    loaded = build(ModelConfig(name=path, pretrained=str(tmp_path / "own.pt")))
    assert torch.equal(loaded.model.visual.proj, donor.visual.proj)
    assert loaded.source.endswith("own.pt")


@pytest.mark.parametrize("text", [{}, {"hf_tokenizer_name": None, "vocab_size": 49408}], ids=["own", "clip"])
def test_loaded_model_pickled_to_another_process_encodes_alike(text, tmp_path):
    loaded = build(ModelConfig(name=write_config(tmp_path, text=text)))
    again = pickle.loads(pickle.dumps(loaded))
    tokens_BL = again.tokenizer(CAPTIONS)
    assert torch.equal(tokens_BL, loaded.tokenizer(CAPTIONS))
    assert torch.equal(encode_text(again.model, tokens_BL), encode_text(loaded.model, tokens_BL))
