"""The activation guard: weights made with QuickGELU silently score lower in a GELU model, and the reverse.

OpenAI's CLIP, and so everything fine-tuned from it (the published DeGLA, NegCLIP and CE-CLIP
checkpoints), uses QuickGELU. Since open_clip 2.29 plain `ViT-B-32` + `openai` builds GELU and only warns.
Here it stops.
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
    """The activation that an open_clip model config builds."""
    return "quickgelu" if model_cfg.get("quick_gelu", False) else "gelu"


def of_file(path: Path) -> Activation | None:
    """The activation a checkpoint states, in its header or in a config beside it; none if it does not."""
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
    """What `CLIPModel`'s config states; transformers' own default is QuickGELU."""
    towers = [config.get(tower) or {} for tower in ("vision_config", "text_config")]
    names = {tower.get("hidden_act", "quick_gelu") for tower in towers}
    return {"quick_gelu": "quickgelu", "gelu": "gelu"}.get(names.pop()) if len(names) == 1 else None  # type: ignore[return-value]


def require_tag(*, name: str, built: Activation, tag: str) -> None:
    """Stops unless the model of open_clip's `name` has the activation of the weights behind its `tag`.

    Raises:
        SettingError: as `require_match`.
    """
    made_with: Activation = "quickgelu" if get_pretrained_cfg(name, tag).get("quick_gelu") else "gelu"
    require_match(name=name, built=built, weights=made_with, source=f"tag {tag!r}")


def require_file(
    *, name: str, built: Activation, path: Path, source: str, registered: str | None = None
) -> None:
    """Stops unless a checkpoint's activation is the model's, or where nobody can know it.

    Args:
        name: of the model, for messages.
        built: the model's activation.
        path: the checkpoint.
        source: what the user called it.
        registered: open_clip's name of the model, where the checkpoint comes from elsewhere.

    Raises:
        SettingError: as `require_match` and `require_stated`.
    """
    stated = of_file(path)
    if stated is not None:
        require_match(name=name, built=built, weights=stated, source=source)
    elif registered is not None:
        require_stated(name=registered, built=built, source=source)


def require_match(*, name: str, built: Activation, weights: Activation, source: str) -> None:
    """Stops unless a model's activation is the one its weights were made with.

    Raises:
        SettingError: they differ; names the model to take instead where there is one.
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
    """Stops where a checkpoint does not state its activation and both are likely.

    That is: a GELU architecture that OpenAI's weights also fit. Its official fine-tunes need QuickGELU and
    carry no mark of it, while open_clip's own GELU training writes files that look the same; only the user
    can know. Any other architecture has one activation, so nothing is asked.

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
    """The open_clip name of the same architecture with `activation`, if there is one."""
    other = name + _SUFFIX if activation == "quickgelu" else name.removesuffix(_SUFFIX)
    return other if other != name and other in open_clip.list_models() else None
