"""Build a model with its tokenizer and preprocessing from settings, or load a folder in one line.

    from degla_ray.model import load
    loaded = load("runs/train/my-run/export_student")

`degla_ray.model.source` resolves a name: an open_clip name, a JSON config, a folder of open_clip or of
Hugging Face's `CLIPModel`, a repository on the Hub, or `scenes-base`. Building ViT-B/32 on a CPU takes about
2 s, most of it for initialising weights that are then overwritten.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import open_clip
from open_clip.tokenizer import HFTokenizer
from torch import Tensor, nn

from degla_ray.config import ModelConfig
from degla_ray.errors import DataError, SettingError, one_line
from degla_ray.model import activation as guard
from degla_ray.model import (
    huggingface,
    preprocess,
    towers,  # noqa: F401 - registers our tower in timm
    trunks,
)
from degla_ray.model.deferred_imports import generic_tokenizer
from degla_ray.model.files import (
    OPEN_CLIP_CONFIG,
    OPEN_CLIP_WEIGHTS,
    WEIGHT_SUFFIXES,
    read_json,
    read_open_clip_config,
    refuse_code_in_config,
    weights_in,
)
from degla_ray.model.hub import hub_folder
from degla_ray.model.loaded import LoadedModel
from degla_ray.model.source import (
    RANDOM,
    ModelSource,
    SourceKind,
    check_model,
    find_model,
    find_weights,
    open_folder,
    refuse_random,
)
from degla_ray.model.weights import load_weights, read_state_dict
from degla_ray.storage import Storage

CONFIG_FILE = OPEN_CLIP_CONFIG
WEIGHTS_FILE = OPEN_CLIP_WEIGHTS[0]
DEGLA_FILE = "degla.json"


@dataclass(kw_only=True)
class _Architecture:
    """Architecture that a model's name refers to, before weights are loaded."""

    model_cfg: dict[str, Any]
    preprocess_cfg: dict[str, Any]
    registry_name: str | None = None
    """open_clip's name; None for other sources."""
    tokenizer_folder: Path | None = None
    """Folder with a Hugging Face tokenizer's files; None if it has none or is on the Hub."""
    image_processor: Path | None = None
    """Folder of a CLIPModel's image processor; None for other sources."""
    weights: Path | None = None
    """Weights in the model's own folder; None without such a folder."""


def load(path_or_name: str) -> LoadedModel:
    """Load a model with weights by its path or name, in eval mode.

    Args:
        path_or_name: e.g. an exported folder, `hf-hub:ORG/REPO` or `scenes-base`.

    Raises:
        SettingError: nothing has that name, or it has no weights.
        DataError: the folder is incomplete or unusable.
    """
    config = ModelConfig(name=path_or_name)
    check_model(config, needs_weights=True)
    loaded = build(config)
    loaded.model.eval()
    return loaded


def build_with_weights(config: ModelConfig) -> LoadedModel:
    """Build the model of `config`, and refuse random weights unless `random_init` is set.

    Raises:
        SettingError: as `build`, or the weights are random without `random_init`.
        DataError: as `build`.
    """
    check_model(config, needs_weights=True)
    loaded = build(config)
    if loaded.is_random:
        refuse_random(config, f"{DEGLA_FILE} says that its weights are random")
    return loaded


def build(config: ModelConfig) -> LoadedModel:
    """Build the model of `config` with the weights that it names.

    Random weights are drawn from torch's global generator, which the caller must seed.

    Raises:
        SettingError: an unknown name or tag, contradicting settings, or the wrong activation.
        DataError: an unusable file; says why.
    """
    if config.random_init and config.pretrained is not None:
        raise SettingError("model.random_init", True, "false where model.pretrained names weights")
    found, pretrained = find_model(config.name), find_weights(config)
    with ExitStack() as stack:
        arch = _architecture(found, config.name, stack)
        arch.preprocess_cfg = _decide_preprocessing(config, arch, pretrained)
        tokenizer = _tokenizer(arch, config.name)
        if config.random_init or (pretrained is None and arch.weights is None):
            model, source = _create(arch, config.name, stack), RANDOM
        elif pretrained is not None and pretrained.kind is SourceKind.TAG:
            model, source = _from_tag(config, arch, pretrained.where)
        else:
            model, source = _from_file(config, arch, pretrained, stack)
        return LoadedModel(
            model=model,
            tokenizer=tokenizer,
            preprocess_cfg=_preprocess_cfg(model) | arch.preprocess_cfg,
            activation=guard.of_config(arch.model_cfg),
            name=config.name,
            model_cfg=arch.model_cfg,
            source=source,
        )


