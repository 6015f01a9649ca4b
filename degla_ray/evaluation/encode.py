"""Features of distinct pictures and texts, by a pool of Ray Data actors that hold the model.

The driver cuts the work into batches (a batch of pictures lies in one Parquet part; texts are sorted by
length, because the text tower computes up to a batch's longest caption) and the batches flow read+decode
-> encode. Without a GPU Ray Data fuses the two into the actors, with one the decoding spreads over CPU
tasks. What a batch holds does not depend on the number of actors, and rows are put back by key, so the
features do not either. The model travels through Ray's object store: it need not be readable elsewhere.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import queue
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from degla_ray.errors import DataError, SettingError
from degla_ray.evaluation.benchmarks.base import Features, image_key
from degla_ray.schema import IMAGES
from degla_ray.shards import Storage, canonical, fingerprint

if TYPE_CHECKING:
    from degla_ray.model.build import LoadedModel

NO_PIXELS = b""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Features, and the pictures that have none."""

    features: Features
    missing: Mapping[str, str]
    """`image_key` -> why it could not be read."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The actors."""

    num_actors: int
    cpus_per_actor: float
    use_gpu: bool
    batch_size: int
    """Pictures or texts of one batch."""
    stall_seconds: float
    """No finished batch for this long is an error."""


def model_identity(loaded: LoadedModel) -> str:
    """Hash of what decides a model's features: weights, preprocessing, activation, tokenizer.

    Equal models have equal identities whatever file they came from.
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
    folders: Mapping[str, str],
    keys: Iterable[str],
    texts: Iterable[str],
    pool: Pool,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> Encoded:
    """Encodes each distinct picture and text once. Ray must be running.

    Args:
        loaded: the model; a copy goes to every actor.
        folders: source name -> folder that holds `images/part-*.parquet`.
        keys: `image_key` of every picture wanted.
        texts: every text wanted.
        pool: the actors.
        on_batch: told of batches done and of all batches after each.

    Raises:
        SettingError: the cluster cannot hold one actor.
        DataError: an image folder has no parts; features are not finite; no batch for `stall_seconds`.
    """
    wanted, ordered_texts = set(keys), sorted(set(texts), key=lambda text: (len(text), text))
    batches, missing = _picture_batches(folders, wanted, pool.batch_size)
    batches += [
        {"part": "", "rows": [], "keys": list(chunk)} for chunk in _chunks(ordered_texts, pool.batch_size)
    ]
    img: dict[str, np.ndarray] = {}
    txt: dict[str, np.ndarray] = {}
    for done, row in enumerate(_run(loaded, batches, pool), start=1):
        on_batch(done, len(batches))
        target = img if row["part"] else txt
        ok = list(row["encoded"])
        if ok:
            rows = np.frombuffer(row["features"], dtype=np.float32).reshape(len(ok), -1)
            if not np.isfinite(rows).all():
                raise DataError(
                    f"model {loaded.name}", "features that are not finite", "weights without NaN or inf"
                )
            target.update(zip(ok, rows, strict=True))
        missing.update(zip(row["failed"], row["reasons"], strict=True))
    image_order = sorted(img)
    return Encoded(
        features=Features(
            img_ND=_stack([img[key] for key in image_order]),
            txt_MD=_stack([txt[text] for text in ordered_texts]),
            image_row={key: i for i, key in enumerate(image_order)},
            text_row={text: i for i, text in enumerate(ordered_texts)},
        ),
        missing=dict(sorted(missing.items())),
    )


def _picture_batches(
    folders: Mapping[str, str], wanted: set[str], batch_size: int
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Work rows for the wanted pictures, each within one part, and the pictures that no part holds."""
    batches: list[dict[str, Any]] = []
    unseen = set(wanted)
    for source, uri in folders.items():
        storage = Storage(uri)
        parts = [name for name in storage.names("images") if name.endswith(".parquet")]
        if not parts:
            raise DataError(
                storage.path("images"), "no Parquet parts", f"a dataset with columns {IMAGES.names}"
            )
        for part in parts:
            with storage.open_parquet("images", part) as file:
                if "image" not in file.schema_arrow.names or "image_id" not in file.schema_arrow.names:
                    raise DataError(storage.path("images", part), "other columns", f"columns {IMAGES.names}")
                ids = file.read(columns=["image_id"])["image_id"].to_pylist()
            found = []
            for row, image_id in enumerate(ids):
                key = image_key(source, image_id)
                if key in unseen:
                    unseen.discard(key)  # a second row of the same id is not encoded again
                    found.append((row, key))
            batches += [
                {"part": f"{uri}\n{part}", "rows": [r for r, _ in chunk], "keys": [k for _, k in chunk]}
                for chunk in _chunks(found, batch_size)
            ]
    return batches, dict.fromkeys(sorted(unseen), "not in the images dataset")


def _run(loaded: LoadedModel, batches: list[dict[str, Any]], pool: Pool) -> Iterator[dict[str, Any]]:
    """Result rows of all work rows, in no particular order."""
    import ray
    import ray.data

    if not batches:
        return
    total = ray.cluster_resources()
    if pool.use_gpu and total.get("GPU", 0) < 1:
        raise SettingError("use_gpu", True, "a cluster with a GPU, or use_gpu=false")
    fitting = int(
        min(total.get("CPU", 0) / pool.cpus_per_actor, total["GPU"] if pool.use_gpu else sys.maxsize)
    )
    if fitting < 1:
        raise SettingError(
            "cpus_per_actor", pool.cpus_per_actor, f"at most the cluster's {total.get('CPU', 0):g} CPUs"
        )
    actors = min(pool.num_actors, fitting, len(batches))
    results = (
        ray.data.from_items(batches, override_num_blocks=len(batches))
        .map(_Decoder(loaded.preprocess_cfg))
        .map(
            _Encoder,
            fn_constructor_args=(ray.put(loaded), pool.cpus_per_actor),
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=pool.cpus_per_actor,
            num_gpus=1 if pool.use_gpu else None,
        )
    )
    yield from _with_deadline(results.iter_rows(), pool.stall_seconds, len(batches))


