"""What a model's name stands for, and what is said of it before Ray starts."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from tiny_models import write_config

from degla_ray.cli import from_settings
from degla_ray.config import ChainConfig, DataConfig, ModelConfig, ObjectiveConfig, TrainConfig, TuneConfig
from degla_ray.errors import DataError, SettingError
from degla_ray.model import load
from degla_ray.model.build import DEGLA_FILE, build, build_with_weights
from degla_ray.model.export import export
from degla_ray.model.source import (
    SourceKind,
    check_model,
    find_model,
    find_weights,
    in_any_folder,
    starts_random,
)
from degla_ray.training.run_identity import model_identity
from degla_ray.tuning.sweep import tune


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An exported folder whose weights are not random, and its weights."""
    folder = tmp_path_factory.mktemp("model") / "run"
    loaded = build(ModelConfig(name=write_config(folder.parent / "config")))
    export(dataclasses.replace(loaded, source="trained"), str(folder), {"steps": 3})
    return folder, loaded.model.visual.proj


def beside(folder):
    """Puts a JSON config of the same architecture beside a folder: `run.json` beside `run/`."""
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = folder.name
    folder.with_suffix(".json").write_text(json.dumps(config))


@pytest.mark.parametrize("written", ["{}", "{}/", "local-dir:{}", "../{0.parent.name}/{0.name}", "file://{}"])
def test_build_folder_with_a_json_of_its_name_beside_it_has_the_folders_weights(
    written, trained, monkeypatch
):
    folder, proj = trained
    beside(folder)
    (folder.parent.parent / "elsewhere").mkdir(exist_ok=True)
    monkeypatch.chdir(folder.parent.parent / "elsewhere")
    config = ModelConfig(name=written.format(folder))
    assert torch.equal(build(config).model.visual.proj, proj)
    assert not starts_random(config)


def test_model_identity_of_a_folder_with_a_json_beside_it_is_its_files(trained):
    folder, _ = trained
    beside(folder)
    identity = model_identity(ModelConfig(name=str(folder)))
    assert set(identity["name"]) == {path.name for path in folder.iterdir()}


def test_find_model_whole_names_come_before_what_is_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("ViT-B-32", "scenes-base", "flickr-small", "runs"):
        (tmp_path / name).mkdir()
    (tmp_path / "own.json").write_text("{}")
    assert find_model("ViT-B-32").kind is find_model("ViT-B/32").kind is SourceKind.OPEN_CLIP
    assert find_model("scenes-base").where.endswith("scenes_base")
    assert find_model("flickr-small").kind is SourceKind.CONFIG
    for name in ("./ViT-B-32", "local-dir:ViT-B-32", "./flickr-small", "runs", "flickr-small/"):
        assert find_model(name).kind is SourceKind.FOLDER, name
    assert find_model("own.json").where == str(tmp_path / "own.json")
    assert find_model("hf-hub:timm/ViT@main").where == "timm/ViT@main"


def test_find_weights_a_tag_comes_before_a_folder_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "openai").mkdir()
    (tmp_path / "mine").mkdir()
    quick = "ViT-B-32-quickgelu"
    assert find_weights(ModelConfig(name=quick, pretrained="openai")).kind is SourceKind.TAG
    assert find_weights(ModelConfig(name=quick, pretrained="./openai")).kind is SourceKind.FOLDER
    assert find_weights(ModelConfig(name=quick, pretrained="mine")).kind is SourceKind.FOLDER
    config = in_any_folder(ModelConfig(name=quick, pretrained="openai"))
    assert (config.name, config.pretrained) == (quick, "openai")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "ViT-B-23"}, r"model\.name: found 'ViT-B-23'.*did you mean ViT-B-32"),
        ({"name": "ViT-B/23"}, r"did you mean ViT-B-32"),
        ({"name": "scenes-bse"}, r"did you mean scenes-base"),
        ({"name": "FOLDER/rum"}, r"did you mean run\?"),
        ({"name": "FOLDER/config/tiny.jsn"}, r"did you mean tiny\.json\?"),
        ({"name": "FOLDER/run/open_clip_model.safetensors"}, r"this file as model\.pretrained"),
        ({"name": "hf-hub:timm"}, r"hf-hub:ORGANISATION/REPOSITORY"),
        ({"name": ""}, r"model\.name: found ''"),
        ({"name": "ViT-B-32", "pretrained": "laion2b_s34b_b97k"}, r"did you mean laion2b_s34b_b79k"),
        ({"name": "ViT-B-32", "pretrained": "openai"}, r"expected 'ViT-B-32-quickgelu'"),
        (
            {"name": "scenes-base", "pretrained": "FOLDER/run/open_clip_modl.safetensors"},
            r"did you mean open",
        ),
        ({"name": "scenes-base", "pretrained": "openai"}, r"has no tags"),
        ({"name": "FOLDER/run", "pretrained": "x.pt", "random_init": True}, r"model\.random_init"),
    ],
)
def test_check_model_mistyped_name_says_what_is_near(settings, message, trained):
    folder = str(trained[0].parent)
    settings = {k: v.replace("FOLDER", folder) if isinstance(v, str) else v for k, v in settings.items()}
    with pytest.raises(SettingError, match=message):
        check_model(ModelConfig(**settings))


