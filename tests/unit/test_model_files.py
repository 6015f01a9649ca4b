"""A model folder is data: fields that would run code are refused by name, and nothing of it is run."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import write_config

from degla_ray.config import ModelConfig
from degla_ray.errors import DataError
from degla_ray.model import load
from degla_ray.model.build import build
from degla_ray.model.export import export, export_huggingface
from degla_ray.model.source import check_model

CODE = """
from pathlib import Path
Path({marker!r}).write_text("run")
from transformers import PreTrainedTokenizerFast
class Planted(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """The same model as a JSON config, a folder of open_clip's and one of CLIPModel's."""
    root = tmp_path_factory.mktemp("clean")
    loaded = build(ModelConfig(name=write_config(root / "json")))
    export(loaded, str(root / "open_clip"), {"steps": 1})
    export_huggingface(loaded, str(root / "huggingface"), {"steps": 1})
    return root


@pytest.fixture
def models(clean, tmp_path):
    """A copy to plant in, and the file that planted code would write."""
    shutil.copytree(clean, tmp_path / "models")
    marker = tmp_path / "RUN"
    for folder in ("json/tokenizer", "open_clip", "huggingface"):
        (tmp_path / "models" / folder / "planted.py").write_text(CODE.format(marker=str(marker)))
    return tmp_path / "models", marker


def change(path, section, values):
    content = json.loads(path.read_text())
    inner = content
    for key in filter(None, section.split(".")):
        inner = inner.setdefault(key, {})
    inner.update(values)
    path.write_text(json.dumps(content))


AUTO_MAP = {"auto_map": {"AutoTokenizer": [None, "planted.Planted"]}}
TRUST = {"tokenizer_kwargs": {"trust_remote_code": True}}
IN_TEXT = "model_cfg.text_cfg"
ROUTES = {
    "trust": (
        "open_clip",
        "open_clip_config.json",
        IN_TEXT,
        TRUST,
        "text_cfg.tokenizer_kwargs.trust_remote_code",
    ),
    "code_revision": (
        "open_clip",
        "open_clip_config.json",
        IN_TEXT,
        {"tokenizer_kwargs": {"clean": "lower", "code_revision": "main"}},
        "text_cfg.tokenizer_kwargs.code_revision",
    ),
    "trust_in_json": ("json/tiny.json", "", "text_cfg", TRUST, "text_cfg.tokenizer_kwargs.trust_remote_code"),
    "auto_map": ("open_clip", "tokenizer_config.json", "", AUTO_MAP, "auto_map"),
    "auto_map_beside_json": (
        "json/tiny.json",
        "../tokenizer/tokenizer_config.json",
        "",
        AUTO_MAP,
        "auto_map",
    ),
    "auto_map_of_config": (
        "huggingface",
        "config.json",
        "",
        {"auto_map": {"AutoConfig": "planted.C"}},
        "auto_map",
    ),
    "auto_map_within": ("huggingface", "config.json", "text_config", AUTO_MAP, "text_config.auto_map"),
    "auto_map_of_images": (
        "huggingface",
        "preprocessor_config.json",
        "",
        {"auto_map": {"AutoImageProcessor": "planted.P"}},
        "auto_map",
    ),
    "trust_in_tokenizer": (
        "huggingface",
        "tokenizer_config.json",
        "",
        {"trust_remote_code": True},
        "trust_remote_code",
    ),
    "kernels": (
        "huggingface",
        "config.json",
        "vision_config",
        {"_attn_implementation": "someone/kernels"},
        "vision_config._attn_implementation",
    ),
    "hub_tokenizer": (
        "json/tiny.json",
        "",
        "text_cfg",
        {"hf_tokenizer_name": "someone/tokenizer"},
        "text_cfg.hf_tokenizer_name 'someone/tokenizer'",
    ),
    "hub_text_tower": (
        "open_clip",
        "open_clip_config.json",
        IN_TEXT,
        {"hf_model_name": "someone/bert"},
        "text_cfg.hf_model_name 'someone/bert'",
    ),
    "hub_image_tower": (
        "open_clip",
        "open_clip_config.json",
        "model_cfg.vision_cfg",
        {"timm_model_name": "hf-hub:someone/vit"},
        "vision_cfg.timm_model_name 'hf-hub:someone/vit'",
    ),
}


@pytest.mark.parametrize("route", ROUTES)
def test_build_folder_that_asks_for_code_is_refused_by_the_fields_name(route, models):
    root, marker = models
    name, file, section, values, field = ROUTES[route]
    path = root / name
    change(path.parent / file.removeprefix("../") if file.startswith("..") else path / file, section, values)
    for run in (check_model, build):
        with pytest.raises(DataError) as caught:
            run(ModelConfig(name=str(path)))
        assert field in str(caught.value)
    assert not marker.exists()


def test_planted_code_runs_where_nothing_refuses_it(models):
    """Else the tests above would show nothing: the route is open in open_clip itself."""
    import open_clip

    root, marker = models
    change(root / "open_clip" / "open_clip_config.json", IN_TEXT, TRUST)
    change(root / "open_clip" / "tokenizer_config.json", "", AUTO_MAP)
    open_clip.get_tokenizer(f"local-dir:{root / 'open_clip'}")
    assert marker.exists()


def test_build_text_tower_of_a_folder_with_code_is_refused(models, tmp_path):
    root, marker = models
    change(root / "huggingface" / "config.json", "", {"auto_map": {"AutoConfig": "planted.C"}})
    change(root / "json" / "tiny.json", "text_cfg", {"hf_model_name": str(root / "huggingface")})
    with pytest.raises(DataError, match=r"huggingface/config\.json: found auto_map"):
        build(ModelConfig(name=str(root / "json" / "tiny.json")))
    assert not marker.exists()


def test_build_open_clip_name_prefers_no_code_of_the_working_directory(models, monkeypatch):
    root, marker = models
    change(root / "huggingface" / "config.json", "", {"auto_map": {"AutoConfig": "planted.C"}})
    (root / "huggingface").rename(root / "roberta-base")
    monkeypatch.chdir(root)
    with pytest.raises(DataError, match=r"roberta-base/config\.json: found auto_map"):
        build(ModelConfig(name="roberta-ViT-B-32"))
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["json/tiny.json", "open_clip", "huggingface"])
def test_build_clean_models_load(kind, models):
    root, _ = models
    change(root / "huggingface" / "tokenizer_config.json", "", {"trust_remote_code": False})
    assert build(ModelConfig(name=str(root / kind))).tokenizer(["a cat"]).shape == (1, 32)


