"""Partial fine-tuning: frozen weights, layer-wise learning rates and LoRA adapters.

LoRA (arXiv 2106.09685) is applied to attention's in- and out-projections and to the MLPs of open_clip's
transformer blocks in both towers. The adapters are torch parametrizations, so reading such a weight gives
W + B·A·alpha/rank. (peft 0.21 adds the product of `nn.MultiheadAttention`'s out-projection twice, in the
forward pass too: huggingface/peft#3774.) The teacher and exported models have no adapters; their weights
include the products.
"""

from __future__ import annotations

import copy
import math
import re

from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn.utils import parametrize

from degla_ray.config import AdaptConfig
from degla_ray.errors import SettingError
from degla_ray.model import frozen

# Blocks of open_clip (resblocks), timm (blocks, stages, layers), BERT (layer), T5 (block), ResNets (layer1).
_BLOCK = re.compile(r"\b(?:(?:resblocks|blocks?|stages|layers?)\.(?P<from_0>\d+)|layer(?P<from_1>\d+))\.")
_HEAD = re.compile(r"(visual\.(proj|head\.)|(text\.)?text_projection|text\.proj\.)")
_ORIGINAL = re.compile(r"\.parametrizations\.(\w+)\.original")
_SCALARS = ("logit_scale", "logit_bias")


def adapt(model: nn.Module, config: AdaptConfig) -> None:
    """Freeze weights and add adapters in place; parameters that still require gradients are trained.

    Modules without a trained parameter stay in eval mode from then on, so a frozen part has no dropout. Every
    BatchNorm keeps its stored statistics, so the result does not depend on the number of workers.

    Raises:
        SettingError: the tower has fewer blocks than are to be frozen, the model has no blocks to adapt, or
            it has no frozen trunk whose outputs could be cached.
    """
    frozen_blocks = {"image": config.freeze_image_blocks, "text": config.freeze_text_blocks, "": 0}
    available = _blocks(model)
    for tower, blocks in frozen_blocks.items():
        if blocks > available[tower]:
            raise SettingError(
                f"adapt.freeze_{tower}_blocks", blocks, f"at most {available[tower]}, the tower's blocks"
            )
    if config.lora_rank:
        _add_lora(model, config)
    depths = _depths(model)
    for name, parameter in model.named_parameters():
        tower = _tower(name)
        is_trunk = tower != "" and not _HEAD.match(name)
        # Freezing the first blocks also freezes the layers before them.
        in_first = frozen_blocks[tower] and depths[name] <= frozen_blocks[tower]
        if tower == config.freeze or (config.freeze == "trunks" and is_trunk) or in_first:
            parameter.requires_grad_(False)
    frozen.keep_in_eval_mode(model)
    frozen.keep_statistics(model)
    if config.cache_frozen and not frozen.cache_outputs(model):
        raise SettingError(
            "adapt.cache_frozen", True, "false: no trunk of timm or Hugging Face is frozen as a whole"
        )


def lr_multipliers(model: nn.Module, config: AdaptConfig) -> dict[str, float]:
    """Return each parameter's learning-rate multiplier, by name.

    It is `layer_decay` to the power of the number of layers above the parameter in its tower: 0 after the
    last block and for the logit scalars, 1 in the last block, the number of blocks + 1 for the embeddings
    before the first. For adapters it is multiplied by `lora_lr_multiplier`.
    """
    blocks, depths, multipliers = _blocks(model), _depths(model), {}
    for name, _ in model.named_parameters():
        tower = _tower(name)
        above = 0 if tower == "" else blocks[tower] + 1 - depths[name]
        rate = config.lora_lr_multiplier if _is_adapter(name) else 1.0
        multipliers[name] = config.layer_decay**above * rate
    return multipliers


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """Return name -> value of every parameter with the adapters' products added; without gradient."""
    state = {
        _ORIGINAL.sub(r".\1", name): parameter.detach()
        for name, parameter in model.named_parameters()
        if not _is_adapter(name)
    }
    for name, module in model.named_modules():
        for weight in getattr(module, "parametrizations", {}):
            state[f"{name}.{weight}"] = getattr(module, weight).detach()
    return state


