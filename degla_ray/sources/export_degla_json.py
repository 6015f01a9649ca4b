"""Export of captions and negatives in DeGLA's released format, for training code that reads it.

Run by `jobs/export_degla_json.py`. The format identifies an image by its COCO number alone, so only COCO
images can be exported. All texts are held in memory: about 1 GB for 414,000 captions with ten negatives each.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from degla_ray.config import ExportDeglaJsonConfig
from degla_ray.errors import DataError, SettingError
from degla_ray.schema import CAPTIONS, NEGATIVES
from degla_ray.sources.coco import coco_number
from degla_ray.stage import read_complete
from degla_ray.storage import Storage


class Released(NamedTuple):
    """Entries of the released file, and the number of captions left out for lack of negatives."""

    entries: list[dict[str, Any]]
    left_out: int


def export_degla_json(config: ExportDeglaJsonConfig) -> dict[str, int]:
    """Write the file and return the counts captions, written and left_out.

    Raises:
        SettingError: the split does not exist, or `output` is not a file name.
        DataError: the folders are unfinished or do not belong together, an image has no COCO number, or
            no caption has enough negatives.
    """
    prepared, about_prepared = read_complete(config.prepared, "prepare")
    negatives, about_negatives = read_complete(config.negatives, "negatives")
    if about_negatives["made_from"]["identity"].get("prepared") != about_prepared["fingerprint"]:
        expected = f"the negatives of {config.prepared}"
        raise DataError(config.negatives, "the negatives of another prepared folder", expected)
    captions = prepared.read_dataset("captions", CAPTIONS)
    own = captions.filter(pc.equal(captions["split"], config.split))
    if not own.num_rows:
        raise SettingError(
            "split", config.split, f"one of {sorted(pc.unique(captions['split']).to_pylist())}"
        )
    columns = ["sample_id", "kind", "negative"]
    released = released_entries(
        own,
        negatives.read_dataset("negatives", NEGATIVES, columns),
        config.min_negatives,
        config.prepared,
        config.seed,
    )
    if not released.entries:
        found = f"no caption with {config.min_negatives} negatives"
        raise DataError(config.negatives, found, "some, or a smaller min_negatives")
    folder, slash, name = config.output.rpartition("/")
    storage = Storage(folder + slash if slash else ".")
    if not name or storage.is_folder(name):
        raise SettingError("output", config.output, "the name of a JSON file")
    storage.write_bytes(json.dumps(released.entries, indent=1).encode(), name)
    counts = {
        "captions": own.num_rows,
        "written": len(released.entries),
        "left_out": released.left_out,
    }
    print(
        f"captions in {counts['captions']} = written {counts['written']} + left out {counts['left_out']} "
        f"(fewer than {config.min_negatives} negatives)"
    )
    return counts


def deal(by_kind: Mapping[str, Sequence[str]], seed: str) -> list[str]:
    """Return the texts of all kinds in round-robin order, with kinds and texts within a kind shuffled.

    The released training code reads the first four, so every kind should be represented among them.
    """
    rng = random.Random(seed)
    kinds = [rng.sample(sorted(by_kind[kind]), len(by_kind[kind])) for kind in sorted(by_kind)]
    rng.shuffle(kinds)
    return [text for turn in itertools.zip_longest(*kinds) for text in turn if text is not None]


def released_entries(
    captions: pa.Table, negatives: pa.Table, min_negatives: int, where: str, seed: int = 0
) -> Released:
    """Return entries sorted by (COCO number, sample_id), with negatives ordered by `deal`.

    Args:
        captions: table in the schema CAPTIONS.
        negatives: table with at least the columns sample_id, kind and negative of NEGATIVES; rows of other
            captions are ignored.
        min_negatives: captions with fewer negatives are left out.
        where: origin of the captions, for messages.
        seed: seed of the order of a caption's negatives.

    Raises:
        DataError: an image has no COCO number, or two images share one.
    """
    by_kind: dict[str, dict[str, list[str]]] = {i: {} for i in captions["sample_id"].to_pylist()}
    columns = (negatives[name].to_pylist() for name in ("sample_id", "kind", "negative"))
    for sample_id, kind, text in zip(*columns, strict=True):
        if sample_id in by_kind:
            by_kind[sample_id].setdefault(kind, []).append(text)
    given = {sample_id: deal(kinds, f"{seed} {sample_id}") for sample_id, kinds in by_kind.items()}
    images: dict[int, str] = {}
    entries: list[tuple[int, str, dict[str, Any]]] = []
    for row in captions.to_pylist():
        sample_id, image_id = row["sample_id"], row["image_id"]
        if len(given[sample_id]) < min_negatives:
            continue
        number = coco_number(image_id)
        if number is None:
            found = f"image {image_id!r}, which has no COCO number"
            expected = "images of COCO, such as COCO_train2014_000000000009.jpg: the format names no others"
            raise DataError(where, found, expected)
        if images.setdefault(number, image_id) != image_id:
            found = f"images {images[number]!r} and {image_id!r}, both COCO's {number}"
            raise DataError(where, found, "each image once")
        entry = {"image_id": number, "original": row["caption"], "enhanced": given[sample_id]}
        entries.append((number, sample_id, entry))
    entries.sort(key=lambda each: each[:2])
    return Released(entries=[entry for _, _, entry in entries], left_out=captions.num_rows - len(entries))
