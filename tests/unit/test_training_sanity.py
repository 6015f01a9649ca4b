"""Warnings about runs that raise no error but cannot go well."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from degla_ray.config import DataConfig, ModelConfig, ObjectiveConfig, OptimizerConfig, TrainConfig
from degla_ray.objectives import Features, losses
from degla_ray.stage import StageFolder
from degla_ray.training import sanity
from degla_ray.training.sanity import Candidates
from tests.unit.test_training_tokens import samples_of

B, K, D = 6, 3, 8


def config_of(**settings: object) -> TrainConfig:
    defaults: dict[str, object] = {"name": "x", "data": DataConfig(prepared="p", negatives="n")}
    defaults["model"] = ModelConfig(name="scenes-base")
    return TrainConfig(**(defaults | settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(("steps", "warns"), [(49, True), (50, True), (51, False)])
def test_long_warmup_warns_when_no_step_is_left_after_it(steps: int, warns: bool) -> None:
    warning = sanity.long_warmup(config_of(optimizer=OptimizerConfig(warmup_steps=50)), steps)
    assert (warning is not None) == warns
    if warning:
        assert "optimizer.warmup_steps 50" in warning
        assert f"{steps} steps" in warning


@pytest.mark.parametrize(
    ("model", "source", "warns"),
    [
        (ModelConfig(name="scenes-base"), "csv", True),
        (ModelConfig(name="scenes-base"), "scenes", False),
        (ModelConfig(name="scenes-base"), None, False),
        (ModelConfig(name="ViT-B-32", pretrained="openai"), "csv", False),
    ],
)
def test_scenes_model_warns_on_data_of_another_source(
    tmp_path: Path, model: ModelConfig, source: str | None, warns: bool
) -> None:
    manifest = StageFolder(str(tmp_path), "prepare", {"source": source}, num_shards=1).manifest
    assert (sanity.scenes_model_on_other_data(model, manifest) is not None) == warns


@pytest.mark.parametrize(("short_side", "warns"), [(223, True), (224, False), (480, False)])
def test_small_images_warn_below_the_models_resolution(short_side: int, warns: bool) -> None:
    assert (sanity.small_images(short_side, (224, 224)) is not None) == warns


def test_candidates_count_only_the_negatives_that_exist_and_are_drawn() -> None:
    samples = samples_of({"a": ["1", "2", "3", "4", "5"], "b": ["1"], "c": [], "d": ["1", "2"]})
    config = config_of(global_batch_size=8, objective=ObjectiveConfig(negatives_per_caption=4))
    assert Candidates.of(samples, config) == Candidates(images=8, texts=8 * (1 + (4 + 1 + 0 + 2) / 4))
    no_negatives = dataclasses.replace(config, objective=ObjectiveConfig(name="clip"))
    assert Candidates.of(samples, no_negatives) == Candidates(images=8, texts=8)
    doubled = dataclasses.replace(
        config,
        objective=ObjectiveConfig(name="negclip"),
        data=dataclasses.replace(config.data, neighbours="folder"),
    )
    assert Candidates.of(samples, doubled) == Candidates(images=16, texts=16 * (1 + 3 / 4))


@pytest.mark.parametrize("bias", [None, 0.0])
def test_blind_loss_is_the_objectives_own_for_a_model_that_sees_nothing(bias: float | None) -> None:
    """All features equal: every candidate is as likely as any other."""
    one_D = F.normalize(torch.ones(D), dim=0)
    mask_BK = torch.ones(B, K, dtype=torch.bool)
    mask_BK[0, 1:] = False
    features = Features(
        img_BD=one_D.expand(B, D),
        txt_BD=one_D.expand(B, D),
        neg_BKD=one_D.expand(B, K, D),
        neg_mask_BK=mask_BK,
    )
    texts = B + int(mask_BK.sum())
    candidates = Candidates(images=B, texts=texts)
    logit_bias = None
    if bias is not None:  # SigLIP's best constant answer: each text matches with probability 1 / texts
        logit_bias = torch.tensor(-1.0 + math.log(1 / (texts - 1)))
    terms = losses(features, torch.tensor(1.0), ObjectiveConfig(name="negclip"), logit_bias=logit_bias)
    blind = candidates.blind_loss(pairwise=bias is not None)
    assert terms["base"].item() == pytest.approx(blind, rel=1e-5)


def test_high_first_loss_warns_above_blind_guessing_and_says_what_it_means() -> None:
    candidates = Candidates(images=256, texts=1280.0)
    blind = (math.log(256) + math.log(1280)) / 2
    assert sanity.high_first_loss(np.nextafter(blind, 0), candidates, pairwise=False) is None
    warning = sanity.high_first_loss(blind + 0.1, candidates, pairwise=False)
    assert warning is not None
    assert f"{blind:.2f}" in warning
    assert "does not know this kind of data" in warning
    assert "model.mean" in warning


def test_frozen_parameters_are_named_by_part_with_their_numbers() -> None:
    assert sanity.frozen_parameters([]) is None
    line = sanity.frozen_parameters(["text_decoder.a", "text_decoder.b", "head.c"])
    assert line == "3 parameters that the loss does not reach are frozen: text_decoder (2), head (1)"


def test_initial_statistics_are_warned_of_only_with_random_weights_and_batch_norm():
    warning = sanity.initial_statistics(3, is_random=True)
    assert warning.startswith("warning: the 3 BatchNorm layers of a model with random weights")
    assert sanity.initial_statistics(3, is_random=False) is None
    assert sanity.initial_statistics(0, is_random=True) is None