def build_tokenizer(config: ModelConfig) -> Callable[..., Tensor]:
    """Return the tokenizer of `config`'s model, without its weights.

    Raises:
        SettingError, DataError: as `build`.
    """
    with ExitStack() as stack:
        return _tokenizer(_architecture(find_model(config.name), config.name, stack), config.name)


def _architecture(source: ModelSource, name: str, stack: ExitStack) -> _Architecture:
    if source.kind is SourceKind.OPEN_CLIP:
        model_cfg = open_clip.get_model_config(source.where)
        refuse_code_in_config(name, model_cfg, None)  # a folder ./roberta-base precedes the Hub's
        return _Architecture(model_cfg=model_cfg, preprocess_cfg={}, registry_name=source.where)
    if source.kind is SourceKind.CONFIG:
        return _json_architecture(_local(source.where, stack))
    folder = hub_folder(source.where) if source.kind is SourceKind.HUB else _local(source.where, stack)
    config = open_folder(folder, name)
    if config.name == huggingface.CONFIG_FILE:
        arch = _Architecture(
            model_cfg=huggingface.read_config(folder),
            preprocess_cfg={},
            tokenizer_folder=folder,
            image_processor=folder,
        )
    else:
        arch = _json_architecture(config)
    arch.weights = weights_in(folder)
    return arch


def _json_architecture(path: Path) -> _Architecture:
    model_cfg, preprocess_cfg, tokenizer = read_open_clip_config(path)
    return _Architecture(model_cfg=model_cfg, preprocess_cfg=preprocess_cfg, tokenizer_folder=tokenizer)