def test_check_model_of_names_imports_neither_torch_nor_open_clip(trained):
    code = (
        "import sys\nfrom degla_ray.config import ModelConfig\n"
        "from degla_ray.model.source import check_model\n"
        f"for name in ('ViT-B-32', 'scenes-base', {str(trained[0])!r}):\n"
        "    check_model(ModelConfig(name=name))\n"
        "assert not {'torch', 'open_clip', 'transformers', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_chain_mistyped_model_is_told_of_before_the_first_stage(tmp_path):
    from degla_ray.chain import run_chain

    settings = {"output": str(tmp_path / "out"), "prepare": {"source": "scenes"}, "fine_tune": {"a": {}}}
    settings["base_model"] = {"name": "scenes-base"}
    for changed, message in (
        ({"base_model": {"name": "scenes-bse"}}, r"base_model\.name.*scenes-base"),
        ({"base_model": {"name": "flickr-small"}}, r"base_model\.random_init true"),
        (
            {"base_model": {"name": "ViT-B-23"}, "pretrain": {"objective": {"name": "clip"}}},
            r"base_model\.name",
        ),
    ):
        with pytest.raises(SettingError, match=message):
            run_chain(from_settings(ChainConfig, settings | changed, "chain"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("{'model.name': tune.grid_search(['scenes-base', 'scenes-bse'])}", "did you mean scenes-base"),
        ("{'objective.name': tune.choice(['degla', 'degal'])}", "did you mean degla"),
    ],
)
def test_tune_mistyped_name_in_a_space_is_told_of_before_the_first_trial(space, message, tmp_path):
    file = tmp_path / "space.py"
    file.write_text(f"from ray import tune\n\ndef space():\n    return {space}, {{}}\n")
    train = TrainConfig(
        name="x",
        data=DataConfig(prepared="p", negatives="n"),
        model=ModelConfig(name="scenes-base"),
        output=str(tmp_path / "runs"),
    )
    with pytest.raises(SettingError, match=message):
        tune(TuneConfig(train=train, suite="s", space=str(file)))


def test_objective_mistyped_name_says_what_is_near():
    with pytest.raises(SettingError, match=r"objective\.name: found 'negclp'.*did you mean negclip"):
        ObjectiveConfig(name="negclp")


# Random weights


def test_build_with_weights_refuses_random_ones_unless_asked(tmp_path):
    name = write_config(tmp_path / "config")
    for random in ("ViT-B-32", "flickr-small", name):
        with pytest.raises(SettingError, match=r"model\.random_init true"):
            check_model(ModelConfig(name=random), needs_weights=True)
    with pytest.raises(
        SettingError, match=r"model\.name: .*this JSON config has none.*model\.random_init true"
    ):
        build_with_weights(ModelConfig(name=name))
    assert build_with_weights(ModelConfig(name=name, random_init=True)).is_random
    with pytest.raises(SettingError, match="this JSON config has none"):
        load(name)


def test_export_of_random_weights_is_still_random_when_it_is_opened(tmp_path):
    """The folder has a file of weights, which says nothing of whether they were learned."""
    name = write_config(tmp_path / "config")
    export(build_with_weights(ModelConfig(name=name, random_init=True)), str(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / DEGLA_FILE).read_text())["source"] == "random"
    with pytest.raises(SettingError, match=r"degla\.json says that its weights are random"):
        build_with_weights(ModelConfig(name=str(tmp_path / "out")))


def test_build_folder_without_weights_is_never_random(trained, tmp_path):
    config = json.loads((trained[0] / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= {"hf_tokenizer_name": None}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    for run in (check_model, build):
        with pytest.raises(DataError, match="no such file"):
            run(ModelConfig(name=str(tmp_path)))


@pytest.mark.parametrize("job", ["export", "evaluate"])
def test_job_of_random_weights_is_refused_and_names_the_setting(job, tmp_path, run_stage, capsys):
    extra = [] if job == "export" else ["--suite", tmp_path]
    assert run_stage(job, "--model.name", "flickr-small", "--output", tmp_path / "o", *extra) == 2
    assert "model.random_init true" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
