"""Checkpoint files as they are handed around: official forms, wrong ones, broken ones, hostile ones."""

import argparse
import datetime
import json
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import write_config

from degla_ray.config import ModelConfig
from degla_ray.errors import DataError, SettingError
from degla_ray.model.build import build
from degla_ray.model.source import check_model


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path / "config")


@pytest.fixture
def donor(config):
    torch.manual_seed(1)
    return build(ModelConfig(name=config)).model


def load(config, path):
    return build(ModelConfig(name=config, pretrained=str(path))).model


def assert_same(model, donor):
    for name, value in donor.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def as_official(state):
    """What DeGLA's, NegCLIP's and CE-CLIP's training code saves."""
    return {
        "epoch": 5,
        "name": "run",
        "state_dict": state,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-6}]},
        "scaler": {"scale": 65536.0},
    }


FORMS = {
    "bare.pt": lambda s: s,
    "state_dict.pt": lambda s: {"state_dict": s},
    "official.pt": as_official,
    "official_ddp.pt": lambda s: as_official({f"module.{n}": t for n, t in s.items()}),
    "compiled.pt": lambda s: {f"module._orig_mod.{n}": t for n, t in s.items()},
    "openai_extras.pt": lambda s: s | {"input_resolution": torch.tensor(32), "vocab_size": torch.tensor(400)},
    "scale_1d.pt": lambda s: s | {"logit_scale": s["logit_scale"][None]},
    "wrappers.pt": lambda s: {f"model._orig_mod.module.net.{n}": t for n, t in s.items()},
    "lightning.pt": lambda s: {"state_dict": {f"model.module.{n}": t for n, t in s.items()}, "epoch": 1},
    "fsdp.pt": lambda s: {n.replace(".", "._fsdp_wrapped_module._orig_mod.", 1): t for n, t in s.items()},
    "model.pt": lambda s: {"model": s, "optimizer": {}, "best": torch.tensor(0.5)},
    "model_state_dict.pt": lambda s: {"model_state_dict": s, "epoch": 3, "loss": 0.1},
    "deepspeed.pt": lambda s: {"module": {f"module.{n}": t for n, t in s.items()}, "dp_world_size": 2},
    "nested.pt": lambda s: {"model": {"state_dict": s}},
    "numpy.pt": lambda s: {"state_dict": s, "best": np.float64(0.5), "at": np.int64(7), "of": np.arange(3.0)},
    "arguments.pt": lambda s: {
        "state_dict": s,
        "args": argparse.Namespace(lr=1e-6, output=Path("runs"), ok=np.bool_(True)),
    },
    "half.pt": lambda s: {n: t.half() for n, t in s.items()},
}


@pytest.mark.parametrize("form", FORMS)
def test_build_checkpoint_of_any_official_form_loads(form, config, donor, tmp_path):
    torch.save(FORMS[form](donor.state_dict()), tmp_path / form)
    if form == "half.pt":
        donor.half().float()
    model = load(config, tmp_path / form)
    assert_same(model, donor)
    assert model.logit_scale.dtype == torch.float32


def test_build_checkpoint_in_legacy_torch_format_loads(config, donor, tmp_path):
    torch.save(donor.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert_same(load(config, tmp_path / "old.pt"), donor)


def test_build_safetensors_checkpoint_loads(config, donor, tmp_path):
    save_file({n: t.clone() for n, t in donor.state_dict().items()}, tmp_path / "weights.safetensors")
    assert_same(load(config, tmp_path / "weights.safetensors"), donor)


def test_build_clip_names_into_custom_text_model_loads(donor, tmp_path):
    torch.save(donor.state_dict(), tmp_path / "clip.pt")
    custom = load(write_config(tmp_path / "custom", custom_text=True), tmp_path / "clip.pt")
    assert torch.equal(custom.text.token_embedding.weight, donor.token_embedding.weight)
    assert torch.equal(custom.visual.proj, donor.visual.proj)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("ln_final.weight"), r"1 names missing \(ln_final.weight\)"),
        (lambda s: s.update(a=s["ln_final.bias"]), r"1 unknown names \(a\)"),
        (lambda s: s.update({"ln_final.bias": torch.zeros(7)}), r"ln_final.bias \[7\] for \[32\]"),
        (
            lambda s: s["visual.proj"].fill_(float("nan")),
            r"NaN or infinite values in 1 tensors \(visual.proj\)",
        ),
        (lambda s: [s.pop(n) for n in list(s)[:5]], r"5 names missing \(([^,]+, ){3}…\)"),
    ],
    ids=["missing", "unknown", "shape", "nan", "first_few"],
)
def test_build_checkpoint_that_does_not_fit_names_what_differs(change, message, config, donor, tmp_path):
    state = {n: t.clone() for n, t in donor.state_dict().items()}
    change(state)
    torch.save(state, tmp_path / "wrong.pt")
    with pytest.raises(DataError, match=message):
        load(config, tmp_path / "wrong.pt")


