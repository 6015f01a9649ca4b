"""The activation guard: weights trained with QuickGELU silently score lower in a GELU model, and vice versa.

OpenAI's CLIP uses QuickGELU, and so does everything fine-tuned from it (the published DeGLA, NegCLIP and
CE-CLIP checkpoints). Since open_clip 2.29, plain `ViT-B-32` with `openai` builds a GELU model and only warns;
here it is an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

import open_clip
from open_clip.pretrained import get_pretrained_cfg

from degla_ray.errors import SettingError
from degla_ray.model.files import (
    CLIP_MODEL_WEIGHTS,
    OPEN_CLIP_CONFIG,
    OPEN_CLIP_WEIGHTS,
    clip_model_config,
    read_json,
)
from degla_ray.model.weights import read_metadata

Activation = Literal["quickgelu", "gelu"]
METADATA_KEY = "degla_activation"  # in the header of the safetensors files we write
_SUFFIX = "-quickgelu"
_ANYWAY = "model.allow_activation_mismatch=true to load it anyway"


def of_config(model_cfg: dict[str, Any]) -> Activation:
    """Return the activation of the model that an open_clip model config builds."""
    return "quickgelu" if model_cfg.get("quick_gelu", False) else "gelu"


def of_file(path: Path) -> Activation | None:
    """Return the activation from a checkpoint's header or the config in its folder; None if unknown."""
    stated = read_metadata(path).get(METADATA_KEY)
    if stated in ("quickgelu", "gelu"):
        return cast(Activation, stated)
    folder = path.parent
    if path.name in CLIP_MODEL_WEIGHTS and (clip := clip_model_config(folder)) is not None:
        return _of_clip_model(clip)
    config = folder / OPEN_CLIP_CONFIG
    if path.name in (*OPEN_CLIP_WEIGHTS, *CLIP_MODEL_WEIGHTS) and config.is_file():
        return of_config(read_json(config, "an open_clip model config").get("model_cfg", {}))
    return None


def _of_clip_model(config: dict[str, Any]) -> Activation | None:
    """Return the activation in `CLIPModel`'s config, by default QuickGELU; None if it is another or mixed."""
    towers = [config.get(tower) or {} for tower in ("vision_config", "text_config")]
    names = {tower.get("hidden_act", "quick_gelu") for tower in towers}
    return {"quick_gelu": "quickgelu", "gelu": "gelu"}.get(names.pop()) if len(names) == 1 else None  # type: ignore[return-value]


def require_tag(*, name: str, built: Activation, tag: str) -> None:
    """Require that open_clip's model `name` has the activation of the weights of its `tag`.

    Raises:
        SettingError: as `require_match`.
    """
    made_with: Activation = "quickgelu" if get_pretrained_cfg(name, tag).get("quick_gelu") else "gelu"
    require_match(name=name, built=built, weights=made_with, source=f"tag {tag!r}")


def require_file(
    *, name: str, built: Activation, path: Path, source: str, registered: str | None = None
) -> None:
    """Refuse a checkpoint whose activation differs from the model's or cannot be known.

    Args:
        name: the model's name, for messages.
        built: the model's activation.
        path: the checkpoint.
        source: the user's name for the checkpoint, for messages.
        registered: open_clip's name of the model if the checkpoint is not the model's own; None otherwise.

    Raises:
        SettingError: as `require_match` and `require_stated`.
    """
    stated = of_file(path)
    if stated is not None:
        require_match(name=name, built=built, weights=stated, source=source)
    elif registered is not None:
        require_stated(name=registered, built=built, source=source)


def require_match(*, name: str, built: Activation, weights: Activation, source: str) -> None:
    """Require that a model's activation is the one its weights were trained with.

    Raises:
        SettingError: they differ; names the model to use instead, if there is one.
    """
    if built == weights:
        return
    other = _twin(name, weights)
    advice = f"{other!r}" if other else f"a model with {weights}"
    raise SettingError(
        "model.name",
        name,
        f"{advice}: {source} was made with {weights}, this model builds {built} (or {_ANYWAY})",
    )


def require_stated(*, name: str, built: Activation, source: str) -> None:
    """Refuse a checkpoint that does not state its activation if both are likely.

    This is the case for a GELU architecture that OpenAI's weights also fit. Official fine-tunes need
    QuickGELU but do not record it, and open_clip's own GELU training writes files that look the same, so only
    the user knows. Every other architecture has a single activation, so nothing is required.

    Raises:
        SettingError: names the QuickGELU model.
    """
    other = _twin(name, "quickgelu")
    if built == "gelu" and other is not None:
        raise SettingError(
            "model.name",
            name,
            f"{other!r} for weights that descend from OpenAI's (DeGLA, NegCLIP, CE-CLIP): {source} does not "
            f"say which activation it was made with; if it was GELU, {_ANYWAY}",
        )


def _twin(name: str, activation: Activation) -> str | None:
    """Return the open_clip name of the same architecture with `activation`; None if there is no such name."""
    other = name + _SUFFIX if activation == "quickgelu" else name.removesuffix(_SUFFIX)
    return other if other != name and other in open_clip.list_models() else None
