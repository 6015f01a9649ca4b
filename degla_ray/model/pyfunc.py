"""The model as an MLflow pyfunc model: images and captions in, their similarity out.

    mlflow.pyfunc.load_model("FOLDER").predict(pandas.DataFrame({"image": [png_bytes], "caption": ["a dog"]}))

A server takes the same rows as JSON, images in base64: {"inputs": [{"image": "iVBOR…", "caption": "a dog"}]},
or likewise as `instances`, `dataframe_split` and `dataframe_records`. An unusable row gets an `error` and no
similarity, without affecting the others. The folder contains the exported model and this package's code; all
other packages are in its requirements.
"""

from __future__ import annotations

import base64
import io
import logging
import os
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import torch
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema
from mlflow.types.schema import AnyType
from PIL import Image
from torch import Tensor

import degla_ray
from degla_ray.errors import SettingError
from degla_ray.model.build import load
from degla_ray.model.encode import encode_image, encode_text
from degla_ray.model.export import export
from degla_ray.model.loaded import LoadedModel
from degla_ray.pixel_limit import open_image
from degla_ray.storage import Storage

# AnyType, since MLflow decodes `binary` in only two of the four JSON forms, fails the whole request on a null
# image, and turns a null caption into "None".
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(AnyType(), "image"), ColSpec(AnyType(), "caption")]),
    outputs=Schema(
        [ColSpec("float", "similarity", required=False), ColSpec("string", "error", required=False)]
    ),
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
    """Cosine similarity of each row's image and caption, -1 to 1."""

    def load_context(self, context: Any) -> None:
        self.loaded = load(context.artifacts["model"])
        self.transform = self.loaded.transform

    @torch.no_grad()
    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """Return `similarity` and `error` for each row of `image` and `caption`.

        Args:
            context: not used.
            model_input: column `image` contains an image file, as bytes or base64; `caption` a string.
            params: not used.

        Returns:
            A row per input row, in order: a float32 similarity and None, or None and the error.
        """
        del context, params
        similarity: list[float | None] = []
        error: list[str | None] = []
        for first in range(0, len(model_input), _BATCH):
            rows = model_input.iloc[first : first + _BATCH]
            read = [self._read(*row) for row in zip(rows["image"], rows["caption"], strict=True)]
            error += [f"row {first + i}: {r}" if isinstance(r, str) else None for i, r in enumerate(read)]
            found = iter(self._similarity([r for r in read if not isinstance(r, str)]))
            similarity += [None if isinstance(r, str) else next(found) for r in read]
        # With a float dtype, None would become NaN, which is not valid JSON.
        dtype = "float32" if None not in similarity else object
        return pd.DataFrame(
            {"similarity": pd.Series(similarity, dtype=dtype), "error": pd.Series(error, dtype=object)}
        )

    def _read(self, image: Any, caption: Any) -> tuple[Tensor, str] | str:
        """Return the image's pixels and the caption, or an error message."""
        if not isinstance(caption, str):
            return "caption is missing" if _is_null(caption) else f"caption is a {type(caption).__name__}"
        if _is_null(image):
            return "image is missing"
        if not isinstance(image, str | bytes | bytearray):
            return f"image is a {type(image).__name__}, not bytes or base64"
        try:
            data = (
                base64.b64decode("".join(image.split()), validate=True) if isinstance(image, str) else image
            )
        except ValueError as error:
            return f"image is not base64 ({error})"
        try:
            with open_image(data) as opened:
                return self.transform(opened.convert("RGB")), caption
        except Exception as error:  # decoders raise many types of errors on broken files
            return f"image does not decode ({type(error).__name__}, {len(data)} bytes)"

    def _similarity(self, rows: list[tuple[Tensor, str]]) -> list[float]:
        if not rows:
            return []
        pixels, captions = zip(*rows, strict=True)
        img_BD = encode_image(self.loaded.model, torch.stack(pixels))
        txt_BD = encode_text(self.loaded.model, self.loaded.tokenizer(list(captions)))
        found: list[float] = (img_BD * txt_BD).sum(dim=1).tolist()
        return found


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value) or value is pd.NA


def _example() -> pd.DataFrame:
    """Return one row as a server takes it: a grey image of 32 x 32 pixels in base64, and a caption."""
    image = io.BytesIO()
    Image.new("RGB", (32, 32), (128, 128, 128)).save(image, "PNG")
    return pd.DataFrame(
        {"image": [base64.b64encode(image.getvalue()).decode()], "caption": ["a grey square"]}
    )


def save_pyfunc(model: LoadedModel, folder: str, extra: dict[str, Any] | None = None) -> None:
    """Write `model` to a new `folder` as an MLflow model with a signature.

    Args:
        model: model to write.
        folder: path, or any URI that pyarrow opens; must be empty or not exist.
        extra: additional metadata for `degla.json`.

    Raises:
        SettingError: `folder` is not empty.
    """
    storage = Storage(folder)
    if storage.names_below():
        raise SettingError("output", folder, "a folder that does not exist or is empty")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # It warns that the model is pickled, which docs/security.md says too.
    logging.getLogger("mlflow.pyfunc").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="degla-") as temporary:
        exported = f"{temporary}/open_clip"
        export(model, exported, extra)
        mlflow.pyfunc.save_model(
            f"{temporary}/model",
            python_model=ClipSimilarity(),
            artifacts={"model": exported},
            signature=SIGNATURE,
            input_example=_example(),
            code_paths=[str(Path(degla_ray.__file__).parent)],
            pip_requirements=[f"{name}=={version(name)}" for name in _REQUIREMENTS],
        )
        storage.upload(Path(temporary, "model"))
