"""From settings to a model with its tokenizer and preprocessing, and from a folder in one line.

    from degla_ray.model import load
    loaded = load("runs/train/my-run/export_student")

A `name` is an open_clip name, an open_clip JSON config (a file, or one of ours: `scenes-tiny`, …), a folder
that `export` wrote or that holds a Hugging Face `CLIPModel`, or `scenes-base`. Building ViT-B/32 on a CPU
takes about 2 s, most of it initialising weights that are then overwritten.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import open_clip
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
from open_clip.tokenizer import HFTokenizer
from torch import Tensor, nn

from degla_ray.config import ModelConfig
from degla_ray.errors import DataError, SettingError
from degla_ray.model import activation as guard
from degla_ray.model import (
    huggingface,
    preprocess,
    towers,  # noqa: F401 - registers our tower in timm
)
from degla_ray.model.activation import Activation
from degla_ray.model.weights import load_weights, read_state_dict
from degla_ray.shards import Storage

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
_HERE = Path(__file__).parent
_FILE_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")


@dataclass(kw_only=True)
class LoadedModel:
    """A model ready to encode, on the CPU, in train mode as open_clip leaves it.

    Attributes:
        model: open_clip CLIP or CustomTextCLIP; encode through `degla_ray.model.encode`.
        tokenizer: list of B captions -> int64 [B, context_length]; `context_length` may be given.
        preprocess_cfg: open_clip's: size (height, width), mean, std, interpolation, resize_mode, …
        activation: what the model computes with.
        name: as in the settings.
        model_cfg: open_clip's model config, as its JSON files hold it.
        source: where the weights came from.
    """

    model: nn.Module
    tokenizer: Callable[..., Tensor]
    preprocess_cfg: dict[str, Any]
    activation: Activation
    name: str
    model_cfg: dict[str, Any] = field(repr=False)
    source: str = "random"


@dataclass(kw_only=True)
class _Architecture:
    """What `name` stands for, before any weights."""

    model_cfg: dict[str, Any]
    preprocess_cfg: dict[str, Any]
    registry_name: str | None = None
    """open_clip's own name."""
    tokenizer_folder: Path | None = None
    """Where a Hugging Face tokenizer's files lie, if not on the hub."""
    weights: Path | None = None
    """The folder's own weights."""
    huggingface: bool = False
    """Whether the weights have the names of Hugging Face's CLIPModel."""


def load(path_or_name: str) -> LoadedModel:
    """A model by one word, with its weights: an exported folder or `scenes-base`, in eval mode.

    Raises:
        SettingError: nothing of that name.
        DataError: the folder is not whole.
    """
    loaded = build(ModelConfig(name=path_or_name))
    loaded.model.eval()
    return loaded


def build(config: ModelConfig) -> LoadedModel:
    """The model of `config`, with the weights it names.

    Random weights come from torch's global generator: seed it before.

    Raises:
        SettingError: an unknown name or tag, contradicting settings, or the wrong activation.
        DataError: a file that cannot be used; says why.
    """
    if config.random_init and config.pretrained is not None:
        raise SettingError("model.random_init", True, "false where model.pretrained names weights")
    with ExitStack() as stack:
        arch = _architecture(config.name, stack)
        built = guard.of_config(arch.model_cfg)
        arch.preprocess_cfg = _decide_preprocessing(config, arch)
        tokenizer = _tokenizer(arch, config.name)
        if config.random_init or (config.pretrained is None and arch.weights is None):
            model, source = _create(arch, config.name, stack), "random"
        elif config.pretrained is None or _is_file(config.pretrained):
            model, source = _from_file(config, arch, built, stack)
        else:
            model, source = _from_tag(config, arch, built)
        return LoadedModel(
            model=model,
            tokenizer=tokenizer,
            preprocess_cfg=_preprocess_cfg(model) | arch.preprocess_cfg,
            activation=built,
            name=config.name,
            model_cfg=arch.model_cfg,
            source=source,
        )


