"""Resolve the names in a model's settings (`find_model`, `find_weights`) and check them (`check_model`).

A driver does this before it starts Ray. No weights are read, and neither torch nor open_clip is imported
except when an open_clip name is combined with weights, so a mistyped name fails within a second.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from degla_ray.config import ModelConfig
from degla_ray.errors import DataError, SettingError
from degla_ray.model import files as model_files
from degla_ray.storage import Storage

RANDOM = "random"
"""`LoadedModel.source` of a model with random, untrained weights."""
SCENES_BASE = "scenes-base"
HUB, LOCAL_FOLDER = "hf-hub:", "local-dir:"  # open_clip's own prefixes
_MODEL = Path(__file__).parent
PACKAGED = {path.stem: path for path in sorted((_MODEL / "configs").glob("*.json"))}


class SourceKind(StrEnum):
    """Kind of source that a model's name or its weights' name refers to."""

    OPEN_CLIP = "open_clip name"
    CONFIG = "JSON config"
    FOLDER = "folder"
    HUB = "repository on the Hub"
    FILE = "checkpoint file"
    TAG = "pretrained tag"


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Model or weights that a name refers to.

    Attributes:
        kind: kind of the source.
        where: absolute path or URI; open_clip's name or tag; `ORG/REPO` or `ORG/REPO@REVISION` on the Hub.
    """

    kind: SourceKind
    where: str

    @property
    def path(self) -> Path | None:
        """Local path; None for a URI or a name."""
        is_local = (
            self.kind in (SourceKind.CONFIG, SourceKind.FOLDER, SourceKind.FILE) and "://" not in self.where
        )
        return Path(self.where) if is_local else None


def find_model(name: str, setting: str = "model.name") -> ModelSource:
    """Return the source that a model's name refers to.

    Names of this package and of open_clip take precedence over paths, but must match exactly: `./ViT-B-32` is
    a folder.

    Args:
        name: the model's name.
        setting: the setting that contains it, for messages.

    Raises:
        SettingError: nothing has that name; suggests similar ones.
    """
    if name.startswith(HUB):
        repository = name.removeprefix(HUB)
        if repository.partition("@")[0].count("/") != 1:
            raise SettingError(setting, name, f"{HUB}ORGANISATION/REPOSITORY, optionally with @REVISION")
        return ModelSource(kind=SourceKind.HUB, where=repository)
    if name.startswith(LOCAL_FOLDER):
        return _place(name.removeprefix(LOCAL_FOLDER), name, setting)
    if name == SCENES_BASE:
        return ModelSource(kind=SourceKind.FOLDER, where=str(_MODEL / "pretrained" / "scenes_base"))
    if name in PACKAGED:
        return ModelSource(kind=SourceKind.CONFIG, where=str(PACKAGED[name]))
    registered = name.replace("/", "-")  # as open_clip reads ViT-B/32
    if registered in _open_clip_names():
        return ModelSource(kind=SourceKind.OPEN_CLIP, where=registered)
    return _place(name, name, setting)


def find_weights(config: ModelConfig, setting: str = "model.pretrained") -> ModelSource | None:
    """Return the source that `config.pretrained` refers to; None if it is not set.

    Raises:
        SettingError: it is neither an existing file or folder nor a tag of the model; suggests similar ones.
    """
    value = config.pretrained
    if value is None:
        return None
    place = value.removeprefix(LOCAL_FOLDER)
    model = find_model(config.name)
    is_path = (
        place != value
        or "/" in value
        or value.startswith(("~", "."))
        or value.endswith(model_files.WEIGHT_SUFFIXES)
    )
    tags = _tags(model.where) if model.kind is SourceKind.OPEN_CLIP and not is_path else []
    if value in tags:
        return ModelSource(kind=SourceKind.TAG, where=value)
    if "://" in place:
        is_file = place.endswith(model_files.WEIGHT_SUFFIXES)
        return ModelSource(kind=SourceKind.FILE if is_file else SourceKind.FOLDER, where=place)
    path = Path(place).expanduser()
    if path.exists():
        return ModelSource(
            kind=SourceKind.FOLDER if path.is_dir() else SourceKind.FILE, where=str(path.absolute())
        )
    expected = f"a file or folder that exists{_near(path.name, _beside(path))}"
    if model.kind is SourceKind.OPEN_CLIP and not is_path:
        expected += f", or a tag of {model.where}{_near(value, tags)}: {', '.join(tags) or 'it has none'}"
    elif not is_path:
        expected += f": {config.name!r} has no tags of its own"
    raise SettingError(setting, value, expected)


def starts_random(config: ModelConfig) -> bool:
    """Return whether the model is built with random weights.

    Raises:
        SettingError: nothing has that name.
    """
    has_weights = config.pretrained is not None or find_model(config.name).kind in (
        SourceKind.FOLDER,
        SourceKind.HUB,
    )
    return config.random_init or not has_weights


def in_any_folder(config: ModelConfig) -> ModelConfig:
    """Return the config with absolute paths, valid in any working directory such as a worker's."""
    model, weights = find_model(config.name), find_weights(config)
    is_ours = config.name == SCENES_BASE or config.name in PACKAGED
    return dataclasses.replace(
        config,
        name=model.where if model.path is not None and not is_ours else config.name,
        pretrained=weights.where if weights is not None else None,
    )