def test_build_tokenizer_name_of_open_clips_own_configs_is_allowed(models):
    """open_clip's own names are known; the folder's files are used all the same."""
    root, _ = models
    values = {"hf_tokenizer_name": "roberta-base", "tokenizer_kwargs": {"clean": "canonicalize"}}
    change(root / "open_clip" / "open_clip_config.json", IN_TEXT, values)
    assert load(str(root / "open_clip")).tokenizer(["a cat"]).shape == (1, 32)


# Layouts of the Hub


def shard(folder):
    """Splits a CLIPModel folder's weights as `save_pretrained(max_shard_size=…)` does."""
    state = load_file(folder / "model.safetensors")
    names = list(state)
    files = {n: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, n in enumerate(names)}
    for file in set(files.values()):
        save_file({n: state[n] for n in names if files[n] == file}, folder / file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


def test_build_sharded_clip_model_loads_by_folder_and_as_weights_of_another_name(models):
    root, _ = models
    expected = load(str(root / "huggingface")).model.state_dict()
    shard(root / "huggingface")
    by_folder = build(ModelConfig(name=str(root / "huggingface"))).model.state_dict()
    as_weights = ModelConfig(name=str(root / "json" / "tiny.json"), pretrained=str(root / "huggingface"))
    for state in (by_folder, build(as_weights).model.state_dict()):
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("kind", ["open_clip", "huggingface", "sharded"])
def test_build_hub_name_loads_from_the_hubs_cache(kind, models, tmp_path, monkeypatch):
    import huggingface_hub.constants

    root, _ = models
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    folder = root / ("open_clip" if kind == "open_clip" else "huggingface")
    expected = load(str(folder)).model.state_dict()
    if kind == "sharded":
        shard(folder)
    repository = tmp_path / "cache" / "models--someone--clip"
    shutil.copytree(folder, repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    loaded = load("hf-hub:someone/clip")
    assert all(torch.equal(loaded.model.state_dict()[name], t) for name, t in expected.items())
    with pytest.raises(DataError, match="hf-hub:someone/other: found no download"):
        load("hf-hub:someone/other")
