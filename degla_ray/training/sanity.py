"""Warnings about settings and data that raise no error but make training pointless.

The driver prints those about settings before the workers start. The others need the model, so worker 0 writes
them to `progress.json`, from which the driver prints them. Each is one line, and training continues.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from degla_ray.config import ModelConfig, TrainConfig
from degla_ray.loader.samples import Samples
from degla_ray.model.source import SCENES_BASE


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The images and texts of a global batch among which the loss term `base` looks for each pair.

    Attributes:
        images: number of images.
        texts: mean number of captions and negatives.
    """

    images: int
    texts: float

    @classmethod
    def of(cls, samples: Samples, config: TrainConfig) -> Self:
        """Return the numbers for a run; missing negatives do not count."""
        images = config.global_batch_size * (1 if config.data.neighbours is None else 2)
        negatives = np.minimum(np.diff(samples.first_negative), config.objective.num_negatives)
        return cls(images=images, texts=images * (1.0 + float(negatives.mean())))

    def blind_loss(self, *, pairwise: bool) -> float:
        """Return `base` of a model that considers all candidates equally likely.

        Args:
            pairwise: whether the model has a logit_bias and therefore SigLIP's loss.
        """
        if pairwise:  # Each text matches with probability 1 / texts.
            others = self.texts - 1
            return math.log(self.texts) - (others * math.log(others / self.texts) if others else 0.0)
        return (math.log(self.images) + math.log(self.texts)) / 2


def long_warmup(config: TrainConfig, total_steps: int) -> str | None:
    """Return a warning if the learning rate is still rising when the run ends."""
    warmup = config.optimizer.warmup_steps
    if warmup < total_steps:
        return None
    return (
        f"warning: the warm-up (optimizer.warmup_steps {warmup}) takes the whole run of {total_steps} steps, "
        f"so the learning rate never decays; a tenth would be {total_steps // 10}"
    )


def scenes_model_on_other_data(model: ModelConfig, manifest: Mapping[str, Any]) -> str | None:
    """Return a warning if the demo's model is trained on data from another source than `scenes`.

    Args:
        model: the model to start from.
        manifest: manifest of the prepared data.
    """
    source = manifest["made_from"]["identity"].get("source")
    if model.name != SCENES_BASE or model.pretrained is not None or source in ("scenes", None):
        return None
    return (
        f"warning: model.name {SCENES_BASE!r} is a toy model that knows only rendered shapes, but "
        f"data.prepared has source {source!r}; choose an open_clip model, e.g. "
        "--model.name ViT-B-32-quickgelu --model.pretrained openai"
    )


def small_images(short_side: int, size: tuple[int, int]) -> str | None:
    """Return a warning if most images are smaller than the model's input.

    Args:
        short_side: median short side of the images in pixels.
        size: (height, width) of the model's input in pixels.
    """
    if short_side >= min(size):
        return None
    return (
        f"warning: half of the images have a short side of {short_side} pixels or less and are enlarged to "
        f"the model's {size[1]} x {size[0]}; prepare larger images or choose a model of lower resolution"
    )


def high_first_loss(base: float, candidates: Candidates, *, pairwise: bool) -> str | None:
    """Return a warning if a trained model starts worse than by guessing blindly.

    Args:
        base: loss term `base` of the first step, before any update.
        candidates: images and texts of a global batch.
        pairwise: whether the model has a logit_bias.
    """
    blind = candidates.blind_loss(pairwise=pairwise)
    if base <= blind:
        return None
    return (
        f"warning: the first loss (base {base:.2f}) is above blind guessing ({blind:.2f} for "
        f"{candidates.images:,} images and {candidates.texts:,.0f} texts): the model does not know this "
        "kind of data, or its preprocessing (model.mean, model.std) is wrong"
    )


def frozen_parameters(names: list[str]) -> str | None:
    """Return a line that names the frozen parts of the model with their numbers of parameters."""
    if not names:
        return None
    parts = Counter(name.partition(".")[0] for name in names)
    listed = ", ".join(f"{part} ({count})" for part, count in parts.items())
    return f"{len(names)} parameters that the loss does not reach are frozen: {listed}"


def initial_statistics(batch_norms: int, *, is_random: bool) -> str | None:
    """Return a warning if a model of random weights has BatchNorm, which keeps its stored statistics.

    Args:
        batch_norms: number of the model's BatchNorm layers.
        is_random: whether the model's weights are random.
    """
    if not (batch_norms and is_random):
        return None
    return (
        f"warning: the {batch_norms} BatchNorm layers of a model with random weights stay at mean 0 and "
        "variance 1, so they normalise nothing; start from trained weights or a tower without BatchNorm"
    )
