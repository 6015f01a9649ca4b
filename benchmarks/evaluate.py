#!/usr/bin/env python
"""Compare our evaluation with the official scripts' method, which encodes image and texts item by item.

    python benchmarks/evaluate.py --items 960

Synthetic images and captions have SugarCrepe's shape: 4.8 items per image of 640 x 480 pixels, captions of
about eleven words, few repeated texts. Both methods use the same random weights, one after the other on the
same cores. Our time starts when Ray is running and includes the start of the actors. The benchmark fails if
any decision differs.
"""

from __future__ import annotations

import argparse
import io
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from degla_ray import ray_setup
from degla_ray.config import ModelConfig, RayConfig
from degla_ray.encoding import encode as encoding
from degla_ray.encoding.images import FileImages
from degla_ray.encoding.needs import Needs
from degla_ray.encoding.pool import Pool
from degla_ray.evaluation.benchmarks.base import Rule
from degla_ray.evaluation.benchmarks.choice import Choice, ChoiceProtocol
from degla_ray.model.build import build
from degla_ray.model.encode import OpenClipModel
from degla_ray.model.loaded import LoadedModel
from degla_ray.schema import CHOICE_ITEMS

ITEMS_PER_IMAGE = 4.8  # SugarCrepe: 7,511 over 1,560
NOUNS = ("man", "woman", "dog", "horse", "truck", "bench", "table", "child", "bird", "boat", "train", "cat")
ADJECTIVES = ("red", "small", "old", "wooden", "white", "tall", "blue", "striped", "young", "large")
RELATIONS = ("stands next to", "is sitting behind", "looks at", "is in front of", "moves past")
PLACES = ("in a park", "on the street", "near the water", "in a room", "at the station")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--items", type=int, default=960, help="caption pairs (default: %(default)s)")
    parser.add_argument("--model", default="ViT-B-32-quickgelu", help="architecture (default: %(default)s)")
    options = parser.parse_args()
    torch.manual_seed(0)
    loaded = build(ModelConfig(name=options.model, random_init=True))
    loaded.model.eval()
    with tempfile.TemporaryDirectory() as folder:
        items = make_items(Path(folder), options.items)
        ray_setup.start(RayConfig())
        started = time.monotonic()
        ours = in_batches(loaded, folder, items)
        seconds = {"ours": time.monotonic() - started}
        ray_setup.stop()
        started = time.monotonic()
        official = one_by_one(loaded, Path(folder), items)
        seconds["one item at a time"] = time.monotonic() - started
    table = Table(title=f"{options.model}, {len(items)} items")
    for heading in ("", "seconds", "items/s", "ours is"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, took in seconds.items():
        ratio = f"{took / seconds['ours']:.1f} x as fast"
        table.add_row(name, f"{took:.1f}", f"{len(items) / took:.1f}", ratio)
    Console().print(table)
    different = int(np.sum(ours != official))
    print(f"decisions that differ: {different} of {len(items)}")
    if different:
        raise SystemExit(1)


def make_items(folder: Path, number: int) -> list[dict[str, Any]]:
    """Write images to `folder` and return rows of CHOICE_ITEMS that use them."""
    rng, draws = np.random.default_rng(0), random.Random(0)
    images = max(1, round(number / ITEMS_PER_IMAGE))
    for i in range(images):
        coarse = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8))
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=90)
    rows: list[dict[str, Any]] = []
    for i in range(number):
        adjectives, nouns = draws.sample(ADJECTIVES, 2), draws.sample(NOUNS, 2)
        relation, place = draws.choice(RELATIONS), draws.choice(PLACES)
        true, foil = (
            f"A {a} {x} {relation} a {b} {y} {place}."
            for (a, b), (x, y) in ((adjectives, nouns), (adjectives, nouns[::-1]))
        )
        row = {"benchmark": "shaped", "subset": "swap_obj", "item_id": str(i), "texts": [true, foil]}
        rows.append({**row, "image_id": f"{i % images}.jpg"})
    return rows


def in_batches(loaded: LoadedModel, folder: str, items: list[dict[str, Any]]) -> np.ndarray:
    """Return the decisions of our evaluation, which encodes with Ray Data actors: bool [n]."""
    benchmark = Choice(
        "shaped", pa.Table.from_pylist(items, schema=CHOICE_ITEMS), ChoiceProtocol(rule=Rule.STRICT), "files"
    )
    cores = torch.get_num_threads()
    pool = Pool(
        num_actors=cores,
        cpus_per_actor=1,
        use_gpu=torch.cuda.is_available(),
        batch_size=64,
        stall_seconds=600,
    )
    needs = [Needs(keys=benchmark.image_keys(), texts=benchmark.texts())]
    [(_, encoded)] = encoding.encode(loaded, {"files": FileImages(folder)}, needs, pool)
    return np.array(benchmark.score(encoded.features).scores["correct"].to_pylist())


def one_by_one(loaded: LoadedModel, folder: Path, items: list[dict[str, Any]]) -> np.ndarray:
    """Return the decisions by the method of SugarCrepe's and ARO's scripts: bool [n]."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: OpenClipModel = loaded.model.to(device)
    transform = loaded.transform
    decisions = []
    for item in items:
        image = Image.open(io.BytesIO((folder / item["image_id"]).read_bytes())).convert("RGB")
        true, foil = item["texts"]
        with torch.no_grad():
            img_1D = model.encode_image(transform(image)[None].to(device), normalize=True)
            true_1D = model.encode_text(loaded.tokenizer([true]).to(device), normalize=True)
            foil_1D = model.encode_text(loaded.tokenizer([foil]).to(device), normalize=True)
        decisions.append((true_1D @ img_1D.T).item() > (foil_1D @ img_1D.T).item())
    return np.array(decisions)


if __name__ == "__main__":
    main()
