"""Encode distinct images and texts with a pool of Ray Data actors that hold the model.

The driver cuts the work into batches: images that are cheap to read together, and texts sorted by length,
because the text tower computes up to a batch's longest caption. Batches of the first benchmark come first,
and each flows through `reading.py` (decode, tokenise) and `actor.py` (encode). Without a GPU, Ray Data fuses
both stages into the actors; with one, reading runs in CPU tasks. The content of a batch does not depend on
the number of actors, and rows are matched by key, so the features do not depend on it either. Images whose
features are cached are read but not decoded. The model travels through Ray's object store, so its files need
not be readable on other nodes.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from degla_ray import resources
from degla_ray.deadline import with_deadline
from degla_ray.devices import free_gpus
from degla_ray.encoding.actor import GPU_CALLS, Encoder
from degla_ray.encoding.feature_cache import FeatureCache, text_digest
from degla_ray.encoding.features import image_key
from degla_ray.encoding.images import ImageBatch, ImageSource
from degla_ray.encoding.needs import Encoded, Needs, Work
from degla_ray.encoding.pool import Pool
from degla_ray.encoding.reading import Reader
from degla_ray.encoding.rows import as_items, row_of
from degla_ray.errors import DataError
from degla_ray.identity import canonical, fingerprint

if TYPE_CHECKING:
    from degla_ray.model.loaded import LoadedModel

console = Console()


def model_identity(loaded: LoadedModel) -> str:
    """Return a hash of what determines a model's features: weights, preprocessing, activation, tokenizer.

    Equal models have equal identities, whatever file they came from.
    """
    import torch  # takes seconds

    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(loaded.model.state_dict().items()):
        array = tensor.detach().cpu().contiguous().flatten().view(dtype=torch.uint8).numpy()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}\n".encode())
        digest.update(array)
    probe = loaded.tokenizer(["Two dogs, 3 cats; a red-and-white car's door?"])
    digest.update(probe.numpy().tobytes())
    digest.update(fingerprint(canonical([loaded.preprocess_cfg, loaded.activation])).encode())
    return digest.hexdigest()


def encode(
    loaded: LoadedModel,
    sources: Mapping[str, ImageSource],
    needs: Sequence[Needs],
    pool: Pool,
    cache: FeatureCache | None = None,
    on_progress: Callable[[int, int, int], None] = lambda number, done, total: None,
) -> Iterator[tuple[int, Encoded]]:
    """Encode each distinct image and text once, and yield each benchmark's features as soon as they are
    complete.

    Args:
        loaded: the model; every actor gets a copy.
        sources: source name -> where its images are stored.
        needs: needs of each benchmark.
        pool: the actors.
        cache: features computed earlier; new ones are added to it.
        on_progress: called with a benchmark's number, how many of its images and texts are done, and their
            total.

    Yields:
        The benchmark's number and its features. Ray must be running if anything has to be encoded.

    Raises:
        SettingError: the cluster cannot host a single actor.
        DataError: a source's files are missing, features are not finite, or no batch finished for
            `stall_seconds`.
    """
    work = Work(needs, on_progress)
    if cache is not None:
        by_digest = {text_digest(text): text for text in work.pending_texts()}
        for digest, feature in cache.known(by_digest):
            work.add_text(by_digest[digest], feature, truncated=digest in cache.truncated)
    batches = _batches(sources, work, pool.batch_size)
    yield from work.finished()
    try:
        for row, features in _run(loaded, sources, batches, pool, cache):
            _take(row, features, work, cache, loaded.name)
            yield from work.finished()
    finally:
        if cache is not None:
            cache.flush()


def encode_all(
    loaded: LoadedModel,
    sources: Mapping[str, ImageSource],
    keys: Iterable[str],
    texts: Iterable[str],
    pool: Pool,
) -> Encoded:
    """Encode everything for a single caller; see `encode`."""
    [(_, encoded)] = encode(loaded, sources, [Needs(keys=set(keys), texts=set(texts))], pool)
    return encoded


def _batches(sources: Mapping[str, ImageSource], work: Work, batch_size: int) -> list[dict[str, Any]]:
    """Return work rows for all images and uncached texts, in the order in which benchmarks need them."""
    rows: list[tuple[tuple[int, int], dict[str, Any]]] = []
    by_source: dict[str, set[str]] = defaultdict(set)
    for what, key in list(work.needed_by):
        if what == "key":
            source, _, image_id = key.partition(":")
            by_source[source].add(image_id)
    for source, wanted in by_source.items():
        if source not in sources:
            reason = "no folder is configured for these images"
            batches, absent = list[ImageBatch](), dict.fromkeys(sorted(wanted), reason)
        else:
            batches, absent = sources[source].batches(wanted, batch_size)
        for image_id, reason in absent.items():
            work.add_missing(image_key(source, image_id), reason)
        for batch in batches:
            first = min(work.first_needed_by("key", image_key(source, i)) for i in batch.ids)
            rows.append(((first, 0), {"source": source, "ids": batch.ids, "where": batch.where}))
    by_user: dict[int, list[str]] = defaultdict(list)
    for text in work.pending_texts():
        by_user[work.first_needed_by("text", text)].append(text)
    for number, texts in by_user.items():
        ordered = sorted(texts, key=lambda text: (len(text), text))
        rows += [
            ((number, 1), {"source": "", "ids": list(c), "where": ""}) for c in _chunks(ordered, batch_size)
        ]
    return [row for _, row in sorted(rows, key=lambda entry: entry[0])]


def _take(
    row: Mapping[str, Any], features_BD: np.ndarray, work: Work, cache: FeatureCache | None, model: str
) -> None:
    """Add the features and errors of one finished row to the work and the cache."""
    if not np.isfinite(features_BD).all():
        raise DataError(f"model {model}", "features that are not finite", "weights without NaN or inf")
    cut = row["truncated"] or [False] * len(row["ids"])
    for name, digest, feature, is_cut in zip(row["ids"], row["digests"], features_BD, cut, strict=True):
        if row["source"]:
            work.add_image(image_key(row["source"], name), feature)
        else:
            work.add_text(name, feature, truncated=bool(is_cut))
        if cache is not None:
            cache.add(digest, feature, bool(is_cut))
    for name, digest in zip(row["known"], row["known_digests"], strict=True):
        feature = cache.get(digest) if cache is not None else None
        assert feature is not None  # "known" means that the cache has it
        work.add_image(image_key(row["source"], name), feature)
    for name, reason in zip(row["failed"], row["reasons"], strict=True):
        work.add_missing(image_key(row["source"], name), reason)


def _run(
    loaded: LoadedModel,
    sources: Mapping[str, ImageSource],
    batches: list[dict[str, Any]],
    pool: Pool,
    cache: FeatureCache | None,
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Yield the finished rows with their features, in no particular order."""
    import ray
    import ray.data

    if not batches:
        return
    fewest, most = resources.room(pool.need())
    told = f"encoding: {pool.devices(most).describe(free_gpus())}"
    console.print(told, markup=False, highlight=False, soft_wrap=True)
    fewest, most = min(fewest, len(batches)), min(most, len(batches))
    known = cache.digests() if cache is not None else np.array([], dtype="S32")
    reader = Reader(loaded.preprocess_cfg, sources, ray.put(known), ray.put(loaded.tokenizer))
    calls = GPU_CALLS if pool.use_gpu else 1
    results = (
        ray.data.from_items(as_items(batches), override_num_blocks=len(batches))
        .map_batches(reader, batch_size=None, batch_format="pyarrow")
        .map_batches(
            Encoder,
            batch_size=None,
            batch_format="pyarrow",
            fn_constructor_args=(ray.put(loaded), pool.cpus_per_actor, pool.precision),
            compute=ray.data.ActorPoolStrategy(
                min_size=fewest,
                max_size=most,
                max_concurrent_calls_per_actor=calls,
                enable_true_multi_threading=calls > 1,
            ),
            num_cpus=pool.cpus_per_actor,
            num_gpus=1 if pool.use_gpu else None,
        )
    )

    def stalled(done: int) -> DataError:
        found = f"no progress for {pool.stall_seconds:g} s after {done} of {len(batches)} batches"
        return DataError(
            "encoding", found, "a batch sooner; other jobs may hold the cluster's CPUs or GPUs (`ray status`)"
        )

    tables = results.iter_batches(batch_size=None, batch_format="pyarrow")
    for table in with_deadline(tables, pool.stall_seconds, stalled):
        for number in range(len(table)):
            yield row_of(table.slice(number, 1))


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
