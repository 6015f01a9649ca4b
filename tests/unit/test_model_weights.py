"""Checkpoint files as they are handed around: official forms, wrong ones, broken ones, hostile ones."""

import os
import re

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import write_config

from degla_ray.config import ModelConfig
from degla_ray.errors import DataError
from degla_ray.model import build


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


def test_build_pickle_with_code_is_refused_and_not_run(config, donor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": donor.state_dict(), "hook": Malicious()}, tmp_path / "evil.pt")
    with pytest.raises(DataError, match=r"not only tensors \(it asks for posix.system\)"):
        load(config, tmp_path / "evil.pt")
    assert not (tmp_path / "EXECUTED").exists()


def test_build_torchscript_archive_is_refused(config, tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "openai.pt"))
    with pytest.raises(DataError, match="TorchScript"):
        load(config, tmp_path / "openai.pt")


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


def test_build_missing_checkpoint_is_a_data_error(config, tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load(config, tmp_path / "nowhere.pt")
