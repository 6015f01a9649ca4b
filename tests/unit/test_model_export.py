import dataclasses
import json
import subprocess
import sys

import open_clip
import pytest
import torch
from tiny_models import CAPTIONS, write_config

from degla_ray.config import ModelConfig, ObjectiveConfig, TeacherConfig
from degla_ray.model import Teacher, encode_image, encode_text, load
from degla_ray.model.build import CONFIG_FILE, WEIGHTS_FILE, build
from degla_ray.model.export import export

IMAGES_BCHW = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def build_tiny(folder, top):
    loaded = build(ModelConfig(name=write_config(folder, **top)))
    loaded.model.eval()
    return loaded


@pytest.fixture
def loaded(tmp_path):
    return build_tiny(tmp_path / "config", {})


TOPS = {
    "clip": {},
    "quickgelu": {"quick_gelu": True},
    "custom_text": {"custom_text": True},
    "nfnet_grid": {"vision_cfg": {"image_size": 32, "timm_model_name": "nfnet_grid", "timm_pool": ""}},
    "clip_tokenizer": {"text": {"hf_tokenizer_name": None, "vocab_size": 49408}},
}


@pytest.fixture(params=TOPS)
def any_loaded(request, tmp_path):
    return build_tiny(tmp_path / "config", TOPS[request.param])


@torch.no_grad()
def test_export_folder_opens_in_open_clip_with_the_same_features(any_loaded, tmp_path):
    export(any_loaded, str(tmp_path / "export"))
    name = f"local-dir:{tmp_path / 'export'}"
    model, _, transform = open_clip.create_model_and_transforms(name)
    tokens_BL = open_clip.get_tokenizer(name)(CAPTIONS)
    model.eval()
    assert torch.equal(tokens_BL, any_loaded.tokenizer(CAPTIONS))
    for tower, ours in (("image", encode_image), ("text", encode_text)):
        inputs = IMAGES_BCHW if tower == "image" else tokens_BL
        encode, before = (getattr(m, f"encode_{tower}") for m in (model, any_loaded.model.eval()))
        assert torch.equal(encode(inputs, normalize=True), before(inputs, normalize=True))
        # ours adds up in another order
        assert torch.allclose(encode(inputs, normalize=True), ours(any_loaded.model, inputs), atol=1e-6)
    assert transform.transforms[0].size == 32


@torch.no_grad()
def test_load_exported_folder_in_one_line_gives_the_same_features(any_loaded, tmp_path):
    export(any_loaded, str(tmp_path / "export"))
    again = load(str(tmp_path / "export"))
    assert not again.model.training
    assert again.activation == any_loaded.activation
    assert again.preprocess_cfg == any_loaded.preprocess_cfg
    assert torch.equal(again.tokenizer(CAPTIONS), any_loaded.tokenizer(CAPTIONS))
    assert torch.equal(encode_image(again.model, IMAGES_BCHW), encode_image(any_loaded.model, IMAGES_BCHW))
    tokens_BL = any_loaded.tokenizer(CAPTIONS)
    assert torch.equal(encode_text(again.model, tokens_BL), encode_text(any_loaded.model, tokens_BL))


def test_export_of_an_exported_model_gives_the_same_bytes(loaded, tmp_path):
    loaded.tokenizer(CAPTIONS)  # a use must leave no trace in the files
    export(loaded, str(tmp_path / "a"))
    again = load(str(tmp_path / "a"))
    again.tokenizer(CAPTIONS * 2)
    export(again, str(tmp_path / "b"))
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "b").iterdir())
    for name in set(names) - {"degla.json"}:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_export_names_no_path_of_this_machine(any_loaded, tmp_path):
    export(any_loaded, str(tmp_path / "export"))
    for path in (tmp_path / "export").iterdir():
        if path.suffix in (".json", ".txt"):
            assert str(tmp_path) not in path.read_text(), path.name
            assert sys.prefix not in path.read_text(), path.name