def refuse_random(config: ModelConfig, found: str, section: str = "model") -> None:
    """Refuse random weights unless `random_init` is set.

    Args:
        config: the model's settings.
        found: why the weights would be random, for the message.
        section: the section of the settings, for the message.

    Raises:
        SettingError: `random_init` is false; says how to specify weights or allow random ones.
    """
    if not config.random_init:
        raise SettingError(
            f"{section}.name",
            config.name,
            f"a model with weights: a folder with them, or {section}.pretrained ({found}, so they would be "
            f"random; {section}.random_init true allows that)",
        )


def check_model(config: ModelConfig, section: str = "model", *, needs_weights: bool = False) -> None:
    """Raise the errors that `build` would raise about names, files and JSON fields, without reading weights.

    Args:
        config: the model's settings.
        section: the section of the settings, for messages.
        needs_weights: whether to refuse random weights unless `random_init` is set.

    Raises:
        SettingError: an unknown name or tag, contradicting settings, or random weights without
            `random_init`.
        DataError: an unusable folder or file.
    """
    if config.random_init and config.pretrained is not None:
        raise SettingError(f"{section}.random_init", True, f"false where {section}.pretrained names weights")
    source = find_model(config.name, f"{section}.name")
    weights = find_weights(config, f"{section}.pretrained")
    _check_files(source, wants_weights=weights is None and not config.random_init)
    if weights is not None and weights.path is not None:
        model_files.check_weights(
            model_files.weights_in(weights.path) if weights.kind is SourceKind.FOLDER else weights.path
        )
    if weights is not None and source.kind is SourceKind.OPEN_CLIP and not config.allow_activation_mismatch:
        _check_activation(source.where, weights, str(config.pretrained))
    if needs_weights and starts_random(config):
        refuse_random(config, f"this {source.kind} has none", section)


def open_folder(folder: Path, name: str) -> Path:
    """Return the config file of a model folder, Hugging Face's or open_clip's.

    Raises:
        DataError: the folder has neither, or a field of its JSON files would run code.
    """
    model_files.refuse_code(folder)
    if model_files.is_clip_model(folder):
        return folder / model_files.CLIP_MODEL_CONFIG
    path = folder / model_files.OPEN_CLIP_CONFIG
    if not path.is_file():
        expected = f"a folder with {path.name} and {model_files.OPEN_CLIP_WEIGHTS[0]}, or CLIPModel's"
        raise DataError(name, f"no {path.name}", expected)
    return path


def _check_activation(name: str, weights: ModelSource, called: str) -> None:
    import open_clip  # takes 4 s, so only if an open_clip name is combined with weights

    from degla_ray.model import activation

    built = activation.of_config(open_clip.get_model_config(name))
    if weights.kind is SourceKind.TAG:
        activation.require_tag(name=name, built=built, tag=weights.where)
    elif (path := weights.path) is not None:
        file = model_files.weights_in(path) if path.is_dir() else path
        activation.require_file(name=name, built=built, path=file, source=called, registered=name)


def _check_files(source: ModelSource, *, wants_weights: bool) -> None:
    path = source.path
    if path is None:
        return
    config = open_folder(path, str(path)) if source.kind is SourceKind.FOLDER else path
    if config.name != model_files.CLIP_MODEL_CONFIG or source.kind is SourceKind.CONFIG:
        model_files.read_open_clip_config(config)
    if source.kind is SourceKind.FOLDER and wants_weights:
        model_files.check_weights(model_files.weights_in(path))


def _place(place: str, name: str, setting: str) -> ModelSource:
    """Return the source of a folder or JSON file, given its path or URI."""
    if "://" in place:
        parent, _, file = place.rpartition("/")
        is_config = file.endswith(".json")
        if not (Storage(parent).exists(file) if is_config else Storage(place).exists()):
            raise SettingError(setting, name, "a JSON config or a folder that exists")
        return ModelSource(kind=SourceKind.CONFIG if is_config else SourceKind.FOLDER, where=place)
    path = Path(place).expanduser()
    if path.is_dir() and place:
        return ModelSource(kind=SourceKind.FOLDER, where=str(path.absolute()))
    if path.is_file() and path.suffix == ".json":
        return ModelSource(kind=SourceKind.CONFIG, where=str(path.absolute()))
    if path.is_file():
        raise SettingError(
            setting,
            name,
            "an architecture: an open_clip name or JSON config, with this file as model.pretrained",
        )
    known = [*_open_clip_names(), *PACKAGED, SCENES_BASE]
    near = _near(path.name, _beside(path)) or _near(place.replace("/", "-"), known)
    raise SettingError(
        setting,
        name,
        f"an open_clip name{near}, a JSON config or a folder that exists, {HUB}ORG/REPO, or {SCENES_BASE!r}",
    )


def _open_clip_names() -> list[str]:
    """Return open_clip's model names: its list if it is imported (it may have additions), else its files."""
    imported = sys.modules.get("open_clip")
    return list(imported.list_models()) if imported else list(model_files.open_clip_configs())


def _tags(model: str) -> list[str]:
    from open_clip.pretrained import list_pretrained_tags_by_model  # imports torch, but tags are rare

    return list(list_pretrained_tags_by_model(model))


def _beside(path: Path) -> list[str]:
    """Return the names in the folder that should contain the path."""
    named = path.parent != Path() or path.suffix
    return sorted(os.listdir(path.parent)) if named and path.parent.is_dir() else []


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    return f" (did you mean {', '.join(near)}?)" if near else ""
