"""Tiny models for the model tests: seconds to build, of every text tower that matters."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from degla_ray.model.tokenizer import train_tokenizer

torch.set_num_threads(1)  # these models are so small that threads only wait for each other

CAPTIONS = [
    "a large red circle to the left of a small blue square",
    "two green triangles above a striped yellow star",
    "there is a picture of a cat",
]
TEXT = {"context_length": 32, "vocab_size": 400, "width": 32, "heads": 2, "layers": 2}
TEXT["hf_tokenizer_name"] = "tokenizer"  # type: ignore[assignment]
VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}


def write_config(
    folder: Path, *, text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None, **top: Any
) -> str:
    """An open_clip JSON config with a tokenizer of its own beside it; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(_tokenizer(), folder / "tokenizer")
    config = {"embed_dim": 16, "vision_cfg": VISION | (vision or {}), "text_cfg": TEXT | (text or {}), **top}
    path = folder / "tiny.json"
    path.write_text(json.dumps(config))
    return str(path)


@functools.cache
def _tokenizer() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="degla-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    train_tokenizer(CAPTIONS, 400, folder)
    return folder


EFFICIENTNET = {
    "timm_model_name": "test_efficientnet",  # has batch statistics
    "timm_pool": "avg",
    "timm_proj": "mlp",
    "image_size": 32,
}
"""vision_cfg of timm's smallest EfficientNet with a two-layer head."""
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    "roberta": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "pad_token_id": 0,
        "max_position_embeddings": 64,
    },
    "mt5": {"d_model": 32, "num_layers": 2, "num_heads": 2, "d_ff": 64, "d_kv": 16, "pad_token_id": 0},
}
"""Hugging Face encoders in miniature: model type -> fields of its config."""


def write_adapters(folder: Path, encoder: str = "bert", vocab_size: int = 400, **text: Any) -> str:
    """Write a config of a timm image tower and a Hugging Face text tower; return its path.

    The encoder's config is in a folder beside it, as the tokenizer is.
    """
    config = AutoConfig.for_model(encoder, vocab_size=vocab_size, **ENCODERS[encoder])
    config.save_pretrained(folder / "encoder")
    of_text = {
        "hf_model_name": "encoder",
        "hf_tokenizer_name": "tokenizer",
        "hf_pooler_type": "mean_pooler",
        "hf_proj_type": "mlp",
        "context_length": 32,
    }
    return write_config(folder, text=of_text | text, vision=EFFICIENTNET)
