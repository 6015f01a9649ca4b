"""Inspect a model's folder without importing torch: the file with its weights, and its JSON files.

A model folder is treated as data. Some fields of its JSON files make transformers import Python files from
the folder or from a repository on the Hub; a folder with such a field is refused, and the error names it.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from degla_ray.errors import DataError

OPEN_CLIP_CONFIG, CLIP_MODEL_CONFIG = "open_clip_config.json", "config.json"
OPEN_CLIP_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_model.safetensors.index.json",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.bin.index.json",
)
CLIP_MODEL_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
INDEX_SUFFIX = ".index.json"
WEIGHT_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors", INDEX_SUFFIX)
_START = 512
_LFS = b"version https://git-lfs.github.com"
_WEB_PAGE = (b"<!doctype html", b"<html", b"<head", b"<?xml", b"<!--")
_IMPORTS_CODE = ("auto_map", "trust_remote_code", "custom_pipelines")
_TOKENIZER_KWARGS = {
    *("clean", "strip_sep_token", "language", "additional_special_tokens", "reduction_mask"),  # open_clip's
    *("add_bos_token", "add_eos_token", "add_prefix_space", "clean_up_tokenization_spaces", "do_lower_case"),
    *("legacy", "model_max_length", "padding_side", "src_lang", "strip_accents", "tgt_lang", "use_fast"),
    *(f"{token}_token" for token in ("bos", "cls", "eos", "mask", "pad", "sep", "unk")),
}
"""Allowed `tokenizer_kwargs`; AutoTokenizer accepts others that fetch or import files."""


def clip_model_config(folder: Path) -> dict[str, Any] | None:
    """Return the config of the Hugging Face `CLIPModel` in `folder`; None if it contains none."""
    try:
        config = json.loads((folder / CLIP_MODEL_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) and config.get("model_type") == "clip" else None


def is_clip_model(folder: Path) -> bool:
    """Return whether `folder` is to be read as a `CLIPModel`: it has its config and no open_clip model."""
    own = (folder / OPEN_CLIP_CONFIG).is_file() and any((folder / n).is_file() for n in OPEN_CLIP_WEIGHTS)
    return not own and clip_model_config(folder) is not None


def weights_in(folder: Path) -> Path:
    """Return the path of the folder's weights, a file or the index of several; it may not exist."""
    names = (*OPEN_CLIP_WEIGHTS, *CLIP_MODEL_WEIGHTS)
    if is_clip_model(folder):
        names = (*CLIP_MODEL_WEIGHTS, *OPEN_CLIP_WEIGHTS)
    return next((path for name in names if (path := folder / name).is_file()), folder / names[0])


def shards_of(index: Path) -> dict[Path, list[str]]:
    """Return the files of an index of sharded weights, each with the names of its tensors.

    Raises:
        DataError: the file is not such an index, or a file that it names is missing.
    """
    weight_map = read_json(index, "an index of sharded weights").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise DataError(str(index), "no weight_map", "an index of sharded weights")
    shards: dict[Path, list[str]] = {}
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise DataError(str(index), f"a file {file!r}", "names of files in the folder of the index")
        shards.setdefault(index.parent / file, []).append(tensor)
    if missing := [path.name for path in shards if not path.is_file()]:
        found = f"{len(missing)} of {len(shards)} files missing ({missing[0]})"
        raise DataError(str(index), found, "all files that it names, in its folder")
    return shards


def refuse_stand_in(path: Path) -> None:
    """Refuse a file that is only a placeholder for the expected one.

    Raises:
        DataError: the file is a Git LFS pointer or a web page.
    """
    with path.open("rb") as file:
        start = file.read(_START)
    if start.startswith(_LFS):
        size = re.search(rb"^size (\d+)", start, re.MULTILINE)
        of = f" to a file of {int(size[1]):,} bytes" if size else ""
        raise DataError(
            str(path), f"a Git LFS pointer{of}", "the file itself: run `git lfs pull` in its folder"
        )
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_WEB_PAGE):
        raise DataError(
            str(path),
            "a web page (HTML)",
            "the file itself, from a download link (on the Hub with /resolve/ instead of /blob/)",
        )


