"""The MLflow model: signature, and similarities equal to the features' own."""

import io
import subprocess
import sys

import mlflow
import pandas as pd
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from tiny_models import CAPTIONS, write_config

from degla_ray.config import ModelConfig
from degla_ray.model import build, encode_image, encode_text
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
    pictures = [png(0), png(1), png(0)]
    found = model.predict(pd.DataFrame({"image": pictures, "caption": CAPTIONS}))

    transform = image_transform_v2(PreprocessCfg(**loaded.preprocess_cfg), is_train=False)
    images = torch.stack([transform(Image.open(io.BytesIO(p))) for p in pictures])
    txt_BD = encode_text(loaded.model, loaded.tokenizer(CAPTIONS))
    expected = (encode_image(loaded.model, images) * txt_BD).sum(dim=1)
    assert found["similarity"].tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert len({round(x, 4) for x in expected.tolist()}) == 3
    with pytest.raises(mlflow.exceptions.MlflowException, match="caption"):
        model.predict(pd.DataFrame({"image": pictures}))


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
