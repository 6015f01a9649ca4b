"""Weights between two models."""

import pytest
import torch
from tiny_models import write_config

from degla_ray.config import ModelConfig
from degla_ray.errors import DataError
from degla_ray.model.build import build
from degla_ray.model.interpolate import interpolate


@pytest.fixture
def two(tmp_path):
    name = write_config(tmp_path / "one")
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(build(ModelConfig(name=name)))
    return models


def test_interpolate_ends_are_the_models_and_the_middle_is_their_mean(two):
    first, second = two
    for alpha, expected in (
        (0.0, lambda a, b: a),
        (1.0, lambda a, b: b),
        (0.5, lambda a, b: (a + b) / 2),
        (0.25, lambda a, b: 0.75 * a + 0.25 * b),
    ):
        between = interpolate(first, second, alpha).model.state_dict()
        for name, tensor in between.items():
            wanted = expected(first.model.state_dict()[name], second.model.state_dict()[name])
            assert torch.allclose(tensor, wanted, atol=1e-7), (alpha, name)
    assert not torch.equal(first.model.visual.proj, second.model.visual.proj)


def test_interpolate_of_other_architectures_is_refused(two, tmp_path):
    wider = build(ModelConfig(name=write_config(tmp_path / "wide", text={"layers": 3})))
    with pytest.raises(DataError, match=r"tensors that differ \(transformer\.resblocks\.2"):
        interpolate(two[0], wider, 0.5)
    quick = build(ModelConfig(name=write_config(tmp_path / "quick", quick_gelu=True)))
    with pytest.raises(DataError, match=r"activation quickgelu"):
        interpolate(two[0], quick, 0.5)
