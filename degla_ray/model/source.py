"""What a model's settings name, told apart before any path is joined: `find_model`, `check_model`.

A driver asks here before it starts Ray. Neither torch nor open_clip is imported (but for a pretrained tag),
and no weights are read: a mistyped name is an error within a second.
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

SCENES_BASE = "scenes-base"
HUB, LOCAL_FOLDER = "hf-hub:", "local-dir:"  # open_clip's own prefixes
_MODEL = Path(__file__).parent
PACKAGED = {path.stem: path for path in sorted((_MODEL / "configs").glob("*.json"))}


class Kind(StrEnum):
    """What a name or a checkpoint stands for."""

    OPEN_CLIP = "open_clip name"
    CONFIG = "JSON config"
    FOLDER = "folder"
    HUB = "repository on the Hub"
    FILE = "checkpoint file"
    TAG = "pretrained tag"


@dataclass(frozen=True, kw_only=True)
class Source:
    """What was found.

    Attributes:
        kind: what it is.
        where: absolute path or URI; open_clip's name or tag; `ORG/REPO` or `ORG/REPO@REVISION` on the Hub.
    """

    kind: Kind
    where: str

    @property
    def path(self) -> Path | None:
        """Where it is on this machine; None for all else."""
        is_local = self.kind in (Kind.CONFIG, Kind.FOLDER, Kind.FILE) and "://" not in self.where
        return Path(self.where) if is_local else None


def find_model(name: str, setting: str = "model.name") -> Source:
    """What a model's name stands for.

    A name of ours or open_clip's comes first, and only a whole name counts: `./ViT-B-32` is a folder.

    Raises:
        SettingError: nothing of that name; says which are near.
    """
    if name.startswith(HUB):
        repository = name.removeprefix(HUB)
        if repository.partition("@")[0].count("/") != 1:
            raise SettingError(setting, name, f"{HUB}ORGANISATION/REPOSITORY, if need be with @REVISION")
        return Source(kind=Kind.HUB, where=repository)
    if name.startswith(LOCAL_FOLDER):
        return _place(name.removeprefix(LOCAL_FOLDER), name, setting)
    if name == SCENES_BASE:
        return Source(kind=Kind.FOLDER, where=str(_MODEL / "pretrained" / "scenes_base"))
    if name in PACKAGED:
        return Source(kind=Kind.CONFIG, where=str(PACKAGED[name]))
    registered = name.replace("/", "-")  # as open_clip reads ViT-B/32
    if registered in _open_clip_names():
        return Source(kind=Kind.OPEN_CLIP, where=registered)
    return _place(name, name, setting)


def find_weights(config: ModelConfig, setting: str = "model.pretrained") -> Source | None:
    """What `config.pretrained` stands for; None where it is not set.

    Raises:
        SettingError: neither a file nor a folder that exists nor a tag of the model; says which are near.
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
    tags = _tags(model.where) if model.kind is Kind.OPEN_CLIP and not is_path else []
    if value in tags:
        return Source(kind=Kind.TAG, where=value)
    if "://" in place:
        is_file = place.endswith(model_files.WEIGHT_SUFFIXES)
        return Source(kind=Kind.FILE if is_file else Kind.FOLDER, where=place)
    path = Path(place).expanduser()
    if path.exists():
        return Source(kind=Kind.FOLDER if path.is_dir() else Kind.FILE, where=str(path.absolute()))
    expected = f"a file or folder that exists{_near(path.name, _beside(path))}"
    if model.kind is Kind.OPEN_CLIP and not is_path:
        expected += f", or a tag of {model.where}{_near(value, tags)}: {', '.join(tags) or 'it has none'}"
    elif not is_path:
        expected += f": {config.name!r} has no tags of its own"
    raise SettingError(setting, value, expected)


def starts_random(config: ModelConfig) -> bool:
    """Whether a model is built with random weights.

    Raises:
        SettingError: nothing of that name.
    """
    has_weights = config.pretrained is not None or find_model(config.name).kind in (Kind.FOLDER, Kind.HUB)
    return config.random_init or not has_weights


def in_any_folder(config: ModelConfig) -> ModelConfig:
    """The same model under names that mean it in any working directory, such as a worker's."""
    model, weights = find_model(config.name), find_weights(config)
    is_ours = config.name == SCENES_BASE or config.name in PACKAGED
    return dataclasses.replace(
        config,
        name=model.where if model.path is not None and not is_ours else config.name,
        pretrained=weights.where if weights is not None else None,
    )


