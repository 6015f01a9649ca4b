#!/usr/bin/env python
"""Compare the loader with its earlier version, torch's DataLoader and webdataset, one decoding process each.

    python benchmarks/loader.py

The trainer takes no time. JPEGs of 640 x 480 pixels, or of short side 256, become crops of 224; captions are
tokenised. A store on loopback answers each request after 40 ms. Decoding is counted in images for each second
that the decoding process computed, so that other work on the machine matters little; rates from the store
and beside it are images per second of wall-clock time, of which a busy machine gives fewer.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import webdataset as wds
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.data_wait import Batches, Collate, Images, ours, prepare_images, theirs, write_images
from benchmarks.processes import Measured, measure
from benchmarks.slow_store import Store, slow_store
from degla_ray import ray_setup
from degla_ray.config import RayConfig
from degla_ray.loader.decoders import number_of_decoders
from degla_ray.loader.image_files import CacheSpec
from degla_ray.storage import Storage

EARLIER = "a094aed"
REPO = Path(__file__).resolve().parent.parent
DELAY_S = 0.04
BATCH, IMAGES, PER_SHARD = 32, 512, 64
SIDES = ("ours", "earlier", "torch DataLoader", "webdataset")
LOCAL = CacheSpec(folder="", max_bytes=0, whole_parts=False)


@dataclass
class Report:
    """A table with a column for each side."""

    rows: dict[str, dict[str, str]] = field(default_factory=dict)

    def add(self, row: str, side: str, value: str) -> None:
        self.rows.setdefault(row, {})[side] = value
        print(f"{row}: {side} {value}", flush=True)

    def show(self) -> None:
        table = Table(title=f"one decoding process, batches of {BATCH}, {os.cpu_count()} cores")
        table.add_column("")
        for side in SIDES:
            table.add_column(side, justify="right")
        for row, values in self.rows.items():
            table.add_row(row, *(values.get(side, "") for side in SIDES))
        Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="batches measured (default: %(default)s)")
    options = parser.parse_args()
    ray_setup.set_environment()
    report = Report()
    with tempfile.TemporaryDirectory(prefix="degla-") as folder, slow_store() as store:
        ray_setup.start(RayConfig())
        try:
            _local(Path(folder), options.steps, report)
            _remote(Path(folder), store, options.steps, report)
        finally:
            ray.shutdown()
    report.add("decoders of one worker on this machine", "ours", f"{number_of_decoders(None, 1, 1.0)}")
    report.add("decoders of one worker on this machine", "earlier", "2")
    report.show()


def _local(root: Path, steps: int, report: Report) -> None:
    """Measure memory and decoding from the local disk."""
    captions = write_images(root, IMAGES)
    small = root / "small"
    _shrink(root, small)
    for folder, size in ((root, "640 x 480"), (small, "short side 256")):
        prepare_images(folder, str(folder / "prepared"))
        _write_shards(folder, captions)
        found = {
            "ours": measure(ours(str(folder / "prepared"), root, LOCAL, BATCH, 1), BATCH, steps),
            "earlier": _earlier(folder, str(folder / "prepared"), steps),
            "torch DataLoader": measure(theirs(folder, captions, BATCH, 1), BATCH, steps),
            "webdataset": measure(_webdataset([str(path) for path in _shard_files(folder)]), BATCH, steps),
        }
        for side, measured in found.items():
            if measured is None:
                continue
            if folder is root:
                report.add("private memory, MB", side, f"{measured.private_mb:.0f}")
                report.add("images/s from the local disk", side, f"{measured.per_s:.0f}")
            report.add(f"images/s a core, {size}", side, f"{measured.per_core_s:.0f}")


def _remote(root: Path, store: Store, steps: int, report: Report) -> None:
    """Measure rates and bytes with the slow store: within the cache, and with a set larger than it."""
    uri = f"{store.uri}/prepared"
    Storage(store.uri).upload(root / "prepared", "prepared")
    used = sum(path.stat().st_size for path in (root / "jpeg").iterdir()) / IMAGES * BATCH

    cached = CacheSpec(folder=str(root / "cache"), max_bytes=2**30, whole_parts=False)
    larger = CacheSpec(folder=str(root / "cache"), max_bytes=1, whole_parts=False)
    fits, alone = ours(uri, root, cached, BATCH, 1), ours(uri, root, larger, BATCH, 1)
    store.delay(DELAY_S)
    first_pass = measure(fits, BATCH, IMAGES // BATCH)
    row = "images/s, 40 ms a request"
    report.add(f"{row}, first pass", "ours", f"{first_pass.per_s:.0f}")
    report.add(f"{row}, later passes", "ours", f"{measure(fits, BATCH, steps).per_s:.0f}")

    before, count = store.sent_bytes(), 1 + steps
    report.add(f"{row}, set larger than the cache", "ours", f"{measure(alone, BATCH, steps).per_s:.0f}")
    ratio = "bytes read for a byte used, set larger than the cache"
    report.add(ratio, "ours", f"{(store.sent_bytes() - before) / (used * count):.2f}")
    before, few = store.sent_bytes(), 3
    if earlier := _earlier(root, uri, few, cache_bytes=2**21):
        report.add(f"{row}, set larger than the cache", "earlier", f"{earlier.per_s:.0f}")
        report.add(ratio, "earlier", f"{(store.sent_bytes() - before) / (used * (1 + few)):.1f}")
    store.delay(0.0)


def _earlier(root: Path, prepared: str, steps: int, cache_bytes: int = 2**28) -> Measured | None:
    """Measure the earlier loader in a process of its own; None without this repository's history."""
    code = root / "earlier"
    if not code.exists():
        code.mkdir()
        archive = subprocess.run(["git", "archive", EARLIER, "degla_ray"], cwd=REPO, capture_output=True)
        if archive.returncode:
            return None
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as package:
            package.extractall(code, filter="data")
    command = [sys.executable, "-m", "benchmarks.earlier_loader", prepared]
    command += ["--batch", str(BATCH), "--steps", str(steps), "--cache_bytes", str(cache_bytes)]
    path = os.pathsep.join([str(code), str(REPO)])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        command, cwd=code, env=environment | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stderr)
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def _shrink(root: Path, small: Path) -> None:
    """Write the JPEGs below `root` again, with a short side of 256 pixels."""
    (small / "jpeg").mkdir(parents=True)
    for path in (root / "jpeg").iterdir():
        Image.open(path).resize((341, 256), Image.Resampling.BICUBIC).save(
            small / "jpeg" / path.name, quality=85
        )
    (small / "captions.txt").write_text((root / "captions.txt").read_text())


