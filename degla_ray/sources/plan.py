"""What `prepare` would do, for a dry run: it lists the source, and reads and checks some of its images."""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter
from collections.abc import Sequence

from degla_ray.config import PrepareConfig
from degla_ray.dry_run import Plan, Rate
from degla_ray.errors import DataError
from degla_ray.schema import CAPTIONS
from degla_ray.sources import open_source
from degla_ray.sources.base import STAGE, Record, Refusal, Source
from degla_ray.sources.images import CheckedImage
from degla_ray.sources.prepare import begun_folder, listed, shards_of
from degla_ray.sources.write_shard import read_checked
from degla_ray.stage import shard_of
from degla_ray.storage import Storage

SAMPLE = 64
"""Images read to measure size and speed."""


def plan(config: PrepareConfig) -> Plan:
    """Return what `prepare` would do.

    Raises:
        SettingError, DataError, FingerprintMismatch, TooManyRejects: as `prepare`, as far as its settings,
            its listing and a sample of images show.
    """
    source = open_source(config)
    folder = begun_folder(config, source)
    if folder is not None and folder.complete:
        splits = folder.storage.read_dataset("captions", CAPTIONS, ["split"])["split"]
        return Plan(stage=STAGE, output=folder.storage.uri, captions=Counter(splits.to_pylist()))
    listing = listed(config, source)
    num_shards = shards_of(config, listing.usable) if folder is None else folder.num_shards
    pending = set(range(num_shards) if folder is None else folder.pending())
    captions: Counter[str] = Counter()
    left = 0
    for record in listing.records:
        captions.update(caption.split for caption in record.captions)
        left += shard_of(record.image_id, num_shards) in pending
    step = max(1, left // SAMPLE)
    to_do = (r for r in listing.records if shard_of(r.image_id, num_shards) in pending)
    sample = list(itertools.islice(to_do, 0, step * SAMPLE, step))
    started = time.monotonic()
    kept, refused = _read(config, source, sample)
    rate = len(sample) / max(time.monotonic() - started, 1e-9)
    rejects = (f"{len(refused)} of them would be rejected, e.g. {refused[0]}",) if refused else ()
    return Plan(
        stage=STAGE,
        output=Storage(config.output).uri,
        work=f"{left:,} images; {sum(captions.values()):,} captions in all",
        amount=left,
        unit="images",
        rate=Rate(per_second=rate, origin=f"measured here on {len(sample)} images"),
        workers=max(1, min(len(pending), os.cpu_count() or 1)),
        size=left * sum(len(image.data) for image in kept) / max(1, len(sample)),
        notes=(*(f"note: {note}" for note in listing.notes), *rejects),
        captions=captions,
    )


def _read(
    config: PrepareConfig, source: Source, sample: Sequence[Record]
) -> tuple[list[CheckedImage], list[str]]:
    """Return the usable images and, for each of the others, why it is refused."""
    kept, refused = [], []
    for record in sample:
        checked = read_checked(source, record.locator, config.max_image_pixels, config.short_side)
        if isinstance(checked, Refusal):
            refused.append(f"{record.locator}: {checked.reason} ({checked.detail})")
        else:
            kept.append(checked)
    if refused and not kept:
        raise DataError(config.source, f"no usable image among {len(sample)}, {refused[0]}", "images")
    return kept, refused
