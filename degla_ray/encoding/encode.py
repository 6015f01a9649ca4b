"""Encode distinct images and texts with a pool of Ray Data actors that hold the model.

The driver cuts the work into batches: images that are cheap to read together, and texts sorted by length,
because the text tower computes up to a batch's longest caption. Batches of the first benchmark come first,
and each flows read+decode -> encode. Without a GPU, Ray Data fuses both steps into the actors; with one,
decoding runs in CPU tasks. The content of a batch does not depend on the number of actors, and rows are
matched by key, so the features do not depend on it either. Images whose features are cached are read but not
decoded. The model travels through Ray's object store, so its files need not be readable on other nodes.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from degla_ray import resources
from degla_ray.deadline import with_deadline
from degla_ray.encoding.feature_cache import FeatureCache, image_digest, text_digest
from degla_ray.encoding.features import image_key
from degla_ray.encoding.images import ImageBatch, ImageSource, StoredImage
from degla_ray.encoding.needs import Encoded, Needs, Work
from degla_ray.errors import DataError, one_line
from degla_ray.identity import canonical, fingerprint
from degla_ray.resources import Need

if TYPE_CHECKING:
    from degla_ray.model.loaded import LoadedModel

NO_FEATURES = b""
STALL_S = 1200.0


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Size and resources of the actor pool."""

    num_actors: int
    cpus_per_actor: float
    use_gpu: bool
    batch_size: int
    """Images or texts per batch."""
    stall_seconds: float = STALL_S
    """Seconds without a finished batch after which encoding fails."""

    def need(self) -> Need:
        """Return what the actors reserve; one of them suffices."""
        each = {"CPU": self.cpus_per_actor} | ({"GPU": 1.0} if self.use_gpu else {})
        return Need(setting="compute.cpus", value=self.cpus_per_actor, unit=[each], wanted=self.num_actors)


