"""The activation guard: weights made with QuickGELU silently score lower in a GELU model, and the reverse.

OpenAI's CLIP, and so everything fine-tuned from it (the published DeGLA, NegCLIP and CE-CLIP
checkpoints), uses QuickGELU. Since open_clip 2.29 plain `ViT-B-32` + `openai` builds GELU and only warns.
Here it stops.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, cast

import open_clip

from degla_ray.errors import SettingError
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
    config = path.parent / "open_clip_config.json"
    if path.name.startswith("open_clip_") and config.is_file():
        return of_config(json.loads(config.read_text(encoding="utf-8")).get("model_cfg", {}))
    return None


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