def _create(arch: _Architecture, name: str, stack: ExitStack) -> nn.Module:
    """Build the architecture with random weights, through a temporary folder that open_clip opens."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="degla-")))
    (folder / CONFIG_FILE).write_text(
        json.dumps({"model_cfg": arch.model_cfg, "preprocess_cfg": arch.preprocess_cfg}), encoding="utf-8"
    )
    try:
        with _quiet():
            model = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False)
    except (TypeError, ValueError, RuntimeError, AssertionError, KeyError, OSError) as error:
        raise DataError(
            name, f"a config that open_clip cannot build ({error})", "an open_clip model config"
        ) from error
    trunks.require_size(model.visual, name)
    return model


def _from_file(
    config: ModelConfig, arch: _Architecture, pretrained: ModelSource | None, stack: ExitStack
) -> tuple[nn.Module, str]:
    path = arch.weights if pretrained is None else _local(pretrained.where, stack)
    assert path is not None
    if path.is_dir():
        path = weights_in(path)
    weights = read_state_dict(path)  # before the model is built, so that a broken file fails at once
    if huggingface.has_its_names(weights):
        weights = huggingface.from_huggingface(weights)
    source = RANDOM if _is_random_export(path.parent) else config.pretrained or config.name
    if not config.allow_activation_mismatch:
        guard.require_file(
            name=config.name,
            built=guard.of_config(arch.model_cfg),
            path=path,
            source=source,
            registered=arch.registry_name if pretrained is not None else None,
        )
    model = _create(arch, config.name, stack)
    load_weights(model, weights, source, resize_positions=config.resize_positions)
    return model, source


def _is_random_export(folder: Path) -> bool:
    """Return whether `folder` is an export of a model with random, untrained weights."""
    path = folder / DEGLA_FILE
    metadata = read_json(path, "what `export` wrote") if path.is_file() else {}
    return metadata.get("source") == RANDOM and "steps" not in metadata


def _from_tag(config: ModelConfig, arch: _Architecture, tag: str) -> tuple[nn.Module, str]:
    name = arch.registry_name
    assert name is not None
    if not config.allow_activation_mismatch:
        guard.require_tag(name=name, built=guard.of_config(arch.model_cfg), tag=tag)
    try:
        with _quiet():
            return open_clip.create_model(name, pretrained=tag), f"{name} {tag}"
    except (RuntimeError, OSError, ValueError) as error:
        raise DataError(f"tag {tag!r} of {name}", f"no download ({error})", "a reachable Hub") from error


def _tokenizer(arch: _Architecture, name: str) -> Callable[..., Tensor]:
    text_cfg = arch.model_cfg["text_cfg"]
    if arch.registry_name is not None:
        only_data = {"trust_remote_code": False} if text_cfg.get("hf_tokenizer_name") else {}
        return open_clip.get_tokenizer(arch.registry_name, **only_data)
    context_length = text_cfg.get("context_length", 77)
    hf_name = text_cfg.get("hf_tokenizer_name")
    if not hf_name:
        return open_clip.SimpleTokenizer(
            context_length=context_length, **(text_cfg.get("tokenizer_kwargs") or {})
        )
    folder = str(arch.tokenizer_folder or hf_name)
    try:
        with generic_tokenizer(Path(folder)):
            tokenizer = HFTokenizer(
                folder,
                context_length=context_length,
                tokenizer_mode=text_cfg.get("tokenizer_mode"),
                trust_remote_code=False,
                **(text_cfg.get("tokenizer_kwargs") or {}),
            )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise DataError(
            name, f"no tokenizer {hf_name!r} ({one_line(error)})", "a folder with the tokenizer's files"
        ) from error
    _require_embeddings(tokenizer, text_cfg, name)
    return tokenizer


def _require_embeddings(tokenizer: HFTokenizer, text_cfg: dict[str, Any], name: str) -> None:
    """Check that the text tower has an embedding for each token.

    Raises:
        DataError: the tokenizer has more tokens.
    """
    where, size = "text_cfg.vocab_size", text_cfg.get("vocab_size", 49408)
    if folder := text_cfg.get("hf_model_name"):
        if not Path(folder).is_dir():
            return  # a name on the Hub, from open_clip's own configs
        config = read_json(Path(folder) / huggingface.CONFIG_FILE, "an encoder's config")
        where, size = f"vocab_size in {folder}", config.get("vocab_size", 0)
    if (tokens := len(tokenizer.tokenizer)) > size:
        raise DataError(name, f"a tokenizer of {tokens} tokens", f"at most {where} = {size}")


def _local(uri: str, stack: ExitStack) -> Path:
    """Return `uri` if it is a path, otherwise a local copy that is deleted when `stack` closes."""
    if "://" not in uri:
        return Path(uri).expanduser()
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="degla-")))
    if uri.endswith((*WEIGHT_SUFFIXES, ".json")):
        parent, _, file_name = uri.rpartition("/")
        storage, names, target = Storage(parent), [file_name], folder / file_name
    else:
        storage, target = Storage(uri), folder
        names = storage.names()
    for file_name in names:
        if not storage.exists(file_name):
            raise DataError(uri, "no such file", "a file that exists")
        (folder / file_name).write_bytes(storage.read_bytes(file_name))
    return target


def _decide_preprocessing(
    config: ModelConfig, arch: _Architecture, pretrained: ModelSource | None
) -> dict[str, Any]:
    """Return the preprocessing known before the model is built: all but `size`, which the model decides."""
    processor = None
    if arch.image_processor is not None:
        processor = (arch.image_processor, arch.model_cfg["vision_cfg"]["image_size"])
    decided = preprocess.decide_preprocessing(
        config,
        arch.preprocess_cfg,
        from_file=pretrained is not None and pretrained.kind is not SourceKind.TAG,
        registry_name=arch.registry_name,
        processor=processor,
    )
    return {name: value for name, value in decided.items() if name != "size"}


def _preprocess_cfg(model: nn.Module) -> dict[str, Any]:
    """Return open_clip's preprocess config of a built model, with size as (height, width)."""
    cfg: dict[str, Any] = dict(cast(Any, model.visual).preprocess_cfg)
    size = cfg["size"]
    cfg["size"] = (size, size) if isinstance(size, int) else tuple(size)
    return cfg | {"mean": tuple(cfg["mean"]), "std": tuple(cfg["std"])}


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress open_clip's log lines, which report random weights even if weights are loaded next."""

    def keep(record: logging.LogRecord) -> bool:
        return record.module != "factory" or record.levelno >= logging.ERROR

    root = logging.getLogger()
    root.addFilter(keep)
    try:
        yield
    finally:
        root.removeFilter(keep)
