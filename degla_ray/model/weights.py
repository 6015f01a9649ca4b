"""Read weights from untrusted files: no code is unpickled, and errors name the tensors that do not fit.

Supported are state dicts of open_clip and of Hugging Face's `CLIPModel`, in one file or in several with an
index, and checkpoints that contain a state dict, such as the official DeGLA, NegCLIP and CE-CLIP `.pt` files
({"state_dict": ..., "epoch": ..., "optimizer": ...}). Prefixes that wrappers add to names are removed.
"""

from __future__ import annotations

import argparse
import math
import pathlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from degla_ray.errors import DataError, one_line
from degla_ray.model.files import INDEX_SUFFIX, check_weights, shards_of

_STATE_KEYS = ("state_dict", "model_state_dict", "model", "module")
# FSDP, torch.compile, activation checkpointing and Lightning insert these anywhere in a name.
_WRAPPERS = re.compile(r"(?:(?<=\.)|^)_(orig_mod|(fsdp|checkpoint)_wrapped_module|forward_module)\.")
_ANCHOR = "logit_scale"
"""A tensor that every CLIP has exactly once; the text before it is the prefix of all names."""
_HARMLESS: list[Any] = [
    np.dtype,
    np.ndarray,
    *(type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdSU"),
    *(
        (function, f"{module}.{name}")
        for name, function in (
            ("scalar", np._core.multiarray.scalar),  # type: ignore[attr-defined]
            ("_reconstruct", np._core.multiarray._reconstruct),  # type: ignore[attr-defined]
        )
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")  # before and since NumPy 2
    ),
    argparse.Namespace,
    *((pathlib.PurePosixPath, f"{module}.PosixPath") for module in ("pathlib", "pathlib._local")),
    *((pathlib.PureWindowsPath, f"{module}.WindowsPath") for module in ("pathlib", "pathlib._local")),
]
"""Types that training code stores with the weights; they contain values and run no code."""
# Entries in OpenAI's archives and older text towers that are not parameters.
_NOT_WEIGHTS = (
    "input_resolution",
    "context_length",
    "vocab_size",
    "text.transformer.embeddings.position_ids",
)
_SHOWN = 3


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint file or of an index's files, by name without wrappers' prefixes.

    Raises:
        DataError: the file is missing, truncated or a placeholder, its pickle contains more than tensors, or
            it has no state dict.
    """
    check_weights(path)
    is_index = path.name.endswith(INDEX_SUFFIX)
    state = _read_shards(path) if is_index else _state_dict(_read_file(path), str(path))
    weights: dict[str, Tensor] = {}
    for full_name, value in state.items():
        name = _WRAPPERS.sub("", str(full_name))
        if name in weights:
            raise DataError(str(path), f"two tensors {name!r}, with and without a wrapper", "one model's")
        weights[name] = value
    prefix = _prefix(weights, str(path))
    weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    for name in _NOT_WEIGHTS:
        weights.pop(name, None)
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            raise DataError(
                str(path), f"a {type(value).__name__} under {name!r}", "a state dict: names and tensors only"
            )
    return weights


def _read_file(path: Path) -> Any:
    if path.suffix != ".safetensors":
        return _read_pt(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise DataError(
            str(path), f"a broken safetensors file ({error})", "a whole .safetensors file"
        ) from error


def _read_shards(index: Path) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for path, names in shards_of(index).items():
        part = _state_dict(_read_file(path), str(path))
        if missing := [name for name in names if name not in part]:
            found = f"{len(missing)} tensors missing that the index lists ({_first(missing)})"
            raise DataError(str(path), found, "the file that belongs to the index")
        state |= part
    return state


def _state_dict(content: Any, where: str) -> Mapping[Any, Any]:
    """Return the state dict inside a checkpoint's content."""
    while isinstance(content, Mapping):
        inside = [k for k in _STATE_KEYS if isinstance(content.get(k), Mapping)]
        if not inside:
            break
        if len(inside) > 1:
            found = f"weights under {' and '.join(map(repr, inside))}"
            raise DataError(where, found, "a state dict under one name: torch.save({'state_dict': …}, …)")
        content = content[inside[0]]
    if not isinstance(content, Mapping) or not content:
        raise DataError(
            where, f"a {type(content).__name__} without weights", "a state dict: names and tensors"
        )
    return content


def _prefix(names: Mapping[str, Any], where: str) -> str:
    """Return the prefix that wrappers put before every name (`module.`, `model.`, … in any combination)."""
    anchors = [n for n in names if n == _ANCHOR or n.endswith(f".{_ANCHOR}")]
    if len(anchors) > 1:
        raise DataError(where, f"{len(anchors)} models ({_first(anchors)})", "the state dict of one")
    return anchors[0].removesuffix(_ANCHOR) if anchors else ""


def load_weights(
    model: nn.Module, weights: dict[str, Tensor], where: str, *, resize_positions: bool = False
) -> None:
    """Load `weights` into `model`, requiring that every name and shape fits.

    Args:
        model: model to load into.
        weights: name -> tensor.
        where: name of the weights, for messages.
        resize_positions: whether to interpolate position embeddings for another number of patches or tokens.

    Raises:
        DataError: names are missing or unknown, shapes differ, or values are not finite; names the first few.
    """
    weights = dict(weights)
    if "positional_embedding" in weights and not hasattr(model, "positional_embedding"):
        weights = convert_to_custom_text_state_dict(weights)  # CLIP's names for CustomTextCLIP
    wanted = model.state_dict()
    for scalar in ("logit_scale", "logit_bias"):  # [] in some versions, [1] in others
        if scalar in weights and scalar in wanted and weights[scalar].numel() == wanted[scalar].numel() == 1:
            weights[scalar] = weights[scalar].reshape(wanted[scalar].shape)

    if resize_positions:
        _resize_positions(weights, model, wanted)
    problems = []
    if missing := [n for n in wanted if n not in weights]:
        problems.append(f"{len(missing)} names missing ({_first(missing)})")
    if unknown := [n for n in weights if n not in wanted]:
        problems.append(f"{len(unknown)} unknown names ({_first(unknown)})")
    shapes = [
        f"{n} {list(weights[n].shape)} for {list(wanted[n].shape)}"
        for n in wanted
        if n in weights and weights[n].shape != wanted[n].shape
    ]
    if shapes:
        problems.append(f"{len(shapes)} other shapes ({_first(shapes)})")
    if broken := [n for n, w in weights.items() if w.is_floating_point() and not w.isfinite().all()]:
        problems.append(f"NaN or infinite values in {len(broken)} tensors ({_first(broken)})")
    if problems:
        expected = f"the {len(wanted)} tensors of this model's state dict"
        if len(problems) == 1 and shapes and all("positional_embedding" in shape for shape in shapes):
            expected += ", or model.resize_positions true to interpolate them as open_clip does"
        raise DataError(where, "; ".join(problems), expected)
    model.load_state_dict(weights, strict=True)


def _resize_positions(weights: dict[str, Tensor], model: nn.Module, wanted: Mapping[str, Tensor]) -> None:
    """Interpolate position embeddings as open_clip does: bicubic over the image grid, linear for text."""
    for name in ("visual.positional_embedding", "positional_embedding", "text.positional_embedding"):
        if name not in weights or name not in wanted or weights[name].shape == wanted[name].shape:
            continue
        old, new = weights[name].shape, wanted[name].shape
        square = name != "visual.positional_embedding" or math.isqrt(old[0] - 1) ** 2 == old[0] - 1
        if len(old) == 2 and old[1] == new[1] and square:  # otherwise it is kept, and its shape reported
            weights[name] = weights[name].float()
            (resize_pos_embed if name.startswith("visual") else resize_text_pos_embed)(weights, model)


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata in a .safetensors file's header; {} for any other file."""
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise DataError(
            str(path), f"a broken safetensors file ({error})", "a whole .safetensors file"
        ) from error


def _read_pt(path: Path) -> Any:
    is_zip = zipfile.is_zipfile(path)
    members = zipfile.ZipFile(path).infolist() if is_zip else []
    if any(member.filename.endswith("constants.pkl") for member in members):
        convert = f"save_file(torch.jit.load({path.name!r}).state_dict(), 'model.safetensors')"
        raise DataError(str(path), "a TorchScript archive, which holds code", _converted(convert))
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        found = f"a compressed archive of {sum(member.file_size for member in members)} bytes"
        raise DataError(str(path), found, "a file from torch.save, which does not compress")
    try:
        # With mmap, an optimizer state in the file is never read. Only the zip format supports it.
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        text = " ".join(str(error).split())
        named = re.search(r"GLOBAL (\S+)", text)
        found = f"not only tensors (it asks for {named[1]})" if named else f"no tensors ({text[-200:]})"
        content = f"torch.load({path.name!r}, weights_only=False)['state_dict']"
        convert = f"save_file({content}, 'model.safetensors'); of a whole module, its state_dict()"
        raise DataError(str(path), f"{found}, so it is not unpickled", _converted(convert)) from error
    except Exception as error:  # the unpickler raises many types of errors on truncated or foreign files
        raise DataError(
            str(path), f"a broken file ({one_line(error)})", "a whole file from torch.save"
        ) from error


def _converted(command: str) -> str:
    """Return what a file that could run code has to be instead, and how it is converted."""
    return (
        "a state dict: names and tensors only. If you trust the file, convert it where it was made with "
        f"safetensors.torch's {command}"
    )


def _first(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
