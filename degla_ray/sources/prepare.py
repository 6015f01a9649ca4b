"""Stage `prepare`: turn a source into images, captions and rejects, written in shards by Ray Data.

The driver lists the source's rows, which is cheap, and assigns them to shards by a hash of the image id. Each
pending shard is one block of a Ray dataset and one task. Images that are reached only in groups are unpacked
first, by a task per group. A rerun writes only shards without a receipt; on a
finished folder it only compares the manifest with the annotation files' hashes and does not start Ray.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from degla_ray.config import PrepareConfig
from degla_ray.errors import DataError, SettingError, TooManyRejects
from degla_ray.lease import owned
from degla_ray.schema import RejectReason
from degla_ray.sources import open_source
from degla_ray.sources.base import STAGE, Note, Record, Reject, Source, Unit
from degla_ray.sources.hold_out import hold_out
from degla_ray.sources.packed import Packed, unpack
from degla_ray.sources.unpacked import Unpacked
from degla_ray.sources.write_shard import (
    IMAGES_OF_SPLIT,
    PrepareTask,
    Progress,
    ShardResult,
    write_shard,
)
from degla_ray.stage import MANIFEST, StageFolder, derived_shards, shard_of
from degla_ray.storage import Storage

IMAGES_PER_SHARD = 10_000
"""Images of a shard if `num_shards` is null: 0.5 GB at 50 kB each."""
_PACKED = pa.schema([("shard", pa.int64()), ("kind", pa.string()), ("packed", pa.large_binary())])
OUTPUT_VERSION = 1
"""Increase when the same input gives different output; a folder of another version is not resumed."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A source's rows, before any image is opened.

    `images_in` and `captions_in` are counted independently. `notes` are console messages; `spare` is the
    source's. Writing the shards drains `records`; `usable` stays their number.
    """

    records: Packed[Record]
    usable: int
    rejects: list[Reject]
    images_in: int
    captions_in: int
    notes: list[str] = field(default_factory=list)
    spare: frozenset[RejectReason] = frozenset()


def prepare(config: PrepareConfig) -> dict[str, int]:
    """Write `images/`, `captions/` and `rejects/` to `config.output`.

    Scenes also write `graphs/` and `tests/`; sources with negatives also write `given/`.

    Returns:
        The manifest's counts: images_in, images_out, images_rejected, the same for captions, and
        `rejected.<image|caption>.<reason>`.

    Raises:
        SettingError: a folder or file named in the settings does not exist.
        FingerprintMismatch: the output folder was made with other settings or other input.
        LeaseHeld: another driver is writing the output folder.
        TooManyRejects: more than `max_reject_fraction` of the rows was rejected.
        DataError: the rows read do not equal rows written plus rejects, or an annotation file is broken.
    """
    source = open_source(config)
    folder = begun_folder(config, source)
    if folder is not None and folder.complete:
        print(f"{config.output} is finished: nothing to do")
        _print_counts(folder.manifest["counts"])
        return dict(folder.manifest["counts"])
    with owned(config.output):
        return _prepare(config, source)


def _prepare(config: PrepareConfig, source: Source) -> dict[str, int]:
    listing = listed(config, source)
    for note in listing.notes:
        print(f"note: {note}")
    folder = begun_folder(config, source)
    if folder is None:
        folder = _open_folder(config, source, shards_of(config, listing.usable))
        if config.num_shards is None:
            print(f"num_shards: {folder.num_shards} for {listing.usable:,} images")
    _write_pending(config, folder, source, listing)
    source.write_extras(folder.storage)
    none = {f"{unit}s_{what}": 0 for unit in Unit for what in ("out", "rejected")}
    read = {"images_in": listing.images_in, "captions_in": listing.captions_in}
    counts = {**none, **folder.counts(), **read}
    _print_counts(counts)
    for unit in Unit:
        rows_in, rows_out, lost = (counts[f"{unit}s_{what}"] for what in ("in", "out", "rejected"))
        if rows_in != rows_out + lost:
            found = f"{rows_in} {unit}s in, {rows_out} out and {lost} rejected"
            raise DataError(config.output, found, "rows in = rows out + rejects (a fault of this program)")
    Unpacked(folder.storage, source).delete()
    return folder.finish(counts)


def listed(config: PrepareConfig, source: Source) -> Listing:
    """Return the source's rows.

    Raises:
        TooManyRejects: more rows are unusable than `max_reject_fraction` allows, before any image is opened.
    """
    listing = list_rows(source, config.limit, config.val_fraction)
    result = ShardResult()
    result.add_rejects(listing.rejects)
    _stop_at_too_many(config, listing, result)
    return listing


def list_rows(source: Source, limit: int | None, val_fraction: float | None = None) -> Listing:
    """Return all rows of `source`, or those of `limit` images: the first of each split, in proportion.

    With a limit, rows of images that were not chosen count neither as input nor as rejected.

    Args:
        source: the source to list.
        limit: maximum number of images; None: all.
        val_fraction: share of the images to move from split `train` to `val`; None: none.

    Raises:
        SettingError: `val_fraction` is set and the source has a split `val`, or none called `train`.
    """
    rejects: list[Reject] = []
    notes: list[str] = []
    read: Counter[str] = Counter()

    def images() -> Iterator[Record]:
        for row in source.records():
            if isinstance(row, Record):
                yield row
            elif isinstance(row, Reject):
                rejects.append(row)
            elif isinstance(row, Note):
                notes.append(row.text)
            else:
                read.update(images=row.images, captions=row.captions)

    records = Packed(images() if val_fraction is None else hold_out(images(), val_fraction))
    images_in, captions_in = read["images"], read["captions"]
    if limit is not None and len(records) > limit:
        records = _first_of_each_split(records, limit)
        chosen = {r.image_id for r in records}
        rejects = [r for r in rejects if r.image_id in chosen]
        images_in = len(records) + sum(r.unit is Unit.IMAGE for r in rejects)
        captions_in = sum(len(r.captions) for r in records) + sum(r.unit is Unit.CAPTION for r in rejects)
    return Listing(
        records=records,
        usable=len(records),
        rejects=rejects,
        images_in=images_in,
        captions_in=captions_in,
        notes=notes,
        spare=source.spare,
    )


def _first_of_each_split(records: Packed[Record], limit: int) -> Packed[Record]:
    numbers: dict[str, int] = {}
    splits = (numbers.setdefault(record.captions[0].split, len(numbers)) for record in records)
    split_N = np.fromiter(splits, np.int32, len(records))
    place_N = np.empty(len(records))
    for number in range(len(numbers)):
        rows = np.flatnonzero(split_N == number)
        place_N[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    chosen_N = np.zeros(len(records), dtype=bool)
    chosen_N[np.argsort(place_N, kind="stable")[:limit]] = True
    return Packed(itertools.compress(records, chosen_N))


def _storage(uri: str) -> Storage:
    if not uri:
        raise SettingError("output", uri, "a folder to write to")
    return Storage(uri)


def begun_folder(config: PrepareConfig, source: Source) -> StageFolder | None:
    """Open the output folder if an earlier run has begun it; itself it writes nothing."""
    return (
        _open_folder(config, source, config.num_shards) if _storage(config.output).exists(MANIFEST) else None
    )


def shards_of(config: PrepareConfig, images: int) -> int:
    """Return the number of shards of a new folder."""
    return config.num_shards or derived_shards(images, IMAGES_PER_SHARD)


def _open_folder(config: PrepareConfig, source: Source, num_shards: int | None) -> StageFolder:
    identity: dict[str, Any] = {
        "version": OUTPUT_VERSION,
        "source": config.source,
        config.source: source.identity(),
        "short_side": config.short_side,
        "max_image_pixels": config.max_image_pixels,
        "follow_links": config.follow_links,
        "limit": config.limit,
    }
    if config.val_fraction is not None:  # only then, so that folders made before it existed stay valid
        identity["val_fraction"] = config.val_fraction
    try:
        return StageFolder(config.output, STAGE, identity, num_shards)
    except OSError as error:
        raise SettingError("output", config.output, f"a folder that can be written ({error})") from error


def _write_pending(config: PrepareConfig, folder: StageFolder, source: Source, listing: Listing) -> None:
    """Write every shard without a receipt; stop early if too many rows are rejected."""
    pending = folder.pending()
    if not pending:
        return
    from degla_ray import ray_setup, resources, shared_paths
    from degla_ray.sources.progress import ShardProgress

    ray_setup.start(config.ray)
    resources.require(config.ray, [resources.tasks(config.ray, len(pending))])
    shared_paths.require_shared(config, {"output": config.output})
    unpacked = _unpacked(folder, source, listing.records, len(pending))
    task = PrepareTask(
        folder=folder,
        source=source,
        reader=unpacked or source,
        max_pixels=config.max_image_pixels,
        short_side=config.short_side,
    )
    done = ShardResult(counts=Counter(folder.counts()))
    shards: dict[int, Packed[Record]] = {shard: Packed() for shard in pending}
    for record in listing.records.drain():
        if (shard := shard_of(record.image_id, folder.num_shards)) in shards:
            shards[shard].append(record)
    images = sum(map(len, shards.values()))
    if 0 in pending:  # the receipt of shard 0 includes the driver's rejects
        done.add_rejects(listing.rejects)
    with ShardProgress(images, f"prepare {config.source}") as progress:
        for row in _run(shards, listing.rejects, task, progress.reporter()):
            done.counts.update(json.loads(row["counts"]))
            done.examples = {**json.loads(row["examples"]), **done.examples}
            _stop_at_too_many(config, listing, done)


def _unpacked(folder: StageFolder, source: Source, records: Iterable[Record], shards: int) -> Unpacked | None:
    """Unpack the groups that the records' images can only be read with; None if there are none."""
    import ray.data

    places = (source.group_of(record.locator) for record in records)
    groups = dict.fromkeys(place[0] for place in places if place is not None)
    if not groups or shards == 1:  # a single task reads each group once anyway
        return None
    unpacked = Unpacked(folder.storage, source)
    if missing := unpacked.missing(groups):
        print(f"reading {len(missing):,} row groups once; their images wait in {unpacked.uri} until the end")
        items = ray.data.from_items([{"group": group} for group in missing], override_num_blocks=len(missing))
        for _ in items.map(_unpack_row, fn_kwargs={"unpacked": unpacked}).iter_rows():
            pass
    return unpacked


