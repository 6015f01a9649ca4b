"""NLVR's development set as a choice between two images: a sentence is true of one and false of the other.

Only examples of the same presentation are paired: an identifier n-m belongs to presentation n (NLVR's
README). Fifteen sentences occur in two or more presentations, which are not mixed. Each scene has six images,
one per order of its boxes; the true and the false scene are shown in the same order.

Source: Suhr et al. 2017 (NLVR, CC-BY-4.0); the pairing is our own.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from degla_ray.encoding.features import image_key
from degla_ray.errors import DataError
from degla_ray.evaluation.benchmarks.annotations import read_lines
from degla_ray.evaluation.benchmarks.base import Rule, Shown
from degla_ray.evaluation.benchmarks.image_choice import ImageChoice
from degla_ray.storage import Storage

NLVR = "nlvr"
FILE = "dev.json"
ORDERS = 6  # images per scene, one for each order of its three boxes


def load_nlvr(folder: Storage) -> ImageChoice:
    """Pair every true scene of a sentence with each of its false ones, in six orders; item ids are
    TRUE/FALSE/k.

    Args:
        folder: contains `dev.json` and `images/`; it is the image collection `nlvr`.

    Raises:
        DataError: the file is missing or broken, a presentation has two sentences, or no pair exists.
    """
    where = folder.path(FILE)
    fields = {"sentence": str, "label": str, "identifier": str, "directory": str}
    presentations: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for identifier, record in read_lines(folder, FILE, fields=fields, id_field="identifier"):
        if record["label"] not in ("true", "false"):
            raise DataError(f"{where}, item {identifier!r}", f"label {record['label']!r}", "true or false")
        presentations[identifier.partition("-")[0]].append(record)
    items = []
    for presentation, records in presentations.items():
        sentences = sorted({record["sentence"] for record in records})
        if len(sentences) > 1:
            here = f"{where}, items {presentation}-…"
            raise DataError(here, f"{len(sentences)} sentences, {sentences[:2]}", "the same sentence in all")
        true, false = ([r for r in records if r["label"] == label] for label in ("true", "false"))
        items += [
            Shown(
                subset="pairs",
                item_id=f"{right['identifier']}/{wrong['identifier']}/{k}",
                images=(_image(right, k), _image(wrong, k)),
                texts=(sentences[0],),
            )
            for right in true
            for wrong in false
            for k in range(ORDERS)
        ]
    if not items:
        raise DataError(where, "no sentence with a true and a false scene", "at least one")
    return ImageChoice(NLVR, items, Rule.STRICT, image=_presentation)


def _presentation(item: Shown) -> str:
    """Return an item's key for statistics: its presentation, whose scenes are also those of other items."""
    return image_key(NLVR, item.item_id.partition("-")[0])


def _image(record: dict[str, Any], k: int) -> str:
    return image_key(NLVR, f"images/{record['directory']}/dev-{record['identifier']}-{k}.png")
