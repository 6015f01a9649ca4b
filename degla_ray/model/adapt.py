"""Which weights of a model are trained, how fast, and through what: freezing, layer-wise rates, LoRA.

LoRA (arXiv 2106.09685) lies on attention's in- and out-projections and the MLPs of open_clip's transformer
blocks, in both towers, as parametrizations of torch: whoever reads such a weight gets W + B·A·alpha/rank.
(peft 0.21 adds the product of an out-projection of `nn.MultiheadAttention` twice, forward too:
huggingface/peft#3774.) The teacher and an exported model are plain, with the products added for good.
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

_BLOCK = re.compile(r"\b(?:resblocks|blocks|stages|layers)\.(\d+)\.")
_ORIGINAL = re.compile(r"\.parametrizations\.(\w+)\.original")
_SCALARS = ("logit_scale", "logit_bias")


def adapt(model: nn.Module, config: AdaptConfig) -> None:
    """Freezes and adds adapters in place. What is then trained is what requires gradients.

    Raises:
        SettingError: more blocks to freeze than there are, or no blocks to adapt.
    """
    staying = {"image": config.freeze_image_blocks, "text": config.freeze_text_blocks, "": 0}
    there = _blocks(model)
    for tower, blocks in staying.items():
        if blocks > there[tower]:
            raise SettingError(
                f"adapt.freeze_{tower}_blocks", blocks, f"at most {there[tower]}, which the tower has"
            )
    if config.lora_rank:
        _add_lora(model, config)
    for name, parameter in model.named_parameters():
        tower = _tower(name)
        # freezing the first blocks freezes what lies before them too
        if tower == config.freeze or (staying[tower] and _depth(name, there[tower]) <= staying[tower]):
            parameter.requires_grad_(False)


def rate_factors(model: nn.Module, config: AdaptConfig) -> dict[str, float]:
    """What the learning rate is multiplied with, for each parameter's name.

    `layer_decay` to the power of the number of blocks that lie above it in its tower (the first embedding
    is one below the first block, what follows the last block and the logits' scalars have 1), and
    `lora_rate` for adapters.
    """
    blocks, factors = _blocks(model), {}
    for name, _ in model.named_parameters():
        tower = _tower(name)
        above = 0 if tower == "" else blocks[tower] + 1 - _depth(name, blocks[tower])
        factors[name] = config.layer_decay**above * (config.lora_rate if _is_adapter(name) else 1.0)
    return factors


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """Name -> value of every parameter of the model without adapters, with what they add; no gradient."""
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
    """A plain copy: the adapters' products added to the weights, the adapters gone, everything trainable."""
    plain = copy.deepcopy(model)
    for module in [m for m in plain.modules() if parametrize.is_parametrized(m)]:
        # torch makes a class for each such module; a copy shares it, and would undo the original's too
        own = type(module)
        module.__class__ = type(own.__name__, own.__bases__, dict(own.__dict__))
        for weight in list(module.parametrizations):  # type: ignore[arg-type]
            parametrize.remove_parametrizations(module, weight, leave_parametrized=True)
    return plain.requires_grad_(True)


class _LoRA(nn.Module):
    """W -> W + B·A·scale; B begins at 0, so it begins as W."""

    def __init__(self, weight_OI: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        outputs, inputs = weight_OI.shape
        self.scale = scale
        self.A_RI = nn.Parameter(weight_OI.new_empty(rank, inputs))
        self.B_OR = nn.Parameter(weight_OI.new_zeros(outputs, rank))
        nn.init.kaiming_uniform_(self.A_RI, a=math.sqrt(5))  # as the paper's code

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
    """`image`, `text`, or nothing for the logits' scalars."""
    if name in _SCALARS:
        return ""
    return "image" if name.startswith("visual.") else "text"


def _blocks(model: nn.Module) -> dict[str, int]:
    """Blocks of each tower."""
    blocks = {"image": 0, "text": 0, "": 0}
    for name, _ in model.named_parameters():
        if found := _BLOCK.search(name):
            blocks[_tower(name)] = max(blocks[_tower(name)], int(found[1]) + 1)
    return blocks


def _depth(name: str, blocks: int) -> int:
    """0: before the first block; 1 to `blocks`: in one; one more: after the last."""
    if found := _BLOCK.search(name):
        return int(found[1]) + 1
    before = ("conv1", "ln_pre", "stem", "embed")
    return 0 if any(part in name for part in before) else blocks + 1
