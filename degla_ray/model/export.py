"""Writes a model as a folder that open_clip opens by itself, as `local-dir:FOLDER`, or transformers.

open_clip's holds `open_clip_config.json`, `open_clip_model.safetensors`, the tokenizer's files where it is
not CLIP's own; `degla.json` in both says what they have no place for: activation, objective, whether the
weights are the student's or the teacher's, and the versions that made them. `README.md` in both says how to
open it.
"""

from __future__ import annotations

import copy
import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from open_clip.tokenizer import HFTokenizer
from safetensors.torch import save
from torch import Tensor

import degla_ray
from degla_ray.identity import canonical
from degla_ray.model import huggingface
from degla_ray.model.activation import METADATA_KEY
from degla_ray.model.build import CONFIG_FILE, DEGLA_FILE, WEIGHTS_FILE
from degla_ray.model.loaded import LoadedModel
from degla_ray.model.towers import AVERAGED, WITH_GRID
from degla_ray.storage import Storage

README_FILE = "README.md"
_OPEN_CLIP_README = """\
# A CLIP model for open_clip

    import open_clip{imports}
    model, _, preprocess = open_clip.create_model_and_transforms("local-dir:FOLDER")
    tokenizer = open_clip.get_tokenizer("local-dir:FOLDER")
{why}
`degla.json` says how the model was made.
"""
_WHY_OUR_TOWER = f"""
The second import is needed: `degla_ray` registers the image tower `{WITH_GRID}` in timm. The tower is timm's
`{AVERAGED}` with its last map kept as cells, which timm has no setting for. Without the import open_clip says
`Unknown model ({WITH_GRID})`. Install the package, or put its repository on PYTHONPATH.
"""
_HUGGINGFACE_README = """\
# A CLIP model for transformers

    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel
    model = CLIPModel.from_pretrained("FOLDER").eval()
    processor = AutoImageProcessor.from_pretrained("FOLDER")
    tokenizer = AutoTokenizer.from_pretrained("FOLDER")

Equal pixels and tokens give the features of open_clip to 1e-5. Two things differ before the model:

- Pixels: transformers rounds half of a crop's margin down, open_clip to the nearest even number. Where the
  margin leaves a remainder of 3 when divided by 4, the crops lie a pixel apart (one image size in four).
- Tokens: open_clip turns curly quotes, HTML entities (`&amp;`) and ligatures into plain characters first.
  This tokenizer does not: clean such captions before.

`degla.json` says how the model was made.
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
    """Writes `model` to `folder` (a path or any URI pyarrow opens), replacing files of the same names.

    Args:
        model: what to write; for the teacher, `dataclasses.replace(model, model=teacher.model)`.
        folder: where to.
        extra: what `degla.json` shall say besides, e.g. {"objective": …, "weights": "teacher"}.
        dtype: type of the matrices in the file; float16 halves it. Vectors and scalars stay float32, and
            a loaded model is float32 either way.
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
            # open_clip then takes the tokenizer from the folder itself; the name only has to be there.
            model_cfg["text_cfg"]["hf_tokenizer_name"] = "."
        for path in sorted(Path(temporary).iterdir()):
            storage.write_bytes(path.read_bytes(), path.name)
    # One entry of metadata only: safetensors writes several in an order that changes between runs.
    storage.write_bytes(save(weights, metadata={METADATA_KEY: model.activation}), WEIGHTS_FILE)
    storage.write_json(_degla_json(model, dtype, extra), DEGLA_FILE)
    storage.write_bytes(_open_clip_readme(model).encode(), README_FILE)
    # Last: a folder without it is no model, so one whose writing broke off is never taken for whole.
    storage.write_json(
        {"model_cfg": model_cfg, "preprocess_cfg": canonical(model.preprocess_cfg)}, CONFIG_FILE
    )


def export_huggingface(model: LoadedModel, folder: str, extra: dict[str, Any] | None = None) -> None:
    """Writes `model` as a folder of Hugging Face's `CLIPModel`, with tokenizer, preprocessing and degla.json.

    Args:
        model: what to write.
        folder: where to, a path or any URI pyarrow opens.
        extra: what `degla.json` shall say besides.

    Raises:
        DataError: `CLIPModel` cannot hold it.
    """
    storage = Storage(folder)
    files = huggingface.files(model)
    config = files.pop(huggingface.CONFIG_FILE)
    for name, content in files.items():
        storage.write_bytes(content, name)
    storage.write_json(_degla_json(model, "float32", extra), DEGLA_FILE)
    storage.write_bytes(_HUGGINGFACE_README.encode(), README_FILE)
    storage.write_bytes(config, huggingface.CONFIG_FILE)  # last, as above


def said_besides(folder: str) -> dict[str, Any]:
    """What an exported folder's `degla.json` says of how the model came about: the next one's `extra`."""
    storage = Storage(folder)
    if not storage.exists(DEGLA_FILE):
        return {}
    return {key: value for key, value in storage.read_json(DEGLA_FILE).items() if key not in _OF_THE_EXPORT}


def _open_clip_readme(model: LoadedModel) -> str:
    ours = model.model_cfg["vision_cfg"].get("timm_model_name") == WITH_GRID
    return _OPEN_CLIP_README.format(
        imports="\n    import degla_ray.model.towers" if ours else "", why=_WHY_OUR_TOWER if ours else ""
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