def read_json(path: Path, expected: str) -> dict[str, Any]:
    """Return the object in a JSON file; {} if its content is not an object.

    Raises:
        DataError: the file is not JSON; `expected` describes the right content.
    """
    refuse_stand_in(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(str(path), f"broken JSON ({error})", expected) from error
    return content if isinstance(content, dict) else {}


def read_open_clip_config(path: Path) -> tuple[dict[str, Any], dict[str, Any], Path | None]:
    """Return the model config, preprocess config and tokenizer folder (or None) of an open_clip config file.

    A folder in `text_cfg.hf_model_name` is relative to the config file; it is returned as an absolute path.

    Raises:
        DataError: the file is not such a config, it names a missing folder, or a field would run code.
    """
    content = read_json(path, "an open_clip model config")
    model_cfg = content.get("model_cfg", content)
    if not isinstance(model_cfg, dict):
        raise DataError(str(path), f"a model_cfg {model_cfg!r:.40}", "an open_clip model config")
    if missing := [k for k in ("embed_dim", "vision_cfg", "text_cfg") if k not in model_cfg]:
        raise DataError(str(path), f"no {', '.join(missing)}", "an open_clip model config")
    if wrong := [k for k in ("vision_cfg", "text_cfg") if not isinstance(model_cfg[k], dict)]:
        raise DataError(str(path), f"a {wrong[0]} {model_cfg[wrong[0]]!r:.40}", "an open_clip model config")
    tokenizer = _tokenizer_folder(path, model_cfg["text_cfg"])
    if encoder := _folder_beside(path, model_cfg["text_cfg"], "hf_model_name"):
        if not (encoder / CLIP_MODEL_CONFIG).is_file():
            raise DataError(
                str(encoder), f"no {CLIP_MODEL_CONFIG}", "the config of text_cfg.hf_model_name's encoder"
            )
        text_cfg = model_cfg["text_cfg"] | {"hf_model_name": str(encoder.absolute())}
        model_cfg = model_cfg | {"text_cfg": text_cfg}
    refuse_code_in_config(str(path), model_cfg, tokenizer)
    for folder in filter(None, (tokenizer, path.parent if path.name == OPEN_CLIP_CONFIG else None)):
        refuse_code(folder)
    return model_cfg, content.get("preprocess_cfg") or {}, tokenizer


def refuse_code(folder: Path) -> None:
    """Refuse a folder whose JSON files would make transformers import code.

    Raises:
        DataError: names the field.
    """
    for path in sorted(folder.glob("*config.json")):
        for field, value in _fields(read_json(path, "a JSON object")):
            key = field.rpartition(".")[2]
            kernel = key.endswith("attn_implementation") and "/" in str(value)  # a repository of kernels
            if (key in _IMPORTS_CODE and value) or kernel:
                raise DataError(
                    str(path),
                    f"{field} {value!r:.80}",
                    "no such field: it runs code, and a model folder is data",
                )


def refuse_code_in_config(where: str, model_cfg: dict[str, Any], tokenizer: Path | None) -> None:
    """Refuse a model config that would make transformers or timm import or fetch anything.

    Args:
        where: the config's file or name, for messages.
        model_cfg: open_clip's model config.
        tokenizer: folder from which its tokenizer is read, if any.

    Raises:
        DataError: names the field.
    """
    text_cfg, timm_name = model_cfg["text_cfg"], str(model_cfg["vision_cfg"].get("timm_model_name") or "")
    for key, value in (text_cfg.get("tokenizer_kwargs") or {}).items():
        if key not in _TOKENIZER_KWARGS:
            known = ", ".join(sorted(_TOKENIZER_KWARGS))
            found = f"text_cfg.tokenizer_kwargs.{key} {value!r:.80}"
            raise DataError(where, found, f"arguments that only concern how a text is split: {known}")
    for key in ("hf_tokenizer_name", "hf_model_name"):
        name = text_cfg.get(key)
        if not name or (key == "hf_tokenizer_name" and tokenizer is not None):
            continue
        if Path(name).is_dir():  # transformers prefers it to the Hub
            refuse_code(Path(name))
        elif name not in _names_on_the_hub():
            raise DataError(
                where,
                f"text_cfg.{key} {name!r}, a repository that may contain code",
                "a folder, or a name from open_clip's own configs (roberta-base, google/mt5-base, …)",
            )
    if ":" in timm_name:
        raise DataError(
            where,
            f"vision_cfg.timm_model_name {timm_name!r}",
            "one of timm's own names, not a location to download from",
        )


def _tokenizer_folder(path: Path, text_cfg: dict[str, Any]) -> Path | None:
    if path.name == OPEN_CLIP_CONFIG and text_cfg.get("hf_tokenizer_name"):
        return path.parent  # as in open_clip: the tokenizer is in this folder, whatever the name
    return _folder_beside(path, text_cfg, "hf_tokenizer_name")


def _folder_beside(path: Path, text_cfg: dict[str, Any], field: str) -> Path | None:
    """Return the folder that a field of the config at `path` names; None for a name on the Hub or no name.

    Raises:
        DataError: the name is a path, and there is no such folder.
    """
    name = text_cfg.get(field)
    if not name:
        return None
    folder = path.parent / str(name)
    if not folder.is_dir() and str(name).startswith((".", "/")):
        raise DataError(str(path), f"no folder {folder}", f"the folder of text_cfg.{field}")
    return folder if folder.is_dir() else None


@functools.cache
def _names_on_the_hub() -> frozenset[str]:
    """Return the repositories named in open_clip's own configs."""
    configs = (json.loads(path.read_text(encoding="utf-8")) for path in open_clip_configs().values())
    texts = [config["text_cfg"] for config in configs]
    return frozenset(
        text[key] for text in texts for key in ("hf_tokenizer_name", "hf_model_name") if key in text
    )


@functools.cache
def open_clip_configs() -> dict[str, Path]:
    """Return open_clip's model names and their config files, without importing it (which takes 4 s)."""
    spec = importlib.util.find_spec("open_clip")
    assert spec is not None
    assert spec.origin is not None
    return {path.stem: path for path in sorted((Path(spec.origin).parent / "model_configs").glob("*.json"))}


def _fields(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every key of nested JSON as a dotted name, with its value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield f"{prefix}{key}", inner
        yield from _fields(inner, f"{prefix}{key}.")


def check_weights(path: Path) -> None:
    """Refuse a checkpoint that is missing or incomplete, or whose file is a placeholder.

    Raises:
        DataError: names the file and what is wrong.
    """
    if not path.is_file():
        raise DataError(str(path), "no such file", "an open_clip state dict (.pt or .safetensors)")
    files = [path]
    if path.name.endswith(INDEX_SUFFIX):
        files = [path, *shards_of(path)]
    for file in files:
        refuse_stand_in(file)
