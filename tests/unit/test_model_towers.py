"""The image tower of the small models."""

from __future__ import annotations

import timm
import torch

from degla_ray.config import ModelConfig
from degla_ray.model import encode_image, load
from degla_ray.model.build import build
from degla_ray.model.export import export
from degla_ray.model.towers import CELLS, with_grid

IMAGES_BCHW = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_nfnet_grid_gives_the_cells_of_its_map():
    tower = timm.create_model("nfnet_grid").eval()
    tower.reset_classifier(0, global_pool="avg")  # as open_clip does
    cells_BCHW = tower(IMAGES_BCHW).view(2, -1, CELLS, CELLS)
    assert torch.equal(cells_BCHW, tower.forward_features(IMAGES_BCHW))
    assert tower(IMAGES_BCHW.repeat(1, 1, 2, 2)).shape == (2, tower.num_features)


@torch.no_grad()
def test_with_grid_keeps_the_features_also_when_exported(tmp_path):
    averaged = build(ModelConfig(name="scenes-tiny", random_init=True))
    expected_BD = encode_image(averaged.model.eval(), IMAGES_BCHW)
    grid = with_grid(averaged)
    assert torch.allclose(encode_image(grid.model.eval(), IMAGES_BCHW), expected_BD, atol=1e-6)
    export(grid, str(tmp_path))
    assert torch.equal(
        encode_image(load(str(tmp_path)).model, IMAGES_BCHW), encode_image(grid.model, IMAGES_BCHW)
    )
