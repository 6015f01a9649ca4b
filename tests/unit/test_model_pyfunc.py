"""The MLflow model: signature, and similarities equal to the features' own."""

import base64
import io
import json
import subprocess
import sys
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch
from fastapi.testclient import TestClient
from mlflow.pyfunc import scoring_server
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from tiny_models import CAPTIONS, write_config

import degla_ray
from degla_ray.config import ModelConfig
from degla_ray.model import encode_image, encode_text
from degla_ray.model.build import build
from degla_ray.model.pyfunc import save_pyfunc


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((40 + seed, 50), 60 + 40 * seed).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


@torch.no_grad()
def test_pyfunc_predicts_the_similarity_of_each_row(tmp_path):
    torch.manual_seed(0)
    loaded = build(ModelConfig(name=write_config(tmp_path / "config")))
    loaded.model.eval()
    save_pyfunc(loaded, str(tmp_path / "mlflow"))
    model = mlflow.pyfunc.load_model(str(tmp_path / "mlflow"))
    encoded = [png(0), png(1), png(0)]
    found = model.predict(pd.DataFrame({"image": encoded, "caption": CAPTIONS}))

    transform = image_transform_v2(PreprocessCfg(**loaded.preprocess_cfg), is_train=False)
    images = torch.stack([transform(Image.open(io.BytesIO(p))) for p in encoded])
    txt_BD = encode_text(loaded.model, loaded.tokenizer(CAPTIONS))
    expected = (encode_image(loaded.model, images) * txt_BD).sum(dim=1)
    assert found["similarity"].tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert len({round(x, 4) for x in expected.tolist()}) == 3
    with pytest.raises(mlflow.exceptions.MlflowException, match="caption"):
        model.predict(pd.DataFrame({"image": encoded}))


@pytest.fixture(scope="module")
def served_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    torch.manual_seed(0)
    save_pyfunc(build(ModelConfig(name=write_config(folder / "config"))), str(folder / "mlflow"))
    return folder / "mlflow"


@pytest.fixture(scope="module")
def served(served_folder):
    return mlflow.pyfunc.load_model(str(served_folder))


ROWS = [
    (png(0), "a cat"),
    (b"no image", "a dog"),
    (png(1), None),
    (None, "a dog"),
    (png(0)[:90], "x"),
    (png(1), "a dog"),
]
WRONG = ["row 1: image does", "row 2: caption is missing", "row 3: image is missing", "row 4: image does not"]


def assert_only_bad_rows_fail(similarity, error, served):
    good = served.predict(pd.DataFrame([ROWS[0], ROWS[5]], columns=["image", "caption"]))
    assert good["similarity"].dtype == "float32"
    assert good["error"].tolist() == [None, None]
    assert [similarity[0], similarity[5]] == pytest.approx(good["similarity"].tolist(), abs=1e-6)
    assert (similarity[1:5], error[0], error[5]) == ([None] * 4, None, None)
    for said, wrong in zip(error[1:5], WRONG, strict=True):
        assert said.startswith(wrong)


def test_pyfunc_bad_rows_are_named_and_the_others_keep_their_similarity(served):
    images, captions = zip(*ROWS, strict=True)
    found = served.predict(pd.DataFrame({"image": images, "caption": captions}))
    assert_only_bad_rows_fail(found["similarity"].tolist(), found["error"].tolist(), served)
    bomb = io.BytesIO()
    Image.new("1", (20_000, 9_000)).save(bomb, "PNG")  # Pillow refuses 179 million pixels
    large = served.predict(pd.DataFrame({"image": [bomb.getvalue()], "caption": ["a"]}))
    assert large["error"][0].startswith("row 0: image does not decode (DecompressionBombError")
    nothing = served.predict(pd.DataFrame({"image": [b"", 3.5], "caption": ["a", "b"]}))
    assert nothing["similarity"].tolist() == [None, None]
    assert nothing["error"][1] == "row 1: image is a float, not bytes or base64"


def as_json(form):
    rows = [(i and base64.b64encode(i).decode(), c) for i, c in ROWS]
    records = [{"image": i, "caption": c} for i, c in rows]
    columns = {"image": [i for i, _ in rows], "caption": [c for _, c in rows]}
    return {
        "dataframe_split": {"dataframe_split": {"columns": ["image", "caption"], "data": rows}},
        "dataframe_records": {"dataframe_records": records},
        "inputs": {"inputs": records},
        "inputs_by_column": {"inputs": columns},
        "instances": {"instances": records},
    }[form]


FORMS = ["dataframe_split", "dataframe_records", "inputs", "inputs_by_column", "instances"]


@pytest.mark.parametrize("form", FORMS)
def test_pyfunc_server_takes_every_json_form_and_spares_good_rows(form, served):
    client = TestClient(scoring_server.init(served))
    answer = client.post("/invocations", json=as_json(form))
    assert answer.status_code == 200, answer.text

    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    predictions = json.loads(answer.text, parse_constant=refuse)["predictions"]
    columns = [[row[name] for row in predictions] for name in ("similarity", "error")]
    assert_only_bad_rows_fail(*columns, served)


def test_pyfunc_server_names_what_a_request_lacks(served):
    client = TestClient(scoring_server.init(served))
    answer = client.post("/invocations", json={"inputs": [{"image": "aGk="}]})
    assert (answer.status_code, "missing inputs ['caption']" in answer.text) == (400, True)
    answer = client.post("/invocations", json={"inputs": [{"image": "%%", "caption": "a dog"}]})
    assert "row 0: image is not base64" in answer.json()["predictions"][0]["error"]


def test_pyfunc_folder_has_the_package_beside_the_model(served_folder):
    package = Path(degla_ray.__file__).parent
    code = served_folder / "code" / "degla_ray"
    assert {p.relative_to(package) for p in package.rglob("*.py")} == {
        p.relative_to(code) for p in code.rglob("*.py")
    }


@pytest.mark.slow
def test_pyfunc_folder_serves_without_the_package_installed(tmp_path):
    torch.manual_seed(0)
    loaded = build(ModelConfig(name=write_config(tmp_path / "config")))
    save_pyfunc(loaded, str(tmp_path / "mlflow"))
    (tmp_path / "a.png").write_bytes(png(0))
    program = f"""
import sys
sys.meta_path = [f for f in sys.meta_path if "editable" not in str(f).lower()]
sys.path = [p for p in sys.path if "editable" not in p]
import mlflow, pandas as pd
model = mlflow.pyfunc.load_model({str(tmp_path / "mlflow")!r})
data = open({str(tmp_path / "a.png")!r}, "rb").read()
print(float(model.predict(pd.DataFrame({{"image": [data], "caption": ["a cat"]}}))["similarity"][0]))
import degla_ray
assert degla_ray.__file__.startswith({str(tmp_path)!r}), degla_ray.__file__
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert -1 <= float(done.stdout.split()[-1]) <= 1