def _unpack_row(row: dict[str, Any], *, unpacked: Unpacked) -> dict[str, Any]:
    unpacked.unpack(row["group"])
    return {"done": True}


def _run(
    shards: dict[int, Packed[Record]], rejects: list[Reject], task: PrepareTask, progress: Progress
) -> Iterator[dict[str, Any]]:
    """Write the shards, each a block of the dataset and a task; their records leave the driver's memory."""
    import ray.data

    refs = []
    for shard in list(shards):
        blocks = [("record", block) for block in shards.pop(shard).drain_blocks()]
        own = Packed(rejects if shard == 0 else [])
        blocks += [("reject", block) for block in own.drain_blocks()]
        rows = blocks or [("record", b"")]  # Ray skips a block without rows
        columns = [[shard] * len(rows), [kind for kind, _ in rows], [block for _, block in rows]]
        refs.append(ray.put(pa.table(columns, schema=_PACKED)))
    dataset = ray.data.from_arrow_refs(refs)
    fn_kwargs = {"task": task, "progress": progress}
    yield from dataset.map_batches(
        _write_block, batch_size=None, batch_format="pyarrow", fn_kwargs=fn_kwargs
    ).iter_rows()


def _write_block(block: pa.Table, *, task: PrepareTask, progress: Progress) -> dict[str, list[str]]:
    found: dict[str, list[Any]] = {"record": [], "reject": []}
    for kind, packed in zip(block["kind"].to_pylist(), block["packed"].to_pylist(), strict=True):
        found[kind] += unpack(packed)
    shard = block["shard"][0].as_py()
    task.folder.require_seen()
    result = write_shard(task, shard, found["record"], found["reject"], progress)
    return {"counts": [json.dumps(result.counts)], "examples": [json.dumps(result.examples)]}


