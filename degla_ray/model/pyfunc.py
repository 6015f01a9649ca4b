"""The model as MLflow knows it: pictures and captions in, their similarity out.

    mlflow.pyfunc.load_model("FOLDER").predict(pandas.DataFrame({"image": [png_bytes], "caption": ["a dog"]}))

The folder holds the exported model and this package's code; what else it needs is in its requirements.
"""

from __future__ import annotations

import io
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import torch
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

import degla_ray
from degla_ray.errors import SettingError
from degla_ray.model.build import LoadedModel, load
from degla_ray.model.encode import encode_image, encode_text
from degla_ray.model.export import export
from degla_ray.shards import Storage

SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec("binary", "image"), ColSpec("string", "caption")]),
    outputs=Schema([ColSpec("float", "similarity")]),
)
_REQUIREMENTS = (
    "torch",
    "torchvision",
    "open_clip_torch",
    "transformers",
    "pillow",
    "pyarrow",
    "safetensors",
)
_BATCH = 64


class ClipSimilarity(mlflow.pyfunc.PythonModel):
    """Cosine similarity of each row's picture and caption, -1 to 1."""

    def load_context(self, context: Any) -> None:
        self.loaded = load(context.artifacts["model"])
        self.transform = image_transform_v2(PreprocessCfg(**self.loaded.preprocess_cfg), is_train=False)

    @torch.no_grad()
    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """One row of `similarity` for each row of `image` (any file that Pillow opens) and `caption`."""
        del context, params
        similarity: list[float] = []
        for first in range(0, len(model_input), _BATCH):
            rows = model_input.iloc[first : first + _BATCH]
            pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in rows["image"]]
            img_BD = encode_image(self.loaded.model, torch.stack([self.transform(p) for p in pictures]))
            txt_BD = encode_text(self.loaded.model, self.loaded.tokenizer(list(rows["caption"])))
            similarity += (img_BD * txt_BD).sum(dim=1).tolist()
        return pd.DataFrame({"similarity": pd.Series(similarity, dtype="float32")})


def save_pyfunc(model: LoadedModel, folder: str, extra: dict[str, Any] | None = None) -> None:
    """Writes `model` as an MLflow model with a signature to a new `folder`.

    Args:
        model: what to write.
        folder: where to, a path or any URI pyarrow opens; must not exist or be empty.
        extra: what `degla.json` shall say besides.
    """
    storage = Storage(folder)
    if storage.names_below():
        raise SettingError("output", folder, "a folder that does not exist or is empty")
    with tempfile.TemporaryDirectory(prefix="degla-") as temporary:
        exported = f"{temporary}/open_clip"
        export(model, exported, extra)
        mlflow.pyfunc.save_model(
            f"{temporary}/model",
            python_model=ClipSimilarity(),
            artifacts={"model": exported},
            signature=SIGNATURE,
            code_paths=[str(Path(degla_ray.__file__).parent)],
            pip_requirements=[f"{name}=={version(name)}" for name in _REQUIREMENTS],
        )
        storage.upload(Path(temporary, "model"))
