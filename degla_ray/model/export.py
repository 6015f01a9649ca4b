"""Write a model as a folder that open_clip (as `local-dir:FOLDER`) or transformers opens.

open_clip's folder contains `open_clip_config.json`, `open_clip_model.safetensors`, and the tokenizer's files
unless it is CLIP's own. In both kinds of folders `degla.json` contains the metadata that the other files
cannot: activation, objective, whether the weights are the student's or the teacher's, and library versions.
`README.md` is a model card (`card.py`): how to open the folder, how the model was made, what it scored.
"""

from __future__ import annotations

import copy
import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, cast

import torch
from open_clip.tokenizer import HFTokenizer
from safetensors.torch import save
from torch import Tensor

import degla_ray
from degla_ray.identity import canonical
from degla_ray.model import huggingface
from degla_ray.model.activation import METADATA_KEY
from degla_ray.model.build import CONFIG_FILE, DEGLA_FILE, WEIGHTS_FILE
from degla_ray.model.card import README_FILE, card
from degla_ray.model.loaded import LoadedModel
from degla_ray.model.towers import AVERAGED, WITH_GRID
from degla_ray.storage import Storage

ENCODER_CONFIG = huggingface.CONFIG_FILE  # of a Hugging Face text encoder, whose folder is then "."
_OPEN_CLIP_README = """\
# A CLIP model for open_clip

    import open_clip{imports}
    model, _, preprocess = open_clip.create_model_and_transforms("local-dir:FOLDER")
    tokenizer = open_clip.get_tokenizer("local-dir:FOLDER")
{why}"""
_WHY_OUR_TOWER = f"""
The second import is needed: `degla_ray` registers the image tower `{WITH_GRID}` in timm. The tower is timm's
`{AVERAGED}` with its last feature map pooled to cells, for which timm has no setting. Without the import,
open_clip raises `Unknown model ({WITH_GRID})`. Install the package, or put its repository on PYTHONPATH.
"""
_WHY_IN_THE_FOLDER = """
Run this in the folder itself (`cd FOLDER`): open_clip looks in the working directory for the text encoder's
`config.json`.
"""
_HUGGINGFACE_README = """\
# A CLIP model for transformers

    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel
    model = CLIPModel.from_pretrained("FOLDER").eval()
    processor = AutoImageProcessor.from_pretrained("FOLDER")
    tokenizer = AutoTokenizer.from_pretrained("FOLDER")

For equal pixels and tokens, the features equal open_clip's to 1e-5. Two preparation steps differ:

- Pixels: transformers rounds half of a crop's margin down, open_clip to the nearest even number. If the
  margin leaves remainder 3 when divided by 4 (one image size in four), the crops are one pixel apart.
- Tokens: open_clip first turns curly quotes, HTML entities (`&amp;`) and ligatures into plain characters.
  This tokenizer does not: clean such captions beforehand.
"""
_OF_THE_EXPORT = ("activation", "preprocess", "source", "dtype", "versions")
_LIBRARIES = ("torch", "open_clip_torch", "timm", "transformers")