def _stop_at_too_many(config: PrepareConfig, listing: Listing, result: ShardResult) -> None:
    """Raise TooManyRejects if the rejects known so far exceed the limit for all rows.

    Images that were not requested (`Source.spare`), such as another split's images in a shared folder, count
    neither as rows nor as rejects.
    """
    spare = {f"rejected.{Unit.IMAGE}.{reason}" for reason in listing.spare}
    rows = listing.images_in + listing.captions_in - sum(result.counts[name] for name in spare)
    by_reason: Counter[str] = Counter()
    for name, count in result.counts.items():
        if name.startswith("rejected.") and name not in spare:
            by_reason[name.rpartition(".")[2]] += count
    rejected = sum(by_reason.values())
    if listing.usable and rejected <= config.max_reject_fraction * rows:
        return
    if not listing.usable and not rejected:
        raise DataError(config.source, "no image that has a caption", "at least one")
    reasons = "; ".join(
        f"{reason} {count}" + (f", e.g. {result.examples[reason]}" if reason in result.examples else "")
        for reason, count in by_reason.most_common(3)
    )
    found = f"{rejected} of {rows} rows rejected, {rejected / rows:.1%} ({reasons})"
    raise TooManyRejects(
        config.output, found, f"at most {config.max_reject_fraction:.1%} (max_reject_fraction)"
    )


def _print_counts(counts: dict[str, int]) -> None:
    for unit in Unit:
        rows_in, rows_out, lost = (counts[f"{unit}s_{what}"] for what in ("in", "out", "rejected"))
        reasons = ", ".join(
            f"{name.rpartition('.')[2]} {count}"
            for name, count in sorted(counts.items(), key=lambda item: -item[1])
            if name.startswith(f"rejected.{unit}.")
        )
        print(
            f"{unit}s: {rows_in} in = {rows_out} out + {lost} rejects" + (f" ({reasons})" if reasons else "")
        )
    splits = sorted(name for name in counts if name.startswith(IMAGES_OF_SPLIT))
    if splits:  # folders written by an earlier version lack these counts
        shown = (f"{name.removeprefix(IMAGES_OF_SPLIT)} {counts[name]} images" for name in splits)
        print(f"splits: {', '.join(shown)}")