class _Decoder:
    """Reads and preprocesses one batch of pictures; passes texts through."""

    def __init__(self, preprocess_cfg: Mapping[str, Any]) -> None:
        self.preprocess_cfg = dict(preprocess_cfg)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if not row["part"]:
            return {**row, "pixels": NO_PIXELS, "shape": [], "failed": [], "reasons": []}
        transform = eval_transform(self.preprocess_cfg)
        pixels, ok, failed, reasons = [], [], [], []
        for key, data in zip(row["keys"], _read_pictures(row["part"], list(row["rows"])), strict=True):
            try:
                pixels.append(_decode(data, transform))
                ok.append(key)
            except Exception as error:  # Pillow raises a dozen types; the picture is reported by name
                failed.append(key)
                reasons.append(f"{type(error).__name__}: {error}".splitlines()[0])
        batch = np.stack(pixels) if pixels else np.zeros((0,), dtype=np.float32)
        return {
            **row,
            "keys": ok,
            "pixels": batch.tobytes(),
            "shape": list(batch.shape),
            "failed": failed,
            "reasons": reasons,
        }


class _Encoder:
    """Holds the model and encodes batches."""

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

        torch, keys = _torch(), list(row["keys"])
        features = NO_PIXELS
        with torch.inference_mode():
            if not row["part"]:
                tokens_BL = self.tokenizer(keys).to(self.device)
                features = encode_text(self.model, tokens_BL).cpu().numpy().tobytes()
            elif keys:
                pixels = np.frombuffer(row["pixels"], dtype=np.float32).reshape(
                    [int(n) for n in row["shape"]]
                )
                images_BCHW = torch.from_numpy(pixels.copy()).to(self.device)
                features = encode_image(self.model, images_BCHW).cpu().numpy().tobytes()
        return {
            "part": row["part"],
            "encoded": keys,
            "features": features,
            "failed": list(row["failed"]),
            "reasons": list(row["reasons"]),
        }


def eval_transform(preprocess_cfg: Mapping[str, Any]) -> Any:
    """The model's own transform for evaluation: PIL image -> float32 tensor [3, H, W]."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    return image_transform_v2(PreprocessCfg(**preprocess_cfg), is_train=False)


def _decode(data: bytes | None, transform: Any) -> np.ndarray:
    from PIL import Image

    if not data:
        raise ValueError("no bytes")
    with Image.open(io.BytesIO(data)) as picture:
        array: np.ndarray = transform(picture).numpy()
    if not np.isfinite(array).all():
        raise ValueError("not finite after preprocessing")
    return array


def _read_pictures(part: str, rows: Sequence[int]) -> list[bytes | None]:
    """Bytes of the given ascending rows of one part; reads only the row groups that hold them."""
    uri, name = part.split("\n")
    by_group: dict[int, list[int]] = defaultdict(list)
    found: list[bytes | None] = []
    with Storage(uri).open_parquet("images", name) as file:
        ends = np.cumsum([file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)])
        for row in rows:
            group = int(np.searchsorted(ends, row, side="right"))
            by_group[group].append(int(row - (ends[group - 1] if group else 0)))
        for group in sorted(by_group):
            column = file.read_row_group(group, columns=["image"])["image"]
            found += column.take(by_group[group]).to_pylist()
    return found


def _with_deadline(rows: Iterator[Any], seconds: float, total: int) -> Iterator[Any]:
    """Passes rows on; no row for `seconds` raises. Ray Data itself waits for ever."""
    handed: queue.Queue[tuple[bool, Any]] = queue.Queue()
    others = set(threading.enumerate())

    def pull() -> None:
        try:
            for row in rows:
                handed.put((True, row))
            handed.put((False, None))
        except BaseException as error:  # re-raised in the consuming thread
            handed.put((False, error))

    threading.Thread(target=pull, name="degla-encode", daemon=True).start()
    for done in itertools.count():
        try:
            is_row, value = handed.get(timeout=seconds)
        except queue.Empty:
            found = f"no progress for {seconds:g} s after {done} of {total} batches"
            expected = "a batch sooner: are the cluster's CPUs or GPUs taken? (`ray status`)"
            _stop_execution(others)
            raise DataError("encoding", found, expected) from None
        if is_row:
            yield value
        elif value is None:
            return
        else:
            raise value


def _stop_execution(others: set[threading.Thread]) -> None:
    """Ends the Ray Data execution that began after `others` were running.

    Nothing public does: an execution that nobody reads any more goes on waiting for its actors, and starts
    a Ray of its own once ours has ended.
    """
    for thread in set(threading.enumerate()) - others:
        if type(thread).__name__ == "StreamingExecutor":
            thread.shutdown(force=True)  # type: ignore[attr-defined]


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _stack(rows: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack(rows) if rows else np.zeros((0, 0), dtype=np.float32)


def _torch() -> Any:
    import torch  # seconds to import: not for a rerun that has nothing to do

    return torch