def test_export_of_the_teacher_writes_the_teachers_weights_and_what_made_them(loaded, tmp_path):
    teacher = Teacher(loaded.model, TeacherConfig())
    with torch.no_grad():
        for p in loaded.model.parameters():
            p.add_(0.1)
    averaged = dataclasses.replace(loaded, model=teacher.model)
    export(averaged, str(tmp_path / "export"), {"weights": "teacher", "objective": ObjectiveConfig()})
    facts = json.loads((tmp_path / "export" / "degla.json").read_text())
    assert facts["weights"] == "teacher"
    assert facts["objective"]["lambda_distill"] == 1.28
    assert facts["activation"] == loaded.activation
    assert facts["preprocess"]["size"] == [32, 32]
    assert facts["versions"]["torch"] == torch.__version__.split("+")[0]
    again = load(str(tmp_path / "export")).model
    assert teacher.distance(again) == 0.0
    assert teacher.distance(loaded.model) > 0.0


@torch.no_grad()
def test_export_float16_halves_the_file_and_keeps_features_close(loaded, tmp_path):
    export(loaded, str(tmp_path / "full"))
    export(loaded, str(tmp_path / "half"), dtype="float16")
    full, half = ((tmp_path / n / WEIGHTS_FILE).stat().st_size for n in ("full", "half"))
    assert half < 0.6 * full
    again = load(str(tmp_path / "half")).model
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    assert again.logit_scale.item() == loaded.model.logit_scale.item()
    cosine = (encode_image(again, IMAGES_BCHW) * encode_image(loaded.model, IMAGES_BCHW)).sum(-1)
    assert cosine.min() > 0.9999


def test_export_to_and_load_from_a_uri(loaded, tmp_path):
    uri = f"file://{tmp_path}/export"
    export(loaded, uri)
    assert torch.equal(load(uri).model.visual.proj, loaded.model.visual.proj)
    pretrained = ModelConfig(name=uri, pretrained=f"{uri}/{WEIGHTS_FILE}")
    assert torch.equal(build(pretrained).model.visual.proj, loaded.model.visual.proj)


def test_export_over_an_older_one_replaces_it(loaded, tmp_path):
    export(loaded, str(tmp_path / "export"))
    with torch.no_grad():
        loaded.model.visual.proj.add_(1.0)
    export(loaded, str(tmp_path / "export"))
    assert torch.equal(load(str(tmp_path / "export")).model.visual.proj, loaded.model.visual.proj)
    assert not list((tmp_path / "export").glob("*.tmp-*"))


def test_export_that_breaks_off_leaves_no_model(loaded, tmp_path):
    broken = dataclasses.replace(loaded, preprocess_cfg={"size": object()})
    with pytest.raises(TypeError, match="object"):
        export(broken, str(tmp_path / "export"))
    assert not (tmp_path / "export" / CONFIG_FILE).exists()


def lines_of(readme):
    """Return the indented lines below the card's metadata."""
    readme = readme.split("\n---\n")[1]
    return "\n".join(line.removeprefix("    ") for line in readme.splitlines() if line.startswith("    "))


def in_another_process(program, folder):
    """Where nothing but these lines has imported anything."""
    program = program.replace("FOLDER", str(folder)) + "\nprint('opened', type(model).__name__)"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_export_readme_lines_open_the_demos_model_and_its_reason_is_true(tmp_path):
    export(load("scenes-base"), str(tmp_path / "export"))
    readme = (tmp_path / "export" / "README.md").read_text()
    lines = lines_of(readme)
    done = in_another_process(lines, tmp_path / "export")
    assert done.stdout.startswith("opened"), done.stderr[-2000:]
    without = in_another_process(lines.replace("import degla_ray.model.towers", ""), tmp_path / "export")
    assert "Unknown model (nfnet_grid)" in without.stderr
    assert "Unknown model (nfnet_grid)" in readme


def test_export_readme_of_a_plain_tower_asks_for_no_import_of_ours(loaded, tmp_path):
    export(loaded, str(tmp_path / "export"))
    readme = (tmp_path / "export" / "README.md").read_text()
    assert "degla_ray" not in readme
    names: dict = {}
    exec(lines_of(readme).replace("FOLDER", str(tmp_path / "export")), names)
    assert torch.equal(names["model"].visual.proj, loaded.model.visual.proj)
    assert torch.equal(names["tokenizer"](CAPTIONS), loaded.tokenizer(CAPTIONS))
