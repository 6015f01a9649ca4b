"""Export captions and negatives in DeGLA's released format, for training code that reads it.

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
    """Entries of the released file, and the number of captions omitted for having too few negatives."""

    entries: list[dict[str, Any]]
    left_out: int


def export_degla_json(config: ExportDeglaJsonConfig) -> dict[str, int]:
    """Write the file and return the counts captions, written and left_out.

    Raises:
        SettingError: the split does not exist, or `output` is not a file name.
        DataError: the folders are unfinished or do not belong together, an image has no COCO number, or
            no caption has enough negatives.
    """
    own, negatives = read_pair(config.prepared, config.negatives, config.split)
    released = released_entries(own, negatives, config.min_negatives, config.prepared, config.seed)
    if not released.entries:
        raise too_few(config.negatives, config.min_negatives)
    write_file(json.dumps(released.entries, indent=1), config.output, "a JSON file")
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


def read_pair(prepared_uri: str, negatives_uri: str, split: str) -> tuple[pa.Table, pa.Table]:
    """Return the captions of a split, and the negatives (sample_id, kind, negative) of all splits.

    Raises:
        SettingError: the split does not exist.
        DataError: a folder is unfinished, or the negatives belong to another prepared folder.
    """
    prepared, about_prepared = read_complete(prepared_uri, "prepare")
    negatives, about_negatives = read_complete(negatives_uri, "negatives")
    if about_negatives["made_from"]["identity"].get("prepared") != about_prepared["fingerprint"]:
        expected = f"the negatives of {prepared_uri}"
        raise DataError(negatives_uri, "the negatives of another prepared folder", expected)
    captions = prepared.read_dataset("captions", CAPTIONS)
    own = captions.filter(pc.equal(captions["split"], split))
    if not own.num_rows:
        raise SettingError("split", split, f"one of {sorted(pc.unique(captions['split']).to_pylist())}")
    return own, negatives.read_dataset("negatives", NEGATIVES, ["sample_id", "kind", "negative"])


def too_few(where: str, min_negatives: int) -> DataError:
    """Return the error for a folder in which every caption has too few negatives."""
    return DataError(where, f"no caption with {min_negatives} negatives", "some, or a smaller min_negatives")


def write_file(text: str, output: str, expected: str) -> None:
    """Write one file to any URI.

    Raises:
        SettingError: `output` does not name a file.
    """
    folder, slash, name = output.rpartition("/")
    storage = Storage(folder + slash if slash else ".")
    if not name or storage.is_folder(name):
        raise SettingError("output", output, f"the name of {expected}")
    storage.write_bytes(text.encode(), name)


def deal(by_kind: Mapping[str, Sequence[str]], seed: str) -> list[str]:
    """Return the texts of all kinds in round-robin order, with kinds and texts within a kind shuffled.

    The released training code reads the first four, so every kind should be represented among them.
    """
    rng = random.Random(seed)
    kinds = [rng.sample(sorted(by_kind[kind]), len(by_kind[kind])) for kind in sorted(by_kind)]
    rng.shuffle(kinds)
    return [text for turn in itertools.zip_longest(*kinds) for text in turn if text is not None]


def dealt(captions: pa.Table, negatives: pa.Table, seed: int) -> dict[str, list[str]]:
    """Return each caption's negatives by sample_id, as `deal` orders them."""
    by_kind: dict[str, dict[str, list[str]]] = {i: {} for i in captions["sample_id"].to_pylist()}
    columns = (negatives[name].to_pylist() for name in ("sample_id", "kind", "negative"))
    for sample_id, kind, text in zip(*columns, strict=True):
        if sample_id in by_kind:
            by_kind[sample_id].setdefault(kind, []).append(text)
    return {sample_id: deal(kinds, f"{seed} {sample_id}") for sample_id, kinds in by_kind.items()}


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
    given = dealt(captions, negatives, seed)
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