class Malicious:
    def __reduce__(self):
        return (os.system, ("touch EXECUTED",))


class Stateful:
    def __setstate__(self, state):
        os.system("touch EXECUTED")


@pytest.mark.parametrize(
    "hidden",
    [Malicious(), Stateful(), np.array([Malicious()], dtype=object)],
    ids=["called", "given_state", "in_an_array"],
)
def test_build_pickle_with_code_among_harmless_types_is_refused_and_not_run(
    hidden, config, donor, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    if isinstance(hidden, Stateful):
        hidden.x = 1
    args = argparse.Namespace(value=np.float64(1.0), hidden=hidden)
    torch.save({"state_dict": donor.state_dict(), "args": args}, tmp_path / "evil.pt")
    with pytest.raises(DataError, match="so it is not unpickled"):
        load(config, tmp_path / "evil.pt")
    assert not (tmp_path / "EXECUTED").exists()


def test_build_pickle_with_code_is_refused_and_not_run(config, donor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": donor.state_dict(), "hook": Malicious()}, tmp_path / "evil.pt")
    with pytest.raises(DataError, match=r"not only tensors \(it asks for posix.system\)"):
        load(config, tmp_path / "evil.pt")
    assert not (tmp_path / "EXECUTED").exists()


@pytest.mark.parametrize("form", ["torchscript", "pickle"])
def test_build_file_that_is_not_unpickled_loads_once_converted_as_the_error_says(
    form, config, donor, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    if form == "torchscript":
        torch.jit.script(torch.nn.Linear(2, 2)).save("old.pt")
    else:
        torch.save({"state_dict": donor.state_dict(), "made": datetime.date(2024, 1, 1)}, "old.pt")
    with pytest.raises(DataError) as refused:
        load(config, tmp_path / "old.pt")
    (command,) = re.findall(r"save_file\(.*?'model\.safetensors'\)", str(refused.value))
    eval(command, {"save_file": save_file, "torch": torch})
    if form == "torchscript":
        assert load_file("model.safetensors").keys() == {"weight", "bias"}
    else:
        load(config, tmp_path / "model.safetensors")


def test_build_compressed_archive_is_refused_without_unpacking_it(config, tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", bytes(50_000_000))
    with pytest.raises(DataError, match="a compressed archive of 50000000 bytes"):
        load(config, tmp_path / "bomb.pt")


@pytest.mark.parametrize("name", ["cut.pt", "cut.safetensors", "empty.pt", "empty.safetensors", "text.pt"])
def test_build_broken_file_is_a_data_error_that_names_it(name, config, donor, tmp_path):
    path = tmp_path / name
    state = {n: t.clone() for n, t in donor.state_dict().items()}
    if name == "cut.pt":
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[:5000])
    elif name == "cut.safetensors":
        save_file(state, path)
        path.write_bytes(path.read_bytes()[:5000])
    else:
        path.write_text("a web page instead of a checkpoint" if name == "text.pt" else "")
    with pytest.raises(DataError, match=re.escape(name)):
        load(config, path)


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {}}, {"epoch": 3}, 7], ids=str)
def test_build_file_without_state_dict_is_a_data_error(content, config, tmp_path):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(DataError, match="state dict"):
        load(config, tmp_path / "other.pt")


def test_build_missing_checkpoint_is_told_of(config, tmp_path):
    with pytest.raises(SettingError, match="a file or folder that exists"):
        load(config, tmp_path / "nowhere.pt")


# Layouts


def write_shards(state, folder, name):
    """`state` in two files under an index, as Hugging Face saves a large model."""
    folder.mkdir(exist_ok=True)
    stem, suffix = name.split(".")
    names, weight_map = list(state), {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"{stem}-0000{number}-of-00002.{suffix}"
        tensors = {n: state[n].clone() for n in part}
        save_file(tensors, folder / file) if suffix == "safetensors" else torch.save(tensors, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "pytorch_model.bin"])
def test_build_sharded_weights_load_by_folder_and_by_index(name, config, donor, tmp_path):
    folder = write_shards(donor.state_dict(), tmp_path / "sharded", name)
    for path in (folder, f"local-dir:{folder}", folder / f"{name}.index.json"):
        assert_same(load(config, path), donor)