def model_identity(loaded: LoadedModel) -> str:
    """Return a hash of what determines a model's features: weights, preprocessing, activation, tokenizer.

    Equal models have equal identities, whatever file they came from.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(loaded.model.state_dict().items()):
        array = tensor.detach().cpu().contiguous().flatten().view(dtype=_torch().uint8).numpy()
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
        for text in list(work.pending_texts()):
            digest = text_digest(text)
            if (feature := cache.get(digest)) is not None:
                work.add_text(text, feature, truncated=digest in cache.truncated)
    batches = _batches(sources, work, pool.batch_size)
    yield from work.finished()
    try:
        for row in _run(loaded, sources, batches, pool, cache):
            _take(row, work, cache, loaded.name)
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


def _take(row: Mapping[str, Any], work: Work, cache: FeatureCache | None, model: str) -> None:
    """Add the features and errors of one finished row to the work and the cache."""
    names = list(row["encoded"])
    rows = np.frombuffer(row["features"], dtype=np.float32).reshape(max(1, len(names)), -1)[: len(names)]
    if not np.isfinite(rows).all():
        raise DataError(f"model {model}", "features that are not finite", "weights without NaN or inf")
    cut = list(row["truncated"]) or [False] * len(names)
    for name, digest, feature, is_cut in zip(names, row["digests"], rows, cut, strict=True):
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
) -> Iterator[dict[str, Any]]:
    """Yield the result rows of all work rows, in no particular order."""
    import ray
    import ray.data

    if not batches:
        return
    fewest, most = (min(actors, len(batches)) for actors in resources.room(pool.need()))
    known = cache.digests() if cache is not None else np.array([], dtype="S32")
    results = (
        ray.data.from_items(batches, override_num_blocks=len(batches))
        .map(_Decoder(loaded.preprocess_cfg, sources, ray.put(known)))
        .map(
            _Encoder,
            fn_constructor_args=(ray.put(loaded), pool.cpus_per_actor),
            compute=ray.data.ActorPoolStrategy(min_size=fewest, max_size=most),
            num_cpus=pool.cpus_per_actor,
            num_gpus=1 if pool.use_gpu else None,
        )
    )

    def stalled(done: int) -> DataError:
        found = f"no progress for {pool.stall_seconds:g} s after {done} of {len(batches)} batches"
        return DataError(
            "encoding", found, "a batch sooner; other jobs may hold the cluster's CPUs or GPUs (`ray status`)"
        )

    yield from with_deadline(results.iter_rows(), pool.stall_seconds, stalled)


class _Decoder:
    """Reads and preprocesses those images of a batch that are not cached; passes texts through."""

    def __init__(
        self, preprocess_cfg: Mapping[str, Any], sources: Mapping[str, ImageSource], known_ref: Any
    ) -> None:
        self.preprocess_cfg, self.sources = dict(preprocess_cfg), dict(sources)
        self.known_ref = known_ref

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        import ray

        found: dict[str, list[Any]] = {name: [] for name in ("ids", "digests", "known", "known_digests")}
        found |= {"failed": [], "reasons": []}
        if not row["source"]:
            digests = [text_digest(text) for text in row["ids"]]
            return {**row, **found, "ids": list(row["ids"]), "digests": digests, "pixels": b"", "shape": []}
        from degla_ray.model.preprocess import eval_transform  # imports open_clip, which takes seconds

        transform, known = eval_transform(self.preprocess_cfg), ray.get(self.known_ref)
        batch = ImageBatch(ids=list(row["ids"]), where=row["where"])
        pixels = []
        for image_id, stored in zip(batch.ids, self.sources[row["source"]].read(batch), strict=True):
            try:
                if isinstance(stored, Exception):
                    raise stored
                digest = image_digest(stored.content)
                if _holds(known, digest):
                    found["known"].append(image_id)
                    found["known_digests"].append(digest)
                    continue
                pixels.append(_decode(stored, transform))
                found["ids"].append(image_id)
                found["digests"].append(digest)
            except Exception as error:  # Pillow raises a dozen types; the image is recorded as failed
                found["failed"].append(image_id)
                found["reasons"].append(one_line(error))
        stacked = np.stack(pixels) if pixels else np.zeros((0,), dtype=np.float32)
        return {**row, **found, "pixels": stacked.tobytes(), "shape": list(stacked.shape)}


def _holds(known: np.ndarray, digest: str) -> bool:
    """Return whether an ascending array contains the digest."""
    at = int(np.searchsorted(known, digest.encode()))
    return at < len(known) and bool(known[at] == digest.encode())


class _Encoder:
    """Actor that holds the model and encodes batches."""

    def __init__(self, loaded_ref: Any, cpus: float) -> None:
        import ray

        torch = _torch()
        torch.set_num_threads(max(1, int(cpus)))
        loaded: LoadedModel = ray.get(loaded_ref)
        self.device = "cuda" if ray.get_gpu_ids() else "cpu"
        self.model = loaded.model.to(self.device).eval()
        self.tokenizer = loaded.tokenizer

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        from degla_ray.model.encode import encode_image, encode_text

        torch, names = _torch(), list(row["ids"])
        features, truncated = NO_FEATURES, []
        with torch.inference_mode():
            if not row["source"]:
                tokens_BL = self.tokenizer(names)
                truncated = self._truncated(names, tokens_BL.shape[1])
                features = encode_text(self.model, tokens_BL.to(self.device)).cpu().numpy().tobytes()
            elif names:
                shape = [int(n) for n in row["shape"]]
                pixels = np.frombuffer(row["pixels"], dtype=np.float32).reshape(shape)
                images_BCHW = torch.from_numpy(pixels.copy()).to(self.device)
                features = encode_image(self.model, images_BCHW).cpu().numpy().tobytes()
        passed_on = ("digests", "known", "known_digests", "failed", "reasons")
        return {
            "source": row["source"],
            "encoded": names,
            "features": features,
            "truncated": truncated,
            **{name: list(row[name]) for name in passed_on},
        }

    def _truncated(self, texts: list[str], context_length: int) -> list[bool]:
        """Return, per text, whether it exceeds the model's context length."""
        longer_BL = self.tokenizer(["", *texts], context_length=context_length + 1)
        padding = longer_BL[0, -1]
        return [bool(last != padding) for last in longer_BL[1:, -1]]


def _decode(stored: StoredImage, transform: Any) -> np.ndarray:
    with stored.open() as image:
        array: np.ndarray = transform(image).numpy()
    if not np.isfinite(array).all():
        raise ValueError("not finite after preprocessing")
    return array


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _torch() -> Any:
    import torch  # takes seconds; a rerun with nothing to do skips it

    return torch
