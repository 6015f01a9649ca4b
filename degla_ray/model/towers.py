"""The image tower of `scenes-base`, under a name that open_clip's configs can use.

It is timm's smallest norm-free network, whose last feature map is pooled to 2 x 2 cells instead of one
average. From an average, the relation "left of" is learned slowly; with cells from the start, every shape is
learned four times (docs/log.md has the comparison). A model is therefore trained with the average and gets
its cells afterwards, without a change of its features (`with_grid`). The network has no batch statistics, so
its results do not depend on the number of workers.

Importing this module registers `nfnet_grid` in timm. open_clip itself opens an exported folder of such a
model only after `import degla_ray.model.towers`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from timm import create_model
from timm.models import register_model
from timm.models.nfnet import NormFreeNet, model_cfgs
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

if TYPE_CHECKING:
    from degla_ray.model.loaded import LoadedModel

AVERAGED, WITH_GRID = "test_nfnet", "nfnet_grid"
CELLS = 2  # along each side


class GridNormFreeNet(NormFreeNet):
    """Norm-free network: float (B, 3, H, W) -> float (B, C * CELLS²). A channel's cells are adjacent."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(model_cfgs[AVERAGED], num_classes=0, **kwargs)
        self.num_features *= CELLS**2
        self.default_cfg: dict[str, Any] = {}  # open_clip reads it

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Do nothing, so that the cells stay; open_clip calls this to remove a classifier."""

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return adaptive_avg_pool2d(x, CELLS).flatten(1)


@register_model
def nfnet_grid(pretrained: bool = False, **kwargs: Any) -> GridNormFreeNet:
    """Return an untrained `test_nfnet` of timm (0.2 M parameters, stride 32) with cells, not an average."""
    given_by_timm = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
    return GridNormFreeNet(**{k: v for k, v in kwargs.items() if k not in given_by_timm})


def with_grid(loaded: LoadedModel) -> LoadedModel:
    """Return the model with cells instead of the average in its image tower, which must be `test_nfnet`.

    The features do not change: in the projection, each cell gets a quarter of the average's weight. The given
    model must not be used afterwards.
    """
    tower: Any = loaded.model.visual
    averaged, tower.trunk = tower.trunk, create_model(WITH_GRID)
    tower.trunk.load_state_dict(averaged.state_dict())
    projection_DC = tower.head.proj.weight.detach()
    cells_DC = projection_DC.repeat_interleave(CELLS**2, dim=1) / CELLS**2
    tower.head.proj = nn.Linear(cells_DC.shape[1], cells_DC.shape[0], bias=False)
    tower.head.proj.weight = nn.Parameter(cells_DC)
    vision_cfg = loaded.model_cfg["vision_cfg"] | {"timm_model_name": WITH_GRID, "timm_pool": ""}
    return replace(loaded, model_cfg=loaded.model_cfg | {"vision_cfg": vision_cfg})