def refuse_random(config: ModelConfig, found: str, section: str = "model") -> None:
    """Stops at random weights unless `random_init` asks for them; `found` says what has none.

    Raises:
        SettingError: says how to name weights, or to ask.
    """
    if not config.random_init:
        raise SettingError(
            f"{section}.name",
            config.name,
            f"a model with weights: a folder of them, or {section}.pretrained ({found}, so they would be "
            f"random: {section}.random_init true asks for that)",
        )


def check_model(config: ModelConfig, section: str = "model", *, needs_weights: bool = False) -> None:
    """Raises what `build` would raise of the names, files and JSON fields of a model; reads no weights.

    Args:
        config: of the model.
        section: where the settings are, for messages.
        needs_weights: refuse weights that would be random, unless `random_init` asks for them.

    Raises:
        SettingError: an unknown name or tag, a contradiction, or random weights that nobody asked for.
        DataError: a folder or file that cannot be used.
    """
    if config.random_init and config.pretrained is not None:
        raise SettingError(f"{section}.random_init", True, f"false where {section}.pretrained names weights")
    source = find_model(config.name, f"{section}.name")
    weights = find_weights(config, f"{section}.pretrained")
    _check_files(source, wants_weights=weights is None and not config.random_init)
    if weights is not None and weights.path is not None:
        model_files.check_weights(
            model_files.weights_in(weights.path) if weights.kind is Kind.FOLDER else weights.path
        )
    if weights is not None and source.kind is Kind.OPEN_CLIP and not config.allow_activation_mismatch:
        _check_activation(source.where, weights, str(config.pretrained))
    if needs_weights and starts_random(config):
        refuse_random(config, f"this {source.kind} has none", section)


def open_folder(folder: Path, name: str) -> Path:
    """The config file of a model folder, Hugging Face's or open_clip's.

    Raises:
        DataError: it has neither, or a field of a JSON file runs code.
    """
    model_files.refuse_code(folder)
    if model_files.is_clip_model(folder):
        return folder / model_files.CLIP_MODEL_CONFIG
    path = folder / model_files.OPEN_CLIP_CONFIG
    if not path.is_file():
        expected = f"a folder with {path.name} and {model_files.OPEN_CLIP_WEIGHTS[0]}, or CLIPModel's"
        raise DataError(name, f"no {path.name}", expected)
    return path


def _check_activation(name: str, weights: Source, called: str) -> None:
    import open_clip  # 4 s, and so only where an open_clip name meets weights

    from degla_ray.model import activation

    built = activation.of_config(open_clip.get_model_config(name))
    if weights.kind is Kind.TAG:
        activation.require_tag(name=name, built=built, tag=weights.where)
    elif (path := weights.path) is not None:
        file = model_files.weights_in(path) if path.is_dir() else path
        activation.require_file(name=name, built=built, path=file, source=called, registered=name)


def _check_files(source: Source, *, wants_weights: bool) -> None:
    path = source.path
    if path is None:
        return
    config = open_folder(path, str(path)) if source.kind is Kind.FOLDER else path
    if config.name != model_files.CLIP_MODEL_CONFIG or source.kind is Kind.CONFIG:
        model_files.read_open_clip_config(config)
    if source.kind is Kind.FOLDER and wants_weights:
        model_files.check_weights(model_files.weights_in(path))


def _place(place: str, name: str, setting: str) -> Source:
    """A folder or a JSON file by its path or URI."""
    if "://" in place:
        parent, _, file = place.rpartition("/")
        is_config = file.endswith(".json")
        if not (Storage(parent).exists(file) if is_config else Storage(place).exists()):
            raise SettingError(setting, name, "a JSON config or a folder that exists")
        return Source(kind=Kind.CONFIG if is_config else Kind.FOLDER, where=place)
    path = Path(place).expanduser()
    if path.is_dir() and place:
        return Source(kind=Kind.FOLDER, where=str(path.absolute()))
    if path.is_file() and path.suffix == ".json":
        return Source(kind=Kind.CONFIG, where=str(path.absolute()))
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
    """open_clip's list where it is imported: models may have been added to it; else its files."""
    imported = sys.modules.get("open_clip")
    return list(imported.list_models()) if imported else list(model_files.open_clip_configs())


def _tags(model: str) -> list[str]:
    from open_clip.pretrained import list_pretrained_tags_by_model  # torch: a tag is rare enough

    return list(list_pretrained_tags_by_model(model))


def _beside(path: Path) -> list[str]:
    """Names in the folder that a path should be in."""
    named = path.parent != Path() or path.suffix
    return sorted(os.listdir(path.parent)) if named and path.parent.is_dir() else []


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    return f" (did you mean {', '.join(near)}?)" if near else ""