def export(
    model: LoadedModel,
    folder: str,
    extra: dict[str, Any] | None = None,
    *,
    dtype: Literal["float32", "float16"] = "float32",
) -> None:
    """Write `model` to `folder` for open_clip, replacing files of the same names.

    Args:
        model: model to write; for the teacher, `dataclasses.replace(model, model=teacher.model)`.
        folder: path, or any URI that pyarrow opens.
        extra: additional metadata for `degla.json`, e.g. {"objective": …, "weights": "teacher"}.
        dtype: type of the matrices in the file; float16 halves its size. Vectors and scalars stay float32,
            and a loaded model is float32 in either case.
    """
    storage = Storage(folder)
    weights = {n: _stored(t, dtype) for n, t in model.model.state_dict().items()}
    model_cfg = json.loads(json.dumps(model.model_cfg))
    with tempfile.TemporaryDirectory(prefix="degla-") as temporary:
        if isinstance(model.tokenizer, HFTokenizer):
            tokenizer = copy.deepcopy(model.tokenizer.tokenizer)
            if tokenizer.is_fast:  # its last call's padding and truncation would be saved with it
                tokenizer.backend_tokenizer.no_padding()
                tokenizer.backend_tokenizer.no_truncation()
            tokenizer.save_pretrained(temporary)
            # open_clip takes the tokenizer from the folder itself, but requires a name to be set.
            model_cfg["text_cfg"]["hf_tokenizer_name"] = "."
        if model_cfg["text_cfg"].get("hf_model_name"):
            encoder = json.loads(cast(Any, model.model).text.config.to_json_string())
            encoder.pop("_name_or_path", None)  # the folder from which it was read
            (Path(temporary) / ENCODER_CONFIG).write_text(json.dumps(encoder, indent=2))
            model_cfg["text_cfg"]["hf_model_name"] = "."
        for path in sorted(Path(temporary).iterdir()):
            storage.write_bytes(path.read_bytes(), path.name)
    # A single metadata entry, since safetensors writes several in an order that changes between runs.
    storage.write_bytes(save(weights, metadata={METADATA_KEY: model.activation}), WEIGHTS_FILE)
    storage.write_json(_degla_json(model, dtype, extra), DEGLA_FILE)
    storage.write_bytes(_card(_open_clip_readme(model), "open_clip", model, extra), README_FILE)
    # Written last: without it the folder is not a model, so an interrupted export cannot be loaded.
    storage.write_json(
        {"model_cfg": model_cfg, "preprocess_cfg": canonical(model.preprocess_cfg)}, CONFIG_FILE
    )


def export_huggingface(model: LoadedModel, folder: str, extra: dict[str, Any] | None = None) -> None:
    """Write `model` as a folder for Hugging Face's `CLIPModel`, with tokenizer, preprocessing and degla.json.

    Args:
        model: model to write.
        folder: path, or any URI that pyarrow opens.
        extra: additional metadata for `degla.json`.

    Raises:
        DataError: `CLIPModel` cannot represent the model or its preprocessing.
    """
    storage = Storage(folder)
    files = huggingface.files(model)
    config = files.pop(huggingface.CONFIG_FILE)
    for name, content in files.items():
        storage.write_bytes(content, name)
    storage.write_json(_degla_json(model, "float32", extra), DEGLA_FILE)
    storage.write_bytes(_card(_HUGGINGFACE_README, "transformers", model, extra), README_FILE)
    storage.write_bytes(config, huggingface.CONFIG_FILE)  # last, as above


def export_metadata(folder: str) -> dict[str, Any]:
    """Return the metadata of an exported folder's `degla.json` to pass as `extra` to the next export.

    Fields that every export writes itself are left out; without a `degla.json` the result is {}.
    """
    storage = Storage(folder)
    if not storage.exists(DEGLA_FILE):
        return {}
    return {key: value for key, value in storage.read_json(DEGLA_FILE).items() if key not in _OF_THE_EXPORT}


def _card(opening: str, library: str, model: LoadedModel, extra: dict[str, Any] | None) -> bytes:
    return card(opening, library, model.source, canonical(extra or {})).encode()


def _open_clip_readme(model: LoadedModel) -> str:
    ours = model.model_cfg["vision_cfg"].get("timm_model_name") == WITH_GRID
    has_encoder = bool(model.model_cfg["text_cfg"].get("hf_model_name"))
    return _OPEN_CLIP_README.format(
        imports="\n    import degla_ray.model.towers" if ours else "",
        why=(_WHY_OUR_TOWER if ours else "") + (_WHY_IN_THE_FOLDER if has_encoder else ""),
    )


def _degla_json(model: LoadedModel, dtype: str, extra: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "activation": model.activation,
        "preprocess": canonical(model.preprocess_cfg),
        "source": model.source,
        "dtype": dtype,
        "versions": {"degla_ray": degla_ray.__version__} | {name: version(name) for name in _LIBRARIES},
        **canonical(extra or {}),
    }


def _stored(tensor: Tensor, dtype: str) -> Tensor:
    tensor = tensor.detach().cpu()
    if dtype == "float16" and tensor.is_floating_point() and tensor.ndim >= 2:
        tensor = tensor.to(torch.float16)
    return tensor.contiguous().clone()  # safetensors refuses tensors that share memory
