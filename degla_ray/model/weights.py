"""Reading weights that somebody handed over: nothing is unpickled, and what does not fit is named.

Opens open_clip `.pt` and `.safetensors` state dicts and the official DeGLA, NegCLIP and CE-CLIP `.pt`
files ({"state_dict": ..., "epoch": ..., "optimizer": ...}, names with or without `module.`).
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from open_clip.model import convert_to_custom_text_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from degla_ray.errors import DataError

_PREFIXES = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile
# Entries beside the weights in OpenAI's archives and in older text towers; never parameters.
_NOT_WEIGHTS = (
    "input_resolution",
    "context_length",
    "vocab_size",
    "text.transformer.embeddings.position_ids",
)
_SHOWN = 3


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Names and tensors of a checkpoint file, prefixes of wrappers removed.

    Raises:
        DataError: no such file, truncated, a pickle that holds more than tensors, or no state dict in it.
    """
    if not path.is_file():
        raise DataError(str(path), "no such file", "an open_clip state dict (.pt or .safetensors)")
    if path.suffix == ".safetensors":
        try:
            content: Any = load_file(path)
        except SafetensorError as error:
            raise DataError(
                str(path), f"a broken safetensors file ({error})", "a whole .safetensors file"
            ) from error
    else:
        content = _read_pt(path)
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not state:
        raise DataError(
            str(path), f"a {type(state).__name__} without weights", "a state dict: names and tensors"
        )
    weights = {}
    for name, value in state.items():
        name = _without_prefix(str(name))
        if name in _NOT_WEIGHTS:
            continue
        if not isinstance(value, Tensor):
            raise DataError(
                str(path), f"a {type(value).__name__} under {name!r}", "a state dict: names and tensors only"
            )
        weights[name] = value
    return weights


def load_weights(model: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Puts `weights` into `model`: every name and shape must fit.

    Raises:
        DataError: names are missing or unknown, shapes differ, or values are not finite; the first few
            are named.
    """
    weights = dict(weights)
    if "positional_embedding" in weights and not hasattr(model, "positional_embedding"):
        weights = convert_to_custom_text_state_dict(weights)  # CLIP's names for CustomTextCLIP
    wanted = model.state_dict()
    for scalar in ("logit_scale", "logit_bias"):  # [] in some versions, [1] in others
        if scalar in weights and scalar in wanted and weights[scalar].numel() == wanted[scalar].numel() == 1:
            weights[scalar] = weights[scalar].reshape(wanted[scalar].shape)

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
        raise DataError(where, "; ".join(problems), f"the {len(wanted)} tensors of this model's state dict")
    model.load_state_dict(weights, strict=True)


def read_metadata(path: Path) -> dict[str, str]:
    """The header's metadata of a .safetensors file; {} for any other."""
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
    if is_zip and any(n.endswith("constants.pkl") for n in zipfile.ZipFile(path).namelist()):
        raise DataError(
            str(path),
            "a TorchScript archive, which holds code",
            "a state dict: torch.save(model.state_dict(), …)",
        )
    try:
        # mmap: an optimizer state beside the weights is never read. Only the zip format allows it.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        text = " ".join(str(error).split())
        named = re.search(r"GLOBAL (\S+)", text)
        found = f"not only tensors (it asks for {named[1]})" if named else f"no tensors ({text[-200:]})"
        raise DataError(
            str(path), f"{found}, so it is not unpickled", "torch.save({'state_dict': model.state_dict()}, …)"
        ) from error
    except Exception as error:  # a cut or foreign file makes the unpickler raise nearly anything
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise DataError(str(path), f"a broken file ({reason})", "a whole file from torch.save") from error


def _without_prefix(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _first(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
