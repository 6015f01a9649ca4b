"""Conversion to and from Hugging Face's `CLIPModel`, which has the same tensors under other names.

`CLIPModel` has separate matrices for queries, keys and values where torch's attention has one, and transposed
projections. A model that it cannot represent is refused; the error names the setting (`timm_model_name`,
`pool_type`, `no_ln_pre`) or the tensor (`logit_bias`).
"""

from __future__ import annotations

import math
import re
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from safetensors.torch import save
from torch import Tensor

from degla_ray.errors import DataError
from degla_ray.model import preprocess
from degla_ray.model.files import CLIP_MODEL_CONFIG, CLIP_MODEL_WEIGHTS

if TYPE_CHECKING:
    from degla_ray.model.loaded import LoadedModel

CONFIG_FILE = CLIP_MODEL_CONFIG
WEIGHTS_FILE = CLIP_MODEL_WEIGHTS[0]
CLIP_VOCABULARY = 49408
_ARGMAX_EOS = 2
"""eos_token_id of the first CLIP configs; transformers then pools the token with the highest id."""

_NAMES = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # sic
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
}
_IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_NORM_EPS = 1e-5  # default of the layer norms in both libraries
# Fields of open_clip's towers that the export keeps, or that do not affect its files.
_SIZES = ("width", "layers", "mlp_ratio", "head_width", "heads", "patch_size", "image_size", "context_length")
_VALUES = ("norm_kwargs", "pos_embed_type", "vocab_size", "eos_id", "pad_id")
_OF_TOKENIZER = ("hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs")
_OF_TRAINING = ("patch_dropout", "timm_model_pretrained", "hf_model_pretrained")
_KEPT = _SIZES + _VALUES + _OF_TOKENIZER + _OF_TRAINING
_ALSO_PLAIN = {"pool_type": "eos", "block_type": "default"}
_TRANSPOSED = ("text_projection", "visual.proj")
_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+?)([._](?:weight|bias))")
_HF_BLOCK = re.compile(r"(text|vision)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")


def read_config(folder: Path) -> dict[str, Any]:
    """Return open_clip's model config for a `CLIPModel` folder.

    Raises:
        DataError: the towers' activations differ, or are neither GELU nor QuickGELU.
    """
    from transformers import CLIPConfig

    config = CLIPConfig.from_pretrained(folder)
    vision, text = config.vision_config, config.text_config
    activations = {vision.hidden_act, text.hidden_act}
    if activations not in ({"gelu"}, {"quick_gelu"}):
        raise DataError(str(folder), f"hidden_act {sorted(activations)}", "gelu or quick_gelu in both towers")
    text_cfg = {
        "context_length": text.max_position_embeddings,
        "vocab_size": text.vocab_size,
        "width": text.hidden_size,
        "heads": text.num_attention_heads,
        "layers": text.num_hidden_layers,
        "mlp_ratio": _mlp_ratio(text),
    }
    if text.eos_token_id not in (_ARGMAX_EOS, text.vocab_size - 1):
        text_cfg |= {"pool_type": "eos", "eos_id": text.eos_token_id}
    if text.vocab_size != CLIP_VOCABULARY:
        text_cfg["hf_tokenizer_name"] = "."
    model_cfg: dict[str, Any] = {
        "embed_dim": config.projection_dim,
        "quick_gelu": activations == {"quick_gelu"},
        "vision_cfg": {
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "width": vision.hidden_size,
            "layers": vision.num_hidden_layers,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "mlp_ratio": _mlp_ratio(vision),
        },
        "text_cfg": text_cfg,
    }
    for tower, theirs in (("vision_cfg", vision), ("text_cfg", text)):
        if theirs.layer_norm_eps != _NORM_EPS:
            model_cfg[tower]["norm_kwargs"] = {"eps": theirs.layer_norm_eps}
    return model_cfg


def _mlp_ratio(tower: Any) -> float:
    """Return a ratio from which open_clip, rounding down, recovers the inner size (240 of 176, not 239)."""
    inner, width = tower.intermediate_size, tower.hidden_size
    ratio: float = inner / width
    return ratio if int(width * ratio) == inner else math.nextafter(ratio, math.inf)


def has_its_names(state: dict[str, Tensor]) -> bool:
    """Return whether a state dict has the names of a `CLIPModel`."""
    return any(name.startswith(("text_model.", "vision_model.")) for name in state)