def _architecture(name: str, stack: ExitStack) -> _Architecture:
    packaged = _HERE / "configs" / f"{name}.json"
    if name == "scenes-base":
        return _folder_architecture(_HERE / "pretrained" / "scenes_base", name)
    if packaged.is_file():
        return _json_architecture(packaged)
    if name.endswith(".json"):
        return _json_architecture(_local(name, stack))
    registry_name = name.replace("/", "-")  # as open_clip reads ViT-B/32
    if registry_name in open_clip.list_models():
        model_cfg = open_clip.get_model_config(registry_name)
        return _Architecture(model_cfg=model_cfg, preprocess_cfg={}, registry_name=registry_name)
    if "://" in name or os.path.isdir(os.path.expanduser(name)):
        return _folder_architecture(_local(name, stack), name)
    known = [*open_clip.list_models(), *(p.stem for p in (_HERE / "configs").glob("*.json")), "scenes-base"]
    near = difflib.get_close_matches(name, known, n=3)
    hint = f" (near: {', '.join(near)})" if near else ""
    raise SettingError(
        "model.name", name, f"an open_clip name{hint}, a JSON config, an exported folder, or 'scenes-base'"
    )


def _folder_architecture(folder: Path, name: str) -> _Architecture:
    if huggingface.is_clip_folder(folder):
        model_cfg = huggingface.read_config(folder)
        paths = [folder / file for file in huggingface.WEIGHTS_FILES]
        return _Architecture(
            model_cfg=model_cfg,
            preprocess_cfg={},  # by its image processor's file
            tokenizer_folder=folder,
            weights=next((p for p in paths if p.is_file()), paths[0]),
            huggingface=True,
        )
    if not (folder / CONFIG_FILE).is_file():
        raise DataError(
            name, f"no {CONFIG_FILE}", f"a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, or CLIPModel's"
        )
    arch = _json_architecture(folder / CONFIG_FILE)
    arch.tokenizer_folder = folder
    arch.weights = folder / WEIGHTS_FILE
    return arch


def _json_architecture(path: Path) -> _Architecture:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SettingError("model.name", str(path), "an open_clip JSON config that exists") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(str(path), f"broken JSON ({error})", "an open_clip model config") from error
    model_cfg = content.get("model_cfg", content) if isinstance(content, dict) else {}
    if missing := [k for k in ("embed_dim", "vision_cfg", "text_cfg") if k not in model_cfg]:
        raise DataError(str(path), f"no {', '.join(missing)}", "an open_clip model config")
    arch = _Architecture(model_cfg=model_cfg, preprocess_cfg=content.get("preprocess_cfg", {}))
    tokenizer_name = model_cfg["text_cfg"].get("hf_tokenizer_name")
    if tokenizer_name:
        folder = path.parent / tokenizer_name
        if folder.is_dir():
            arch.tokenizer_folder = folder
        elif tokenizer_name.startswith((".", "/")):  # else it is a name on the hub
            raise DataError(
                str(path), f"no tokenizer folder {folder}", "the folder of text_cfg.hf_tokenizer_name"
            )
    return arch


