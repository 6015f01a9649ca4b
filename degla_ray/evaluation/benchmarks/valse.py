"""VALSE: eleven instruments, in which each caption is set against one foil. Source: Parcalabescu et al.
2022."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from degla_ray.encoding.features import image_key
from degla_ray.errors import DataError
from degla_ray.evaluation.benchmarks.annotations import read_items
from degla_ray.evaluation.benchmarks.base import Rule
from degla_ray.evaluation.benchmarks.choice import Choice, ChoiceProtocol
from degla_ray.schema import CHOICE_ITEMS
from degla_ray.storage import Storage

VALSE = "valse"
_COUNTING = ("counting-hard", "counting-small-quant", "counting-adversarial")
_ACTIONS = ("action-replacement", "actant-swap")
_COREFERENCE = ("coreference-standard", "coreference-hard")
_OTHERS = ("existence", "plurals", "relations", "foil-it")
SUBSETS = ("existence", "plurals", *_COUNTING, "relations", *_ACTIONS, *_COREFERENCE, "foil-it")
AVERAGES = {  # a member may be an average defined before it
    "valse_counting": _COUNTING,
    "valse_actions": _ACTIONS,
    "valse_coreference": _COREFERENCE,
    "valse": SUBSETS,
    "valse_printed": (*_OTHERS, "valse_counting", *_ACTIONS, *_COREFERENCE),  # columns of the paper's table
    "valse_phenomena": (*_OTHERS, "valse_counting", "valse_actions", "valse_coreference"),
}
COLLECTIONS = {  # (dataset, original_split, prefix of image_file) -> image collection
    ("visual7w", "test", "v7w_"): "visual7w",
    ("coco2017", "val", ""): "coco_val2017",
    ("coco_2017", "val", ""): "coco_val2017",
    ("SWiG", "test", ""): "swig",
    ("FOIL dataset", "test", "COCO_val2014_"): "coco_val2014",
    ("VisDial_v1.0", "train", "COCO_train2014_"): "coco_train2014",
    ("VisDial_v1.0", "train", "COCO_val2014_"): "coco_val2014",
    ("VisDial_v1.0", "val", "VisualDialog_val2018_"): "visdial",
}
_FIELDS = {
    "dataset": str, "original_split": str, "image_file": str, "caption": str, "foil": str, "mturk": dict,
}  # fmt: skip


def load_valse(annotations: Storage, *, min_votes: int = 2) -> Choice:
    """Load VALSE from `valse/INSTRUMENT.json`.

    Args:
        annotations: folder of all annotation files.
        min_votes: annotators, of three, who must have chosen the caption for an item to be kept. The official
            evaluation requires 2; 0 keeps all items.

    Raises:
        DataError: a file is missing or broken, an image belongs to an unknown dataset, or an instrument keeps
            no item.
    """
    rows = []
    for subset in SUBSETS:
        where, kept = annotations.path(VALSE, f"{subset}.json"), 0
        for item_id, item in read_items(annotations, VALSE, f"{subset}.json", fields=_FIELDS):
            here, votes = f"{where}, item {item_id!r}", item["mturk"].get("caption")
            if type(votes) is not int:
                raise DataError(here, f"mturk {item['mturk']!r}", "votes for the caption: a whole number")
            if votes < min_votes:
                continue
            kept += 1
            rows.append(
                {
                    "benchmark": VALSE,
                    "subset": subset,
                    "item_id": item_id,
                    "image_id": image_key(_collection(item, here), item["image_file"]),
                    "texts": [item["caption"], item["foil"]],
                }
            )
        if not kept:
            raise DataError(where, f"no item whose caption has {min_votes} votes", "at least one")
    note = f"captions with {min_votes} of 3 votes or more" if min_votes else "all items"
    return Choice(
        VALSE,
        pa.Table.from_pylist(rows, schema=CHOICE_ITEMS),
        ChoiceProtocol(rule=Rule.STRICT, subsets=SUBSETS, averages=AVERAGES, note=note),
        where=annotations.path(VALSE),
    )


def _collection(item: dict[str, Any], where: str) -> str:
    for (dataset, split, beginning), collection in COLLECTIONS.items():
        if (item["dataset"], item["original_split"]) == (dataset, split) and item["image_file"].startswith(
            beginning
        ):
            return collection
    found = f"{item['dataset']!r}, split {item['original_split']!r}, image {item['image_file']!r}"
    raise DataError(where, found, f"one of {', '.join(f'{d} {s} {b}' for d, s, b in COLLECTIONS)}")