def from_huggingface(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a `CLIPModel`'s state dict under open_clip's names; unknown names are kept."""
    ours = {theirs: name for name, theirs in _NAMES.items()}
    parts = {theirs: name for name, theirs in _IN_BLOCK.items()}
    found: dict[str, Tensor] = {}
    attention: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if name.endswith("position_ids"):  # a buffer in older versions
            continue
        if name in ours:
            found[ours[name]] = tensor.T if ours[name] in _TRANSPOSED else tensor
        elif block := _HF_BLOCK.fullmatch(name):
            tower, number, part, kind = block.groups()
            prefix = f"{'visual.' if tower == 'vision' else ''}transformer.resblocks.{number}"
            if part in parts:
                found[f"{prefix}.{parts[part]}.{kind}"] = tensor
            else:
                attention.setdefault(f"{prefix}.attn.in_proj_{kind}", {})[part.removeprefix("self_attn.")] = (
                    tensor
                )
        else:
            found[name] = tensor
    for name, qkv in attention.items():
        found[name] = torch.cat([qkv[part] for part in ("q_proj", "k_proj", "v_proj")])
    return {name: tensor.contiguous() for name, tensor in found.items()}


def to_huggingface(state: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return open_clip's state dict under `CLIPModel`'s names.

    Raises:
        DataError: a tensor has no counterpart in `CLIPModel`; `where` names the model.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        name = name.removeprefix("text.")  # CustomTextCLIP
        block = _BLOCK.fullmatch(name)
        if name == "logit_scale":  # [1] in some of open_clip's models
            found[name] = tensor.reshape(())
        elif name in _NAMES:
            found[_NAMES[name]] = tensor.T if name in _TRANSPOSED else tensor
        elif block and (block[3] in _IN_BLOCK or block[3] == "attn.in_proj"):
            tower = "vision" if block[1] else "text"
            prefix, kind = f"{tower}_model.encoder.layers.{block[2]}", block[4][1:]
            if block[3] in _IN_BLOCK:
                found[f"{prefix}.{_IN_BLOCK[block[3]]}.{kind}"] = tensor
                continue
            for part, third in zip(("q", "k", "v"), tensor.chunk(3), strict=True):
                found[f"{prefix}.self_attn.{part}_proj.{kind}"] = third
        else:
            raise DataError(where, f"a tensor {name!r}", "CLIP's two transformers, as in CLIPModel")
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in found.items()}


def files(model: LoadedModel) -> dict[str, bytes]:
    """Return name -> content of the files that `CLIPModel`, `CLIPImageProcessor` and `AutoTokenizer` open.

    Raises:
        DataError: the model or its preprocessing cannot be represented.
    """
    from transformers import CLIPImageProcessor

    height, width = model.preprocess_cfg["size"]
    if height != width:
        raise DataError(model.name, f"images of {height} x {width} pixels", "square images")
    processor = preprocess.to_processor(model.preprocess_cfg, model.name)
    config = _config(model.model_cfg, height, model.name)
    weights = to_huggingface(model.model.state_dict(), model.name)
    content = {
        WEIGHTS_FILE: save(weights, metadata={"format": "pt"}),
        CONFIG_FILE: config.to_json_string().encode(),
    }
    with tempfile.TemporaryDirectory(prefix="degla-") as folder:
        CLIPImageProcessor(**processor).save_pretrained(folder)
        _hf_tokenizer(model.tokenizer).save_pretrained(folder)
        content |= {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
    return content


def _config(model_cfg: dict[str, Any], image_size: int, where: str) -> Any:
    from transformers import CLIPConfig

    vision = asdict(CLIPVisionCfg(**model_cfg["vision_cfg"]))
    text = asdict(CLIPTextCfg(**model_cfg["text_cfg"]))
    _require_plain(CLIPVisionCfg(), vision, f"{where}: vision_cfg")
    _require_plain(CLIPTextCfg(), text, f"{where}: text_cfg")
    activation = "quick_gelu" if model_cfg.get("quick_gelu") else "gelu"
    eos = text["eos_id"] if text["pool_type"] == "eos" else _ARGMAX_EOS
    return CLIPConfig(
        projection_dim=model_cfg["embed_dim"],
        architectures=["CLIPModel"],
        vision_config={
            "hidden_size": vision["width"],
            "intermediate_size": int(vision["width"] * vision["mlp_ratio"]),
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["width"] // vision["head_width"],
            "image_size": image_size,
            "patch_size": vision["patch_size"],
            "layer_norm_eps": _norm_eps(vision, f"{where}: vision_cfg"),
            "hidden_act": activation,
            "projection_dim": model_cfg["embed_dim"],
        },
        text_config={
            "hidden_size": text["width"],
            "intermediate_size": int(text["width"] * text["mlp_ratio"]),
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "max_position_embeddings": text["context_length"],
            "vocab_size": text["vocab_size"],
            "layer_norm_eps": _norm_eps(text, f"{where}: text_cfg"),
            "hidden_act": activation,
            "eos_token_id": eos,
            "projection_dim": model_cfg["embed_dim"],
        },
    )


def _require_plain(defaults: Any, cfg: dict[str, Any], where: str) -> None:
    """Refuse a field that affects the tower's output and has no counterpart in `CLIPConfig`."""
    for name, value in cfg.items():
        plain = getattr(defaults, name)
        if name not in _KEPT and value not in (plain, _ALSO_PLAIN.get(name, plain)):
            raise DataError(where, f"{name} {value!r}", f"{plain!r}, as CLIPModel supports nothing else")
    if not isinstance(cfg["layers"], int):
        raise DataError(where, f"layers {cfg['layers']}", "a number of transformer blocks, as in CLIPModel")


def _norm_eps(cfg: dict[str, Any], where: str) -> float:
    given = cfg.get("norm_kwargs") or {}
    if unknown := sorted(set(given) - {"eps"}):
        raise DataError(where, f"norm_kwargs {', '.join(unknown)}", "eps alone, as in CLIPModel")
    return float(given.get("eps", _NORM_EPS))


def _hf_tokenizer(tokenizer: Any) -> Any:
    if isinstance(tokenizer, HFTokenizer):
        return tokenizer.tokenizer
    from transformers import CLIPTokenizer

    assert isinstance(tokenizer, SimpleTokenizer)
    special = {tokenizer.sot_token_id: "<|startoftext|>", tokenizer.eot_token_id: "<|endoftext|>"}
    merges = sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.__getitem__)
    return CLIPTokenizer(
        vocab={special.get(number, token): number for token, number in tokenizer.encoder.items()},
        merges=merges,
        model_max_length=tokenizer.context_length,
    )
