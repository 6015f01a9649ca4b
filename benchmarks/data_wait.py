#!/usr/bin/env python
"""Measure how long training waits for data: our loader against torch's DataLoader with as many processes.

    python benchmarks/data_wait.py --processes 2

JPEGs of 640 x 480 pixels are decoded, cropped and resized to 224, and captions are tokenised. Each loader
first feeds a trainer whose step takes no time, which gives the throughput. It then feeds one whose step takes
a third longer than a batch of the slower loader, which gives the share of time spent waiting. The trainer
sleeps during its step, like one that computes on a GPU. The loaders alternate three times; medians are shown.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import ray
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from degla_ray import ray_setup
from degla_ray.config import DataConfig, Flickr8kConfig, ModelConfig, PrepareConfig, RayConfig
from degla_ray.loader.decode import BatchSpec
from degla_ray.loader.decoders import end_decoders, start_decoders
from degla_ray.loader.image_files import CacheSpec
from degla_ray.loader.loader import Loader
from degla_ray.loader.order import BatchOrder
from degla_ray.loader.samples import load_samples
from degla_ray.loader.tokens import tokenise_all
from degla_ray.model.packing import TextEnd
from degla_ray.sources.prepare import prepare
from degla_ray.storage import Storage

MODEL, SIZE = "ViT-B-32-quickgelu", 224
ROUNDS = 3
Batches = Callable[[int], Iterator[Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=512, help="JPEGs (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="samples per step (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="steps per round (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="decoder processes (default: %(default)s)")
    options = parser.parse_args()
    ray_setup.set_environment()
    with tempfile.TemporaryDirectory(prefix="degla-") as folder:
        root = Path(folder)
        captions = write_images(root, options.images)
        ray_setup.start(RayConfig())
        try:
            torch_loader = theirs(root, captions, options.batch, options.processes)
            _compare({"torch DataLoader": torch_loader, "ours": _ours(root, options)}, options)
        finally:
            ray.shutdown()


def _compare(sides: dict[str, Batches], options: argparse.Namespace) -> None:
    free = {name: [] for name in sides}  # type: dict[str, list[float]]
    for _ in range(ROUNDS):
        for name, batches in sides.items():
            free[name].append(_run(batches, options.steps, 0.0)[0])
    seconds = {name: statistics.median(found) for name, found in free.items()}
    step_s = 4 / 3 * max(seconds.values())
    shares = {name: [] for name in sides}  # type: dict[str, list[float]]
    for _ in range(ROUNDS):
        for name, batches in sides.items():
            each, waited = _run(batches, options.steps, step_s)
            shares[name].append(waited / each)
    table = Table(title=f"{options.processes} processes, batches of {options.batch} JPEGs of 640 x 480")
    for column in ("", "images/s", f"waiting at {step_s:.2f} s a step"):
        table.add_column(column, justify="right" if column else "left")
    for name in sides:
        share = statistics.median(shares[name])
        table.add_row(name, f"{options.batch / seconds[name]:.0f}", f"{share:.1%}")
    table.add_row("ratio", f"{seconds['torch DataLoader'] / seconds['ours']:.2f} x", "")
    Console().print(table)


def _run(batches: Batches, steps: int, step_s: float) -> tuple[float, float]:
    """Return (seconds per batch, seconds of waiting per batch), excluding the first batch (start-up)."""
    following = batches(steps + 1)
    next(following)
    started, waited = time.perf_counter(), 0.0
    for _ in range(steps):
        time.sleep(step_s)
        asked = time.perf_counter()
        next(following)
        waited += time.perf_counter() - asked
    each = (time.perf_counter() - started) / steps
    for _ in following:  # exhausts the iterator, so that it ends its processes
        pass
    return each, waited / steps


def _ours(root: Path, options: argparse.Namespace) -> Batches:
    """Return the trainer's own loader, which reads prepared Parquet files and decodes in Ray actors."""
    prepare_images(root, str(root / "prepared"))
    return ours(
        str(root / "prepared"),
        root,
        CacheSpec(folder="", max_bytes=0, whole_parts=False),
        options.batch,
        options.processes,
    )


