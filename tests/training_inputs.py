"""Tiny prepared and negatives folders, written by hand, for tests of training."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from degla_ray.config import (
    CheckpointConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    TrackingConfig,
    TrainConfig,
)
from degla_ray.schema import CAPTIONS, IMAGES, NEGATIVES, Kind
from degla_ray.sources.write_images import write_images
from degla_ray.stage import StageFolder, shard_of

Row = dict[str, Any]
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (240, 240, 240)}
PLACES = {"left": (2, 8), "right": (18, 8), "top": (10, 1), "bottom": (10, 18)}
MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}


def png(colour: tuple[int, int, int], place: tuple[int, int], noise: int) -> bytes:
    pixels = np.random.default_rng(noise).integers(0, 40, (32, 32, 3), dtype=np.uint8)
    x, y = place
    pixels[y : y + 12, x : x + 12] = colour
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def write_inputs(folder: Path, *, images: int = 30, num_shards: int = 2, broken: str | None = None) -> Path:
    """prepared/ (two captions an image, split `train`), negatives/ (0 to 5 a caption) and model.json.

    Args:
        folder: where to.
        images: how many.
        num_shards: of both folders; what is trained on must not depend on it.
        broken: image_id of an image that does not decode.
    """
    prepared = StageFolder(
        str(folder / "prepared"), "prepare", {"images": images, "made": "by hand"}, num_shards
    )
    negatives = StageFolder(str(folder / "negatives"), "negatives", {"images": images}, num_shards)
    image_rows: list[list[Row]] = [[] for _ in range(num_shards)]
    captions: list[list[Row]] = [[] for _ in range(num_shards)]
    wrong: list[list[Row]] = [[] for _ in range(num_shards)]
    for number in range(images):
        image_id = f"img{number:04d}"
        colour = list(COLOURS)[number % 4]
        place = list(PLACES)[number // 4 % 4]
        data = b"no image" if image_id == broken else png(COLOURS[colour], PLACES[place], number)
        shard = shard_of(image_id, num_shards)
        image_rows[shard].append({"image_id": image_id, "image": data, "width": 32, "height": 32})
        texts = [
            f"a {colour} square at the {place}",
            f"the {place} holds something {colour}, number {number}",
        ]
        for k, caption in enumerate(texts):
            sample_id = f"{image_id}#{k}"
            row = {"sample_id": sample_id, "image_id": image_id, "caption": caption, "split": "train"}
            captions[shard].append(row)
            for j in range(number % 6):
                other = list(COLOURS)[(number + 1 + j) % 4]
                text = caption.replace(colour, other) + " again" * (j // 3)
                bad: Row = {"sample_id": sample_id, "kind": str(list(Kind)[j % 5]), "negative": text}
                bad |= {"engine": "rules", "model": "", "prompt_sha": "", "attempt": 0}
                wrong[shard_of(sample_id, num_shards)].append(bad)
    for shard in range(num_shards):
        write_images(prepared, shard, [pa.Table.from_pylist(image_rows[shard], IMAGES)])
        prepared.write_part("captions", shard, pa.Table.from_pylist(captions[shard], CAPTIONS))
        negatives.write_part("negatives", shard, pa.Table.from_pylist(wrong[shard], NEGATIVES))
        prepared.write_receipt(shard, {})
        negatives.write_receipt(shard, {})
    prepared.finish()
    negatives.finish()
    (folder / "model.json").write_text(json.dumps(MODEL))
    return folder


def train_config(folder: Path, **settings: object) -> TrainConfig:
    """A run of 40 steps over `write_inputs(folder)`: seconds of training, besides the start of workers."""
    defaults: dict[str, object] = {
        "name": "tiny",
        "output": str(folder / "runs"),
        "data": DataConfig(
            prepared=str(folder / "prepared"), negatives=str(folder / "negatives"), decode_tasks=1
        ),
        "model": ModelConfig(name=str(folder / "model.json")),
        "optimizer": OptimizerConfig(lr=1e-3, warmup_steps=5),
        "checkpoint": CheckpointConfig(every_steps=10, keep=2),
        "tracking": TrackingConfig(enabled=False),
        "global_batch_size": 16,
        "max_steps": 40,
    }
    return TrainConfig(**(defaults | settings))  # type: ignore[arg-type]


def read_trace(path: str | Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]