def _write_shards(root: Path, captions: list[str]) -> None:
    (root / "shards").mkdir()
    for first in range(0, IMAGES, PER_SHARD):
        with wds.TarWriter(str(root / "shards" / f"{first:06d}.tar")) as shard:
            for number in range(first, first + PER_SHARD):
                jpeg = (root / "jpeg" / f"{number}.jpg").read_bytes()
                shard.write({"__key__": f"{number:06d}", "jpg": jpeg, "txt": captions[number]})


def _shard_files(root: Path) -> list[Path]:
    return sorted((root / "shards").iterdir())


def _webdataset(shards: list[str]) -> Batches:
    """Return a webdataset of shards in random order, shuffled within 256 images."""
    images, collate = Images(Path(), []), Collate()

    def batches(steps: int) -> Iterator[Any]:
        dataset = (
            wds.WebDataset(shards, resampled=True, shardshuffle=False)
            .shuffle(256)
            .decode("pil")
            .to_tuple("jpg", "txt")
            .map(functools.partial(_transformed, images))
            .batched(BATCH, collation_fn=collate)
        )
        yield from wds.WebLoader(dataset, batch_size=None, num_workers=1, prefetch_factor=2).slice(steps)

    return batches


def _transformed(images: Images, row: tuple[Image.Image, str]) -> tuple[Any, str]:
    return images.transform(row[0]), row[1]


if __name__ == "__main__":
    main()