def prepare_images(root: Path, prepared: str, short_side: int | None = None) -> None:
    """Prepare the images that `write_images` wrote."""
    source = Flickr8kConfig(images=str(root / "jpeg"), captions={"train": str(root / "captions.txt")})
    prepare(PrepareConfig(source="flickr8k", output=prepared, flickr8k=source, short_side=short_side))


def ours(prepared: str, root: Path, cache: CacheSpec, batch: int, processes: int) -> Batches:
    """Return our loader of a prepared folder; `root` is for what it writes."""
    samples = load_samples(DataConfig(prepared=prepared), with_negatives=False)
    spec = BatchSpec(
        order=BatchOrder(seed=0, num_rows=len(samples), batch_size=batch),
        rank=0,
        world_size=1,
        negatives=0,
        size=(SIZE, SIZE),
        interpolation="bicubic",
        crop_scale_min=0.9,
        cache=cache,
        text_end=TextEnd(token=None),
    )
    run = Storage(str(root / "run"))
    samples, _ = tokenise_all(run, samples, ModelConfig(name=MODEL, random_init=True))
    reference = ray.put(samples)

    def batches(steps: int) -> Iterator[Any]:
        decoders = start_decoders(processes)
        window = 2 * processes  # as the DataLoader's prefetch_factor
        yield from Loader(reference, spec, first=0, last=steps, decoders=decoders, prefetch=window)
        end_decoders(decoders)

    return batches


class Images(Dataset):
    def __init__(self, root: Path, captions: list[str]) -> None:
        self.root, self.captions = root, captions
        self.crop = v2.RandomResizedCrop(SIZE, scale=(0.9, 1.0), interpolation=v2.InterpolationMode.BICUBIC)
        self.to_tensor = v2.PILToTensor()

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, str]:
        with Image.open(self.root / "jpeg" / f"{number}.jpg") as image:
            return self.transform(image), self.captions[number]

    def transform(self, image: Image.Image) -> torch.Tensor:
        return self.to_tensor(self.crop(image.convert("RGB")))


class Collate:
    def __init__(self) -> None:
        self.tokenizer = open_clip.get_tokenizer(MODEL)

    def __call__(self, rows: list[tuple[torch.Tensor, str]]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.stack([image for image, _ in rows]), self.tokenizer([text for _, text in rows])


def theirs(root: Path, captions: list[str], batch: int, processes: int) -> Batches:
    """Return torch's DataLoader of the JPEGs below a folder."""
    images, collate = Images(root, captions), Collate()

    def batches(steps: int) -> Iterator[Any]:
        sampler = torch.utils.data.RandomSampler(images, num_samples=steps * batch, replacement=True)
        yield from DataLoader(
            images,
            batch_size=batch,
            sampler=sampler,
            num_workers=processes,
            prefetch_factor=2,
            collate_fn=collate,
        )

    return batches


def write_images(root: Path, count: int) -> list[str]:
    """Write JPEGs of smooth noise with grain (about 60 kB each, like photographs); return their captions."""
    (root / "jpeg").mkdir()
    rng = np.random.default_rng(0)
    captions = [
        f"an image of {number} things that lie beside each other on a table" for number in range(count)
    ]
    for number in range(count):
        colours = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(colours.resize((640, 480), Image.Resampling.BICUBIC), dtype=np.int16)
        grain = rng.normal(0, 8, (480, 640, 1)).astype(np.int16)
        image = Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85)
        (root / "jpeg" / f"{number}.jpg").write_bytes(buffer.getvalue())
    lines = [f"{number}.jpg,{caption}" for number, caption in enumerate(captions)]
    (root / "captions.txt").write_text("\n".join(["image,caption", *lines]) + "\n")
    return captions


if __name__ == "__main__":
    main()
