#!/usr/bin/env python
"""Measure rate and memory of the stages whose work grows with the data, on synthetic captions.

    python benchmarks/scale.py rules --rows 100000      all five kinds by the rules, 5 captions an image
    python benchmarks/scale.py listing --rows 1000000   the listing of prepare, a caption for each image
    python benchmarks/scale.py order --rows 10000000    loading a training set, and its batches
    python benchmarks/scale.py encode --rows 100000     encoding images of 16 x 16 pixels with a tiny model

Memory is the most that a process holds for itself (USS, sampled each 0.5 s), which leaves out Ray's shared
object store; workers are the largest of Ray's processes. Memory that does not grow with the rows is the aim;
a figure in bytes a row is given where it must.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from degla_ray.config import (
    DataConfig,
    ModelConfig,
    NegativesConfig,
    ParquetConfig,
    PrepareConfig,
    TrackingConfig,
)
from degla_ray.schema import CAPTIONS, IMAGE_INDEX, IMAGES
from degla_ray.stage import StageFolder

PER_IMAGE = 5
PART = 100_000
"""Rows made at a time."""
WHO = ("man", "woman", "boy", "girl", "dog", "cat", "horse", "child", "surfer", "skier", "cow", "bird")
WHAT = ("young", "old", "small", "large", "brown", "white", "black", "happy", "wet", "tall")
DOES = ("sits on", "stands beside", "walks past", "looks at", "jumps over", "rests near")
THING = (
    "table",
    "bench",
    "car",
    "tree",
    "boat",
    "fence",
    "ball",
    "chair",
    "wall",
    "bicycle",
    "truck",
    "sofa",
)
WHERE = ("street", "beach", "park", "kitchen", "field", "river", "station", "garden", "forest", "bridge")


class Watch:
    """Time and memory of this process and its children during a `with` block."""

    def __enter__(self) -> Self:
        self._me = psutil.Process()
        self.before = self._me.memory_full_info().uss
        self.driver = self.worker = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._started = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = time.monotonic() - self._started
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            self.driver = max(self.driver, self._me.memory_full_info().uss)
            for process in self._me.children(recursive=True):
                try:
                    if process.name().startswith("ray::"):
                        self.worker = max(self.worker, process.memory_full_info().uss)
                except psutil.Error:  # it has ended
                    continue
            if self._stop.wait(0.5):
                return

    def told(self, rows: int) -> str:
        grown = (self.driver - self.before) / rows
        worker = f", largest worker {self.worker / 2**20:,.0f} MiB" if self.worker else ""
        return (
            f"{rows:,} rows in {self.seconds:,.1f} s: {rows / self.seconds:,.0f}/s; driver "
            f"{self.driver / 2**20:,.0f} MiB, {grown:,.0f} bytes a row above its start{worker}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=MEASURES)
    parser.add_argument("--rows", type=int, default=100_000, help="captions or images (default: %(default)s)")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="degla-scale-"))
    try:
        MEASURES[options.what](folder, options.rows)
    finally:
        shutil.rmtree(folder)


def rules(folder: Path, rows: int) -> None:
    from degla_ray.negatives.pipeline import generate

    prepared = _prepared(folder, rows, PER_IMAGE)
    config = NegativesConfig(
        prepared=prepared,
        output=str(folder / "negatives"),
        per_kind=1,
        plausibility="none",
        tracking=TrackingConfig(enabled=False),
    )
    with Watch() as watch:
        generate(config)
    print(f"rules: {watch.told(rows)}")


def listing(folder: Path, rows: int) -> None:
    from degla_ray.sources import open_source
    from degla_ray.sources.prepare import list_rows

    schema = pa.schema([("image", pa.binary()), ("caption", pa.string())])
    for start in range(0, rows, PART):
        captions = _captions(start, min(PART, rows - start))
        table = pa.table([[b"x"] * len(captions), captions], schema=schema)
        pq.write_table(table, folder / f"{start:09d}.parquet", row_group_size=10_000)
    files = ParquetConfig(files={"train": [str(folder)]})
    source = open_source(PrepareConfig(source="parquet", output=str(folder / "out"), parquet=files))
    with Watch() as watch:
        found = list_rows(source, None)
    assert found.usable == rows
    print(f"listing: {watch.told(rows)}")


def order(folder: Path, rows: int) -> None:
    from degla_ray.loader.order import BatchOrder
    from degla_ray.loader.samples import load_samples

    prepared = _prepared(folder, rows, 1)
    with Watch() as watch:
        samples = load_samples(DataConfig(prepared=prepared), with_negatives=False)
    held = sum(getattr(each, "nbytes", 0) for each in vars(samples).values())
    print(f"load_samples: {watch.told(rows)}; the samples take {held / rows:.0f} bytes a row")
    batches = BatchOrder(seed=0, num_rows=rows, batch_size=4096)
    with Watch() as watch:
        for step in range(100):
            batches.batch(step)
    print(f"order: {1000 * watch.seconds / 100:.1f} ms a batch of 4096 of {rows:,} rows, nothing held")


def encode(folder: Path, rows: int) -> None:
    from degla_ray import ray_setup
    from degla_ray.config import RayConfig
    from degla_ray.encoding.encode import Pool, encode_all
    from degla_ray.encoding.features import image_key
    from degla_ray.encoding.images import ParquetImages
    from degla_ray.model.build import build
    from degla_ray.sources.write_images import write_images

    vision = {"image_size": 16, "layers": 1, "width": 16, "head_width": 16, "patch_size": 8}
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1}
    model = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    (folder / "model.json").write_text(json.dumps(model))
    stage = StageFolder(str(folder / "prepared"), "prepare", {"rows": rows}, 8)
    for shard in range(8):
        write_images(stage, shard, _images(range(shard, rows, 8)))
    loaded = build(ModelConfig(name=str(folder / "model.json"), random_init=True))
    ray_setup.start(RayConfig())
    pool = Pool(num_actors=2, cpus_per_actor=1, use_gpu=False, batch_size=256)
    keys = {image_key("prepared", f"{number:09d}") for number in range(rows)}
    with Watch() as watch:
        encode_all(
            loaded, {"prepared": ParquetImages(stage.storage.uri)}, keys, _captions(0, rows // 10), pool
        )
    print(f"encode: {watch.told(rows)}")


def _prepared(folder: Path, rows: int, per_image: int) -> str:
    """Write a finished folder of stage `prepare` without its images, and return its URI."""
    shards = max(8, rows // PART)
    stage = StageFolder(str(folder / "prepared"), "prepare", {"rows": rows}, shards)
    edges = np.linspace(0, rows // per_image, shards + 1).astype(int) * per_image
    for shard, (start, stop) in enumerate(itertools.pairwise(edges.tolist())):
        count = stop - start
        image = [f"{number // per_image:09d}" for number in range(start, stop)]
        sample = [f"{name}#{number % per_image}" for number, name in enumerate(image)]
        captions = [sample, image, _captions(start, count), ["train"] * count]
        stage.write_part("captions", shard, pa.table(captions, schema=CAPTIONS))
        distinct = image[::per_image]
        sizes = [[1] * len(distinct)] * (len(IMAGE_INDEX) - 1)
        stage.write_part("image_index", shard, pa.table([distinct, *sizes], schema=IMAGE_INDEX))
        stage.write_part("images", shard, IMAGES.empty_table())
        stage.write_receipt(shard, {"captions_out": count})
    stage.finish()
    return stage.storage.uri


def _captions(start: int, count: int) -> list[str]:
    rng = np.random.default_rng(start)
    words = [rng.choice(each, count) for each in (WHAT, WHO, DOES, WHAT, THING, WHAT, WHERE)]
    return [f"a {a} {b} {c} a {d} {e} in the {f} {g}" for a, b, c, d, e, f, g in zip(*words, strict=True)]


def _images(numbers: range) -> Iterator[pa.Table]:
    for start in range(0, len(numbers), 16):
        rows = []
        for number in numbers[start : start + 16]:
            pixels = np.random.default_rng(number).integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(buffer := io.BytesIO(), "JPEG")
            rows.append({"image_id": f"{number:09d}", "image": buffer.getvalue(), "width": 16, "height": 16})
        yield pa.Table.from_pylist(rows, schema=IMAGES)


MEASURES: dict[str, Callable[[Path, int], None]] = {
    "rules": rules,
    "listing": listing,
    "order": order,
    "encode": encode,
}


if __name__ == "__main__":
    main()
