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