def test_build_sharded_weights_that_are_not_whole_name_what_is_missing(config, donor, tmp_path):
    folder = write_shards(donor.state_dict(), tmp_path / "sharded", "model.safetensors")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    first = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps({"weight_map": content["weight_map"] | {"visual.extra": first}}))
    with pytest.raises(DataError, match=rf"{first}: found 1 tensors missing .*visual\.extra"):
        load(config, folder)
    (folder / first).unlink()
    with pytest.raises(DataError, match=rf"index\.json: found 1 of 2 files missing \({first}\)"):
        load(config, folder)
    index.write_text(json.dumps({"weight_map": {"a": "../../secret.pt"}}))
    with pytest.raises(DataError, match="names of files in the folder of the index"):
        load(config, folder)


@pytest.mark.parametrize("name", ["open_clip_pytorch_model.bin", "open_clip_model.safetensors"])
def test_build_open_clip_folder_of_either_format_is_opened_by_its_name(name, config, donor, tmp_path):
    config = json.loads(Path(config).read_text())
    folder = tmp_path / "model"
    (tmp_path / "config" / "tokenizer").rename(folder)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    state = {n: t.clone() for n, t in donor.state_dict().items()}
    torch.save(state, folder / name) if name.endswith("bin") else save_file(state, folder / name)
    for written in (str(folder), f"local-dir:{folder}"):
        assert_same(build(ModelConfig(name=written)).model, donor)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 605157884\n"
PAGE = "\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"


@pytest.mark.parametrize(
    ("content", "message"),
    [(POINTER, r"a Git LFS pointer to a file of 605,157,884 bytes"), (PAGE, r"a web page \(HTML\)")],
    ids=["lfs", "html"],
)
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "w.bin"])
def test_build_stand_in_for_a_checkpoint_is_named(name, content, message, config, tmp_path):
    (tmp_path / name).write_text(content)
    for run in (build, check_model):
        with pytest.raises(DataError, match=message):
            run(ModelConfig(name=config, pretrained=str(tmp_path / name)))


def test_build_stand_in_for_one_shard_or_for_a_config_is_named(config, donor, tmp_path):
    folder = write_shards(donor.state_dict(), tmp_path / "sharded", "model.safetensors")
    (folder / "model-00002-of-00002.safetensors").write_text(POINTER)
    with pytest.raises(DataError, match=r"model-00002-of-00002\.safetensors: found a Git LFS pointer"):
        load(config, folder)
    Path(config).write_text(PAGE)
    with pytest.raises(DataError, match=r"tiny\.json: found a web page"):
        build(ModelConfig(name=config))


def test_build_file_of_two_models_is_refused(config, donor, tmp_path):
    state = donor.state_dict()
    both = {f"{who}.{n}": t for who in ("student", "teacher") for n, t in state.items()}
    torch.save(both, tmp_path / "two.pt")
    with pytest.raises(DataError, match=r"2 models \(student\.logit_scale, teacher\.logit_scale\)"):
        load(config, tmp_path / "two.pt")
    torch.save({"model": state, "state_dict": state}, tmp_path / "twice.pt")
    with pytest.raises(DataError, match="weights under 'state_dict' and 'model'"):
        load(config, tmp_path / "twice.pt")


@pytest.mark.parametrize("custom_text", [False, True], ids=["clip", "custom_text"])
def test_build_other_image_size_and_context_length_resizes_as_open_clip_only_when_asked(
    custom_text, donor, tmp_path
):
    torch.save({n: t.half() for n, t in donor.state_dict().items()}, tmp_path / "w.pt")
    larger = {"vision": {"image_size": 64}, "text": {"context_length": 48}, "custom_text": custom_text}
    name, pretrained = write_config(tmp_path / "large", **larger), str(tmp_path / "w.pt")
    with pytest.raises(DataError, match=r"2 other shapes .*model\.resize_positions true"):
        build(ModelConfig(name=name, pretrained=pretrained))
    resized = build(ModelConfig(name=name, pretrained=pretrained, resize_positions=True)).model
    reference = build(ModelConfig(name=name)).model
    torch.save({n: t.half().float() for n, t in donor.state_dict().items()}, tmp_path / "w32.pt")
    open_clip.load_checkpoint(reference, str(tmp_path / "w32.pt"))
    assert_same(resized, reference)


def test_build_other_width_is_not_resized(donor, tmp_path):
    torch.save(donor.state_dict(), tmp_path / "w.pt")
    name = write_config(tmp_path / "wide", text={"width": 64, "context_length": 48})
    with pytest.raises(DataError, match="other shapes"):
        build(ModelConfig(name=name, pretrained=str(tmp_path / "w.pt"), resize_positions=True))
