"""Karpathy's test captions of COCO and Flickr30k, used for ARO's order tests and for retrieval.

The order tests set a caption against four shuffles of itself (shuffles.py). Shuffling 25,010 captions takes
10 s on an idle core and a minute on a busy one, hence `cache`.

Source: Yuksekgonul et al. 2023.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum

import pyarrow as pa

from degla_ray.encoding.features import image_key
from degla_ray.errors import DataError
from degla_ray.evaluation.benchmarks.annotations import read_items
from degla_ray.evaluation.benchmarks.base import Rule
from degla_ray.evaluation.benchmarks.choice import Choice, ChoiceProtocol
from degla_ray.evaluation.benchmarks.retrieval import Retrieval
from degla_ray.evaluation.benchmarks.shuffles import made_with, pre_caption, shuffled
from degla_ray.identity import fingerprint
from degla_ray.schema import CAPTIONS, CHOICE_ITEMS
from degla_ray.storage import Storage

ORDER = "order"


class CaptionSet(StrEnum):
    """Dataset that the captions come from."""

    COCO = "coco"
    FLICKR30K = "flickr30k"


# image collection, and the prefix of the annotated paths that is not part of the collection's folder
_IMAGES = {CaptionSet.COCO: ("coco_val2014", "val2014/"), CaptionSet.FLICKR30K: ("flickr30k", "")}


def load_order(
    annotations: Storage,
    captions: CaptionSet,
    *,
    seed: int = 0,
    cache: Storage | None = None,
    keep: bool = True,
) -> Choice:
    """Load COCO-Order or Flickr30k-Order from `order/NAME_karpathy_test.json`.

    The protocol's note contains a hash of everything that determines the shuffles.

    Args:
        annotations: folder of all annotation files.
        captions: dataset to load.
        seed: seed of the shuffles.
        cache: folder that keeps the shuffles as NAME-HASH.parquet; None computes them on every call.
        keep: whether to write computed shuffles to `cache`.

    Raises:
        DataError: a file is missing or broken, including one in the cache.
    """
    name, file = f"{captions}_order", f"{captions}_karpathy_test.json"
    read = _read(annotations, captions)
    content = hashlib.sha256(annotations.read_bytes(ORDER, file)).hexdigest()
    key = fingerprint({**made_with(), "annotations": content, "seed": seed})
    kept = f"{name}-{key}.parquet"
    if cache is not None and cache.is_file(kept):
        items = _cached(cache, kept)
    else:
        rows = [
            {
                "benchmark": name,
                "subset": ORDER,
                "item_id": f"{image.partition(':')[2]}/{number}",
                "image_id": image,
                "texts": [pre_caption(text) for text in (caption, *shuffled(caption, seed))],
            }
            for image, texts in read
            for number, caption in enumerate(texts)
        ]
        items = pa.Table.from_pylist(rows, schema=CHOICE_ITEMS)
        if cache is not None and keep:
            cache.write_table(items, kept)
    protocol = ChoiceProtocol(rule=Rule.FIRST_ARGMAX, subsets=(ORDER,), note=f"shuffles {key}")
    return Choice(name, items, protocol, where=annotations.path(ORDER, file))


def load_retrieval(annotations: Storage, captions: CaptionSet) -> Retrieval:
    """Load retrieval over the same file, with all captions unchanged.

    Raises:
        DataError: the file is missing or broken.
    """
    rows = [
        {"sample_id": f"{image}/{number}", "image_id": image, "caption": caption, "split": "test"}
        for image, texts in _read(annotations, captions)
        for number, caption in enumerate(texts)
    ]
    return Retrieval(f"{captions}_retrieval", pa.Table.from_pylist(rows, schema=CAPTIONS), None)


def _read(annotations: Storage, captions: CaptionSet) -> list[tuple[str, list[str]]]:
    """Return the `image_key` and captions of each image."""
    parts = (ORDER, f"{captions}_karpathy_test.json")
    collection, beginning = _IMAGES[captions]
    found = []
    for item_id, item in read_items(
        annotations, *parts, fields={"image": str, "caption": list}, id_field="image"
    ):
        here = f"{annotations.path(*parts)}, item {item_id!r}"
        texts = item["caption"]
        if not item_id.startswith(beginning):
            raise DataError(here, f"image {item_id!r}", f"a path that begins with {beginning}")
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise DataError(here, f"caption {texts!r:.80}", "a list of captions, none empty")
        found.append((image_key(collection, item_id.removeprefix(beginning)), texts))
    return found


def _cached(cache: Storage, name: str) -> pa.Table:
    expected = "the shuffles of an earlier call; delete the file to compute them again"
    try:
        with cache.open_parquet(name) as file:
            items = file.read()
    except (pa.ArrowException, OSError) as error:
        raise DataError(cache.path(name), f"a broken file ({error})", expected) from error
    if not items.schema.equals(CHOICE_ITEMS):
        raise DataError(cache.path(name), f"columns {items.schema.names}", expected)
    return items
