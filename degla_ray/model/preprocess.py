"""Decide how images become tensors: mean, std, interpolation and resize mode.

Settings take precedence, then the config in the weights' folder, then the values of the model's name or
folder. A checkpoint file does not record its preprocessing. It gets the values of its model name's pretrained
tags if these agree; otherwise the job stops (58 of open_clip's 196 tags differ from OpenAI's values).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import open_clip
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor

from degla_ray.config import ModelConfig
from degla_ray.errors import DataError, SettingError
from degla_ray.model.files import OPEN_CLIP_CONFIG, WEIGHT_SUFFIXES
from degla_ray.storage import Storage

RESAMPLE = {"bilinear": 2, "bicubic": 3}
"""PIL's numbers for the interpolations that open_clip supports."""
_OPENAI = {
    "mean": open_clip.OPENAI_DATASET_MEAN,
    "std": open_clip.OPENAI_DATASET_STD,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
_RESIZE_MODES = ("shortest", "squash", "longest")
_SHOWN_TAGS = 3
_PROCESSORS = ("CLIPImageProcessor", "SiglipImageProcessor", "ViTImageProcessor")
"""transformers' processors that only resize, crop, rescale and normalise."""
_NOT_PIXELS = ("feature_extractor_type", "processor_class", "data_format")
_MADE_INTO_SIZE = ("default_to_square", "use_square_size")  # transformers turns them into `size`


def decide_preprocessing(
    config: ModelConfig,
    stated: Mapping[str, Any],
    *,
    from_file: bool,
    registry_name: str | None = None,
    processor: tuple[Path, int] | None = None,
) -> dict[str, Any]:
    """Return the preprocessing that is known before the model is built.

    Args:
        config: the settings, which override every file.
        stated: open_clip's preprocess config from the model's JSON file, if it has one.
        from_file: whether `config.pretrained` is a checkpoint file or folder.
        registry_name: the model's name in open_clip, if it has one.
        processor: a Hugging Face folder and its model's image size in pixels.

    Returns:
        Fields of open_clip's `PreprocessCfg`; a missing field keeps the value that open_clip chooses when it
        builds the model.

    Raises:
        SettingError: the name's tags disagree; names the settings to give.
        DataError: a file requires a step that open_clip does not support; names the field.
    """
    given = {name: value for name in _OPENAI if (value := getattr(config, name)) is not None}
    beside = _beside(config.pretrained) if from_file and config.pretrained else None
    if beside is not None:
        stated = beside
    elif processor is not None:
        stated = of_processor(*processor, given)
    elif from_file and registry_name is not None:
        stated = _of_tags(registry_name, given)
    return _checked({**stated, **given}, config.name)


def of_processor(folder: Path, image_size: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the preprocessing of a Hugging Face folder; {} if it has no processor file.

    `processor_config.json` (transformers 5) and `preprocessor_config.json` are read as transformers reads
    them, with its defaults for missing fields. `do_convert_rgb` is ignored, as images are always converted.

    Args:
        folder: local folder.
        image_size: the model's image size in pixels.
        given: values from the settings, which override the folder's.

    Raises:
        DataError: a field has no counterpart in open_clip's preprocessing.
    """
    import transformers

    try:
        stated, _ = transformers.CLIPImageProcessor.get_image_processor_dict(folder)
    except OSError:  # neither file
        return {}
    kind = stated.get("image_processor_type") or stated.get("feature_extractor_type") or _PROCESSORS[0]
    kind = kind.removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")
    if kind not in _PROCESSORS:
        raise DataError(str(folder), f"image_processor_type {kind!r}", f"one of {', '.join(_PROCESSORS)}")
    known = {*transformers.CLIPImageProcessor().to_dict(), *_NOT_PIXELS, *_MADE_INTO_SIZE}
    for name, value in stated.items():
        if name not in known and value and not name.startswith("_"):
            raise DataError(str(folder), f"{name} {value!r}", "no such field: open_clip cannot do it")
    processor = getattr(transformers, kind).from_dict(stated)
    found = _scaled(processor)
    for name, value, reason in (
        ("resize_mode", *_resize_mode(processor, image_size)),
        ("interpolation", *_interpolation(processor.resample)),
    ):
        if value is None and name not in given:
            raise DataError(str(folder), reason, f"what open_clip can do, or a setting: model.{name}")
        found[name] = value
    return found


def to_processor(preprocess_cfg: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return arguments of a `CLIPImageProcessor` with the same preprocessing.

    Raises:
        DataError: `CLIPImageProcessor` does not support it; `where` names the model.
    """
    height, width = preprocess_cfg["size"]
    mode = preprocess_cfg["resize_mode"]
    if mode == "squash":
        geometry: dict[str, Any] = {"size": {"height": height, "width": width}, "do_center_crop": False}
    elif mode == "shortest" and height == width:
        geometry = {"size": {"shortest_edge": height}, "crop_size": {"height": height, "width": width}}
    else:
        raise DataError(
            where,
            f"resize_mode {mode!r} to {height} x {width} pixels",
            "'shortest' to a square or 'squash', which CLIPImageProcessor can do",
        )
    return {
        **geometry,
        "image_mean": list(preprocess_cfg["mean"]),
        "image_std": list(preprocess_cfg["std"]),
        "resample": RESAMPLE[preprocess_cfg["interpolation"]],
    }


def _of_tags(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    tags = {tag: _of_tag(name, tag) for tag in list_pretrained_tags_by_model(name)}
    if not tags:
        return {}
    first = next(iter(tags.values()))
    open_fields = [f for f in _OPENAI if f not in given and any(t[f] != first[f] for t in tags.values())]
    if not open_fields:
        return first
    choices: dict[str, list[str]] = {}
    for tag, values in tags.items():
        flags = " ".join(f"--model.{f} {_as_flag(values[f])}" for f in open_fields)
        choices.setdefault(flags, []).append(tag)
    raise SettingError(
        ", ".join(f"model.{f}" for f in open_fields),
        None,
        f"the preprocessing of this file, since the pretrained tags of {name} differ: "
        + "; or ".join(f"{flags} (as {_shown(names)})" for flags, names in choices.items()),
    )


def _of_tag(name: str, tag: str) -> dict[str, Any]:
    stated = get_pretrained_cfg(name, tag)
    return {f: _plain(stated.get(f) or default) for f, default in _OPENAI.items()}


def _beside(pretrained: str) -> dict[str, Any] | None:
    """Return the preprocess config in the folder of open_clip's own weights; None for any other file."""
    folder, _, file = pretrained.rpartition("/")
    if not file.endswith(WEIGHT_SUFFIXES):
        folder = pretrained
    elif not file.startswith("open_clip_"):
        return None
    storage = Storage(folder or ".")
    if not storage.exists(OPEN_CLIP_CONFIG):
        return None
    stated = storage.read_json(OPEN_CLIP_CONFIG).get("preprocess_cfg")
    return dict(stated) if stated else None


def _resize_mode(processor: Any, image_size: int) -> tuple[str | None, str]:
    """Return open_clip's resize mode and "", or None and the settings that have no counterpart."""
    size, square = processor.size, (image_size, image_size)
    crop = processor.crop_size if processor.do_center_crop else None
    cut = (crop.height, crop.width) if crop else None
    stated = f"size {dict(size)}" + (f", then crop_size {dict(crop)}" if crop else ", then no do_center_crop")
    stated += f", for a model of {image_size} x {image_size} pixels"
    if not processor.do_resize:
        return None, f"do_resize false, {stated}"
    if (size.height, size.width) == square and cut in (None, square):
        return "squash", ""
    if (size.shortest_edge, size.longest_edge) == (image_size, None) and cut == square:
        return "shortest", ""
    return None, stated


def _interpolation(resample: Any) -> tuple[str | None, str]:
    if resample is None:
        return "bilinear", ""  # transformers' default
    names = {number: name for name, number in RESAMPLE.items()}
    return names.get(int(resample)), f"resample {int(resample)}"


def _scaled(processor: Any) -> dict[str, Any]:
    """Return mean and std for pixel values between 0 and 1, as open_clip normalises them."""
    factor = processor.rescale_factor * 255 if processor.do_rescale else 255.0
    factor = 1.0 if math.isclose(factor, 1.0) else factor
    mean = _triple(processor.image_mean if processor.do_normalize else 0.0)
    std = _triple(processor.image_std if processor.do_normalize else 1.0)
    return {"mean": tuple(x / factor for x in mean), "std": tuple(x / factor for x in std)}


def _checked(cfg: dict[str, Any], where: str) -> dict[str, Any]:
    fields = PreprocessCfg.__dataclass_fields__
    cfg = {name: _plain(cfg[name]) for name in fields if cfg.get(name) is not None}
    if cfg.get("interpolation") == "random":  # a training value; open_clip uses bicubic for inference
        cfg["interpolation"] = "bicubic"
    for name, allowed in (("interpolation", tuple(RESAMPLE)), ("resize_mode", _RESIZE_MODES)):
        if cfg.get(name, allowed[0]) not in allowed:
            raise DataError(where, f"{name} {cfg[name]!r}", f"one of {', '.join(allowed)}")
    for name in ("mean", "std"):
        if name in cfg:
            cfg[name] = _triple(cfg[name])
            if len(cfg[name]) != 3 or (name == "std" and min(cfg[name]) <= 0):
                raise DataError(where, f"{name} {cfg[name]}", "three numbers, all above 0 for std")
    return cfg


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def _triple(value: Any) -> tuple[float, ...]:
    return (float(value),) * 3 if isinstance(value, int | float) else tuple(value)


def _as_flag(value: Any) -> str:
    return f"'{list(value)}'" if isinstance(value, tuple) else str(value)


def _shown(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN_TAGS]) + (", …" if len(names) > _SHOWN_TAGS else "")


def eval_transform(preprocess_cfg: Mapping[str, Any]) -> Callable[[Image.Image], Tensor]:
    """Return open_clip's transform for evaluation: PIL image -> float32 tensor [3, H, W]."""
    transform: Callable[[Image.Image], Tensor] = image_transform_v2(
        PreprocessCfg(**preprocess_cfg), is_train=False
    )
    return transform