def merged(model: nn.Module) -> nn.Module:
    """Return a trainable copy without adapters, whose weights include the adapters' products."""
    plain = copy.deepcopy(model)
    for module in [m for m in plain.modules() if parametrize.is_parametrized(m)]:
        # torch creates a class for each such module. A copy shares it, and removal would change both.
        own = type(module)
        module.__class__ = type(own.__name__, own.__bases__, dict(own.__dict__))
        for weight in list(module.parametrizations):  # type: ignore[arg-type]
            parametrize.remove_parametrizations(module, weight, leave_parametrized=True)
    return plain.requires_grad_(True)


class _LoRA(nn.Module):
    """Parametrization W -> W + B·A·scale; B is initialised to 0, so training starts at W."""

    def __init__(self, weight_OI: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        outputs, inputs = weight_OI.shape
        self.scale = scale
        self.A_RI = nn.Parameter(weight_OI.new_empty(rank, inputs))
        self.B_OR = nn.Parameter(weight_OI.new_zeros(outputs, rank))
        nn.init.kaiming_uniform_(self.A_RI, a=math.sqrt(5))  # as in the paper's code

    def forward(self, weight_OI: Tensor) -> Tensor:
        return weight_OI + self.scale * (self.B_OR @ self.A_RI)


def _add_lora(model: nn.Module, config: AdaptConfig) -> None:
    blocks = [m for m in model.modules() if isinstance(m, ResidualAttentionBlock)]
    if not blocks:
        raise SettingError("adapt.lora_rank", config.lora_rank, "0: this model has no transformer blocks")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in _SCALARS)
    scale = (config.lora_rank if config.lora_alpha is None else config.lora_alpha) / config.lora_rank
    for block in blocks:
        for module, weight in (
            (block.attn, "in_proj_weight"),
            (block.attn.out_proj, "weight"),
            (block.mlp.c_fc, "weight"),
            (block.mlp.c_proj, "weight"),
        ):
            lora = _LoRA(getattr(module, weight), config.lora_rank, scale)
            parametrize.register_parametrization(module, weight, lora)


def _is_adapter(name: str) -> bool:
    return name.endswith((".A_RI", ".B_OR"))


def _tower(name: str) -> str:
    """Return `image`, `text`, or "" for the logit scalars."""
    if name in _SCALARS:
        return ""
    return "image" if name.startswith("visual.") else "text"


def _blocks(model: nn.Module) -> dict[str, int]:
    """Return the number of blocks of each tower."""
    blocks = {"image": 0, "text": 0, "": 0}
    for name, _ in model.named_parameters():
        blocks[_tower(name)] = max(blocks[_tower(name)], _block(name) or 0)
    return blocks


def _depths(model: nn.Module) -> dict[str, int]:
    """Return each parameter's depth in its tower: 0 before the first block, 1 to N inside one, N + 1 after.

    Modules are registered in the order of the forward pass, so a parameter that is listed before the first
    block also precedes it. Two exceptions are recognised by name: open_clip registers its projections before
    the blocks, and the embeddings of its text tower after them.
    """
    blocks, depths = _blocks(model), {}
    reached = {"image": False, "text": False, "": False}
    for name, _ in model.named_parameters():
        tower, block = _tower(name), _block(name)
        reached[tower] |= block is not None
        before = "embed" in name or not (reached[tower] or _HEAD.match(name) or blocks[tower] == 0)
        depths[name] = block if block is not None else 0 if before else blocks[tower] + 1
    return depths


def _block(name: str) -> int | None:
    """Return the number of the block that contains a parameter, counted from 1; None outside the blocks."""
    found = _BLOCK.search(name)
    if found is None:
        return None
    return int(found["from_1"] or int(found["from_0"]) + 1)
