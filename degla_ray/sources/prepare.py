"""Stage `prepare`: turn a source into images, captions and rejects, written in shards by Ray Data.

The driver lists the source's rows, which is cheap, and assigns them to shards by a hash of the image id. Each
pending shard is one row of a Ray dataset and one task. A rerun writes only shards without a receipt; on a
finished folder it only compares the manifest with the annotation files' hashes and does not start Ray.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from degla_ray.config import PrepareConfig
from degla_ray.errors import DataError, SettingError, TooManyRejects
from degla_ray.lease import owned
from degla_ray.schema import RejectReason
from degla_ray.sources import open_source
from degla_ray.sources.base import STAGE, Note, Record, Reject, Source, Unit
from degla_ray.sources.hold_out import hold_out
from degla_ray.sources.write_shard import (
    IMAGES_OF_SPLIT,
    PrepareTask,
    Progress,
    ShardResult,
    records_from_json,
    records_to_json,
    rejects_from_json,
    rejects_to_json,
    write_shard,
)
from degla_ray.stage import MANIFEST, StageFolder, shard_of
from degla_ray.storage import Storage

OUTPUT_VERSION = 1
"""Increase when the same input gives different output; a folder of another version is not resumed."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A source's rows, before any image is opened.

    `images_in` and `captions_in` are counted independently. `notes` are console messages; `spare` is the
    source's.
    """

    records: list[Record]
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
    folder = _open_folder(config, source)
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
    records: list[Record] = []
    rejects: list[Reject] = []
    notes: list[str] = []
    images_in = captions_in = 0
    for row in source.records():
        if isinstance(row, Record):
            records.append(row)
        elif isinstance(row, Reject):
            rejects.append(row)
        elif isinstance(row, Note):
            notes.append(row.text)
        else:
            images_in, captions_in = images_in + row.images, captions_in + row.captions
    if val_fraction is not None:
        records = hold_out(records, val_fraction)
    if limit is not None and len(records) > limit:
        records = _first_of_each_split(records, limit)
        chosen = {r.image_id for r in records}
        rejects = [r for r in rejects if r.image_id in chosen]
        images_in = len(records) + sum(r.unit is Unit.IMAGE for r in rejects)
        captions_in = sum(len(r.captions) for r in records) + sum(r.unit is Unit.CAPTION for r in rejects)
    assert len({r.image_id for r in records}) == len(records), "a source repeats an image_id"
    return Listing(
        records=records,
        rejects=rejects,
        images_in=images_in,
        captions_in=captions_in,
        notes=notes,
        spare=source.spare,
    )


def _first_of_each_split(records: list[Record], limit: int) -> list[Record]:
    sizes = Counter(r.captions[0].split for r in records)
    seen: Counter[str] = Counter()
    places = []
    for index, record in enumerate(records):
        split = record.captions[0].split
        seen[split] += 1
        places.append(((seen[split] - 0.5) / sizes[split], index))
    return [records[index] for index in sorted(index for _, index in sorted(places)[:limit])]


def _storage(uri: str) -> Storage:
    if not uri:
        raise SettingError("output", uri, "a folder to write to")
    return Storage(uri)


def begun_folder(config: PrepareConfig, source: Source) -> StageFolder | None:
    """Open the output folder if an earlier run has begun it; itself it writes nothing."""
    return _open_folder(config, source) if _storage(config.output).exists(MANIFEST) else None


def _open_folder(config: PrepareConfig, source: Source) -> StageFolder:
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
        return StageFolder(config.output, STAGE, identity, config.num_shards)
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
    shards: defaultdict[int, list[Record]] = defaultdict(list)
    for record in listing.records:
        shards[shard_of(record.image_id, folder.num_shards)].append(record)
    task = PrepareTask(
        folder=folder, source=source, max_pixels=config.max_image_pixels, short_side=config.short_side
    )
    done = ShardResult(counts=Counter(folder.counts()))
    if 0 in pending:  # the receipt of shard 0 includes the driver's rejects
        done.add_rejects(listing.rejects)
    blocks = [
        pa.table(
            {
                "shard": [shard],
                "records": [records_to_json(shards[shard])],
                "rejects": [rejects_to_json(listing.rejects if shard == 0 else [])],
            }
        )
        for shard in pending
    ]
    images = sum(len(shards[shard]) for shard in pending)
    with ShardProgress(images, f"prepare {config.source}") as progress:
        for row in _run(blocks, task, progress.reporter()):
            done.counts.update(json.loads(row["counts"]))
            done.examples = {**json.loads(row["examples"]), **done.examples}
            _stop_at_too_many(config, listing, done)


def _run(blocks: list[pa.Table], task: PrepareTask, progress: Progress) -> Iterator[dict[str, Any]]:
    import ray.data

    dataset = ray.data.from_arrow(blocks)  # one row per block, so one shard per task
    yield from dataset.map(_shard_row, fn_kwargs={"task": task, "progress": progress}).iter_rows()


def _shard_row(row: dict[str, Any], *, task: PrepareTask, progress: Progress) -> dict[str, Any]:
    task.folder.require_seen()
    records, rejects = records_from_json(row["records"]), rejects_from_json(row["rejects"])
    result = write_shard(task, int(row["shard"]), records, rejects, progress)
    return {"counts": json.dumps(result.counts), "examples": json.dumps(result.examples)}


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
    if listing.records and rejected <= config.max_reject_fraction * rows:
        return
    if not listing.records and not rejected:
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