def _create(arch: _Architecture, name: str, stack: ExitStack) -> nn.Module:
    """The architecture with random weights; open_clip's public way in is a folder with a config."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="degla-")))
    (folder / CONFIG_FILE).write_text(
        json.dumps({"model_cfg": arch.model_cfg, "preprocess_cfg": arch.preprocess_cfg}), encoding="utf-8"
    )
    try:
        with _quiet():
            return open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False)
    except (TypeError, ValueError, RuntimeError, AssertionError, KeyError, OSError) as error:
        raise DataError(
            name, f"a config that open_clip cannot build ({error})", "an open_clip model config"
        ) from error


def _from_file(
    config: ModelConfig, arch: _Architecture, built: Activation, stack: ExitStack
) -> tuple[nn.Module, str]:
    source = config.pretrained or config.name
    path = arch.weights if config.pretrained is None else _local(config.pretrained, stack)
    assert path is not None
    if path.is_dir():
        path = path / WEIGHTS_FILE
    weights = read_state_dict(path)  # before the model is built: a broken file is told of at once
    if arch.huggingface and config.pretrained is None:
        weights = huggingface.from_huggingface(weights)
    if not config.allow_activation_mismatch:
        stated = guard.of_file(path)
        if stated is not None:
            guard.require_match(name=config.name, built=built, weights=stated, source=source)
        elif config.pretrained is not None and arch.registry_name is not None:
            guard.require_stated(name=arch.registry_name, built=built, source=source)
    model = _create(arch, config.name, stack)
    load_weights(model, weights, source)
    return model, source


def _from_tag(config: ModelConfig, arch: _Architecture, built: Activation) -> tuple[nn.Module, str]:
    name, tag = arch.registry_name, config.pretrained
    assert tag is not None
    if name is None:
        raise SettingError(
            "model.pretrained", tag, f"a checkpoint file: {config.name!r} has no tags of its own"
        )
    pretrained_cfg = get_pretrained_cfg(name, tag)
    if not pretrained_cfg:
        tags = list_pretrained_tags_by_model(name)
        raise SettingError(
            "model.pretrained", tag, f"a file that exists, or a tag of {name}: {', '.join(tags)}"
        )
    if not config.allow_activation_mismatch:
        made_with: Activation = "quickgelu" if pretrained_cfg.get("quick_gelu", False) else "gelu"
        guard.require_match(name=name, built=built, weights=made_with, source=f"tag {tag!r}")
    try:
        with _quiet():
            return open_clip.create_model(name, pretrained=tag), f"{name} {tag}"
    except (RuntimeError, OSError, ValueError) as error:
        raise DataError(f"tag {tag!r} of {name}", f"no download ({error})", "the hub within reach") from error


def _tokenizer(arch: _Architecture, name: str) -> Callable[[list[str]], Tensor]:
    if arch.registry_name is not None:
        return open_clip.get_tokenizer(arch.registry_name)
    text_cfg = arch.model_cfg["text_cfg"]
    context_length = text_cfg.get("context_length", 77)
    hf_name = text_cfg.get("hf_tokenizer_name")
    if not hf_name:
        return open_clip.SimpleTokenizer(
            context_length=context_length, **text_cfg.get("tokenizer_kwargs", {})
        )
    try:
        tokenizer = HFTokenizer(
            str(arch.tokenizer_folder or hf_name),
            context_length=context_length,
            tokenizer_mode=text_cfg.get("tokenizer_mode"),
            **text_cfg.get("tokenizer_kwargs", {}),
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            name, f"no tokenizer {hf_name!r} ({reason})", "a folder with the tokenizer's files"
        ) from error
    tokens, size = len(tokenizer.tokenizer), text_cfg.get("vocab_size", 49408)
    if tokens > size:
        raise DataError(name, f"a tokenizer of {tokens} tokens", f"at most text_cfg.vocab_size = {size}")
    return tokenizer


def _is_file(pretrained: str) -> bool:
    """Whether `pretrained` means a file or folder rather than an open_clip tag."""
    return pretrained.endswith(_FILE_SUFFIXES) or os.sep in pretrained or os.path.exists(pretrained)


def _local(uri: str, stack: ExitStack) -> Path:
    """`uri` itself if it is a path, else a copy of the file or folder for as long as `stack` lives."""
    if "://" not in uri:
        return Path(uri).expanduser()
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="degla-")))
    if uri.endswith((*_FILE_SUFFIXES, ".json")):
        parent, _, file_name = uri.rpartition("/")
        storage, names, target = Storage(parent), [file_name], folder / file_name
    else:
        storage, target = Storage(uri), folder
        names = storage.names()
    for file_name in names:
        if not storage.exists(file_name):
            raise DataError(uri, "no such file", "one that exists")
        (folder / file_name).write_bytes(storage.read_bytes(file_name))
    return target


def _decide_preprocessing(config: ModelConfig, arch: _Architecture) -> dict[str, Any]:
    """What is known of it before the model is built, which says the size."""
    processor = None
    if arch.huggingface and arch.tokenizer_folder is not None:
        processor = (arch.tokenizer_folder, arch.model_cfg["vision_cfg"]["image_size"])
    decided = preprocess.decide(
        config,
        arch.preprocess_cfg,
        from_file=config.pretrained is not None and _is_file(config.pretrained),
        registry_name=arch.registry_name,
        processor=processor,
    )
    return {name: value for name, value in decided.items() if name != "size"}


def _preprocess_cfg(model: nn.Module) -> dict[str, Any]:
    """open_clip's own, with size always (height, width)."""
    cfg: dict[str, Any] = dict(cast(Any, model.visual).preprocess_cfg)
    size = cfg["size"]
    cfg["size"] = (size, size) if isinstance(size, int) else tuple(size)
    return cfg | {"mean": tuple(cfg["mean"]), "std": tuple(cfg["std"])}


@contextmanager
def _quiet() -> Iterator[None]:
    """Drops open_clip's log lines: it says `initialized randomly` of a model whose weights follow."""

    def keep(record: logging.LogRecord) -> bool:
        return record.module != "factory" or record.levelno >= logging.ERROR

    root = logging.getLogger()
    root.addFilter(keep)
    try:
        yield
    finally:
        root.removeFilter(keep)
