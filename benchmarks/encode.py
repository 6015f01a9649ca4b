#!/usr/bin/env python
"""Compare the feed of encoding with that of before: images/s, and bytes through Ray's object store.

    python benchmarks/encode.py --images 1024

Both pipelines run in turn on the same images, one stage after the other, with a tower so narrow that the feed
is most of the work. Before: float32 pixels, normalised by the reading tasks, as bytes in rows. Now: uint8
pixels as Arrow buffers, normalised by the actor. The benchmark fails if a feature differs by more than 1e-6.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from PIL import Image
from ray.data import Dataset
from rich.console import Console
from rich.table import Table

from degla_ray import ray_setup
from degla_ray.config import ModelConfig, RayConfig
from degla_ray.encoding.actor import Encoder
from degla_ray.encoding.images import FileImages, ImageBatch
from degla_ray.encoding.reading import Reader
from degla_ray.encoding.rows import as_items, row_of
from degla_ray.model.build import build
from degla_ray.model.encode import encode_image
from degla_ray.model.loaded import LoadedModel

Encode = Callable[[Dataset], Iterator[tuple[list[str], np.ndarray]]]
SOURCE, READING_CPUS = "files", 0.5
"""CPUs of a reading task; unlike the actor's, so that Ray Data does not fuse the two."""


class FloatReader:
    """The reading stage of before: rows of float32 pixels as bytes."""

    def __init__(self, preprocess_cfg: dict[str, Any], folder: str) -> None:
        self.preprocess_cfg, self.source = preprocess_cfg, FileImages(folder)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        from degla_ray.model.preprocess import eval_transform

        transform = eval_transform(self.preprocess_cfg)
        pixels = []
        for stored in self.source.read(ImageBatch(ids=list(row["ids"]))):
            assert not isinstance(stored, Exception)
            with stored.open() as image:
                pixels.append(transform(image).numpy())
        stacked = np.stack(pixels)
        return {**row, "pixels": stacked.tobytes(), "shape": list(stacked.shape)}


class FloatEncoder:
    """The actor of before."""

    def __init__(self, loaded: Any) -> None:
        torch.set_num_threads(1)
        self.model = ray.get(loaded).model.eval()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        pixels = np.frombuffer(row["pixels"], dtype=np.float32).reshape([int(n) for n in row["shape"]])
        with torch.inference_mode():
            features = encode_image(self.model, torch.from_numpy(pixels.copy())).cpu().numpy()
        return {"ids": list(row["ids"]), "features": features.tobytes()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=2048, help="images (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=128, help="images per batch (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each, alternating; the best counts")
    options = parser.parse_args()
    table = Table(title=f"{options.images} images of 640 x 480 pixels, batches of {options.batch}")
    for heading in ("", "read images/s", "encoded images/s", "bytes/image"):
        table.add_column(heading, justify="right" if heading else "left")
    with tempfile.TemporaryDirectory() as folder:
        ids = make_images(Path(folder), options.images)
        loaded = narrow_model(Path(folder))
        batches = [
            {"source": SOURCE, "ids": ids[i : i + options.batch], "where": ""}
            for i in range(0, len(ids), options.batch)
        ]
        ray_setup.start(RayConfig())
        stages = {"before": before(loaded, folder, batches), "now": now(loaded, folder, batches)}
        found: dict[str, list[Measured]] = {name: [] for name in stages}
        for _ in range(options.rounds):
            for name, (read, encode) in stages.items():
                found[name].append(measure(read, encode, len(ids)))
        ray_setup.stop()
    for name, runs in found.items():
        table.add_row(
            name,
            f"{max(run.read_per_s for run in runs):.0f}",
            f"{max(run.encoded_per_s for run in runs):.0f}",
            f"{runs[0].bytes_per_image:,.0f}",
        )
    Console().print(table)
    pairs = [(found["before"][0].features[i], found["now"][0].features[i]) for i in ids]
    worst = max(float(np.abs(one - other).max()) for one, other in pairs)
    print(f"largest difference between features: {worst:.1e}")
    if worst > 1e-6:
        raise SystemExit(1)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run of a pipeline."""

    read_per_s: float
    encoded_per_s: float
    """From the first finished batch on: the start of the actor is left out."""
    bytes_per_image: float
    """Between the two stages."""
    features: dict[str, np.ndarray]


def measure(read: Dataset, encode: Encode, images: int) -> Measured:
    """Run the reading stage, then the actor on what it read."""
    started = time.monotonic()
    blocks = read.materialize()
    reading_s = time.monotonic() - started
    features: dict[str, np.ndarray] = {}
    first, at_first = 0, 0.0
    for ids, rows_BD in encode(blocks):
        features |= dict(zip(ids, rows_BD, strict=True))
        if not first:
            first, at_first = len(features), time.monotonic()
    return Measured(
        read_per_s=images / reading_s,
        encoded_per_s=(images - first) / (time.monotonic() - at_first),
        bytes_per_image=blocks.size_bytes() / images,
        features=features,
    )


def before(loaded: LoadedModel, folder: str, batches: list[dict[str, Any]]) -> tuple[Dataset, Encode]:
    """Return the reading stage of before, and what encodes its blocks."""
    reader = FloatReader(loaded.preprocess_cfg, folder)
    read = ray.data.from_items(batches, override_num_blocks=len(batches)).map(reader, num_cpus=READING_CPUS)
    model = ray.put(loaded)

    def encode(blocks: Dataset) -> Iterator[tuple[list[str], np.ndarray]]:
        pool = ray.data.ActorPoolStrategy(size=1)
        for row in blocks.map(FloatEncoder, fn_constructor_args=(model,), compute=pool).iter_rows():
            ids = list(row["ids"])
            yield ids, np.frombuffer(row["features"], dtype=np.float32).reshape(len(ids), -1)

    return read, encode


def now(loaded: LoadedModel, folder: str, batches: list[dict[str, Any]]) -> tuple[Dataset, Encode]:
    """Return today's reading stage, and what encodes its blocks."""
    known = ray.put(np.array([], dtype="S32"))
    reader = Reader(loaded.preprocess_cfg, {SOURCE: FileImages(folder)}, known, ray.put(loaded.tokenizer))
    as_tables: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow"}
    items = ray.data.from_items(as_items(batches), override_num_blocks=len(batches))
    read = items.map_batches(reader, num_cpus=READING_CPUS, **as_tables)
    arguments = (ray.put(loaded), 1.0, "fp32")

    def encode(blocks: Dataset) -> Iterator[tuple[list[str], np.ndarray]]:
        pool = ray.data.ActorPoolStrategy(size=1)
        done = blocks.map_batches(Encoder, fn_constructor_args=arguments, compute=pool, **as_tables)
        for table in done.iter_batches(**as_tables):
            row, features_BD = row_of(table)
            yield row["ids"], features_BD

    return read, encode


def make_images(folder: Path, number: int) -> list[str]:
    """Write JPEG files to `folder` and return their names."""
    rng = np.random.default_rng(0)
    for i in range(number):
        coarse = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8))
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=90)
    return [f"{i}.jpg" for i in range(number)]


def narrow_model(folder: Path) -> LoadedModel:
    """Return a CLIP of random weights with 224 x 224 pixels, one block and a width of 8."""
    tower = {"layers": 1, "width": 8}
    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 224, "patch_size": 32, "head_width": 8, **tower},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "heads": 1, **tower},
    }
    (folder / "narrow.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    return build(ModelConfig(name=str(folder / "narrow.json"), random_init=True))


if __name__ == "__main__":
    main()
