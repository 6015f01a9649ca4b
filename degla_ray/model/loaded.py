"""A model with its tokenizer, preprocessing, activation and the source of its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from torch import Tensor, nn

from degla_ray.model.activation import Activation
from degla_ray.model.preprocess import eval_transform
from degla_ray.model.source import RANDOM


@dataclass(kw_only=True)
class LoadedModel:
    """Model ready to encode, on the CPU, in train mode as open_clip leaves it.

    Attributes:
        model: open_clip CLIP or CustomTextCLIP; encode with `degla_ray.model.encode`.
        tokenizer: list of B captions -> int64 [B, context_length]; `context_length` may be passed.
        preprocess_cfg: open_clip's preprocess config: size (height, width), mean, std, interpolation,
            resize_mode, …
        activation: activation function of the MLPs.
        name: the model's name in the settings.
        model_cfg: open_clip's model config, as in its JSON files.
        source: origin of the weights: a tag, path or name, or `RANDOM`.
    """

    model: nn.Module
    tokenizer: Callable[..., Tensor]
    preprocess_cfg: dict[str, Any]
    activation: Activation
    name: str
    model_cfg: dict[str, Any] = field(repr=False)
    source: str = RANDOM

    @property
    def transform(self) -> Callable[[Image.Image], Tensor]:
        """PIL image -> float32 tensor [3, H, W], as the model's preprocessing says."""
        return eval_transform(self.preprocess_cfg)

    @property
    def is_random(self) -> bool:
        """Whether the weights are random: neither trained nor loaded."""
        return self.source == RANDOM
