"""A small suite folder made by hand, in the layout that `prepare --source scenes` writes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from degla_ray.evaluation.benchmarks.suite import SCENES_SUBSETS
from degla_ray.schema import CAPTIONS, CHOICE_ITEMS, CLASS_ITEMS, IMAGES
from degla_ray.stage import part_name
from degla_ray.storage import Storage

PART = part_name(0, 1)
COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("cube", "ball", "cone")
CLASSES = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
TEMPLATES = ["an image of a {}.", "one {}"]


def png(seed: int, size: int = 40) -> bytes:
    """A random image, unlike any other seed's."""
    pixels = np.random.default_rng(seed).integers(0, 255, (size // 8, size // 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((size, size), Image.Resampling.NEAREST).save(file, format="PNG")
    return file.getvalue()


def images_table(images: dict[str, bytes]) -> pa.Table:
    rows = [{"image_id": i, "image": data, "width": 40, "height": 40} for i, data in images.items()]
    return pa.Table.from_pylist(rows, schema=IMAGES)


def choice_rows(items: int) -> list[dict[str, Any]]:
    """`items` items of every scenes subset and of the order test, over images img-0 … img-11."""
    rows: list[dict[str, Any]] = []
    for subset in SCENES_SUBSETS:
        for i in range(items):
            true, foil = CLASSES[i % 12], CLASSES[(i * 5 + len(subset)) % 12]
            rows.append(
                {
                    "benchmark": "scenes",
                    "subset": subset,
                    "item_id": f"{subset}-{i}",
                    "image_id": f"img-{i % 12}",
                    # where true and foil are the same class the two texts are equal: a tie
                    "texts": [f"a {true} next to a cone", f"a {foil} next to a cone"],
                }
            )
    for i in range(items):
        words = f"a {CLASSES[i % 12]} left of a ball".split()
        shuffles = [" ".join(words[k:] + words[:k]) for k in range(1, 4)]
        texts = [" ".join(words), *shuffles, " ".join(words) if i % 3 == 0 else " ".join(reversed(words))]
        rows.append(
            {
                "benchmark": "scenes_order",
                "subset": "order",
                "item_id": str(i),
                "image_id": f"img-{i % 12}",
                "texts": texts,
            }
        )
    return rows


def write_suite(folder: Path, items: int = 12, images: dict[str, bytes] | None = None) -> Path:
    """Write the suite; `images` replaces some or all of img-0 … img-11."""
    storage = Storage(str(folder))
    given = {f"img-{i}": png(i) for i in range(12)} | (images or {})
    storage.write_table(images_table(given), "images", PART, row_group_rows=5)
    storage.write_table(pa.Table.from_pylist(choice_rows(items), schema=CHOICE_ITEMS), "choices", PART)
    labels = [
        {"benchmark": "scenes_zeroshot", "item_id": f"c{i}", "image_id": f"img-{i}", "label": i}
        for i in range(12)
    ]
    storage.write_table(pa.Table.from_pylist(labels, schema=CLASS_ITEMS), "classification", PART)
    described = {"scenes_zeroshot": {"classes": CLASSES, "templates": TEMPLATES}}
    storage.write_bytes(json.dumps(described).encode(), "classification", "classes.json")
    captions = [
        {"sample_id": f"s{i}-{k}", "image_id": f"img-{i}", "caption": caption, "split": "test"}
        for i in range(12)
        for k, caption in enumerate((f"image number {i}", f"something {COLOURS[i % 4]}"))
    ]
    storage.write_table(pa.Table.from_pylist(captions, schema=CAPTIONS), "retrieval", PART)
    return folder


def write_model_config(path: Path, width: int = 32) -> Path:
    """An open_clip JSON config of a tiny model with CLIP's own tokenizer."""
    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": width, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    path.write_text(json.dumps(config))
    return path
