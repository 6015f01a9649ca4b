"""ARO's VG-Relation and VG-Attribution: who does what to whom, and which attribute belongs to which object.

Each item shows a region of a Visual Genome image. Accuracy is the mean over relations, or over pairs of
attributes; the items that the official scripts exclude from that mean are reported as a separate subset.

Source: Yuksekgonul et al. 2023. ARO's order tests are in order.py.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

import pyarrow as pa

from degla_ray.encoding.features import image_key
from degla_ray.encoding.images import boxed
from degla_ray.errors import DataError
from degla_ray.evaluation.benchmarks.annotations import AnnotatedItem, read_annotation, read_items
from degla_ray.evaluation.benchmarks.base import Rule
from degla_ray.evaluation.benchmarks.choice import Choice, ChoiceProtocol
from degla_ray.schema import CHOICE_ITEMS
from degla_ray.storage import Storage

ARO = "aro"
VG_RELATION, VG_ATTRIBUTION = "vg_relation", "vg_attribution"
ARO_MEMBERS = ("vg_relation/relations", "vg_attribution/pairs", "coco_order/order", "flickr30k_order/order")
IMAGES = "vg"
SYMMETRIC = "symmetric_relations.json"
MIN_PAIR = 25  # items that a pair of attributes needs to enter the mean
Average = Literal["macro", "micro"]
_BOX = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")
_FIELDS = {"image_path": str, **dict.fromkeys(_BOX, int), "true_caption": str, "false_caption": str}


def load_vg_relation(annotations: Storage, *, average: Average = "macro") -> Choice:
    """Load VG-Relation from `aro/visual_genome_relation.json`.

    The relations listed in `aro/symmetric_relations.json` are reported as the subset `symmetric`.

    Args:
        annotations: folder of all annotation files.
        average: `macro` averages over relations, as the official script does; `micro` over items.

    Raises:
        DataError: a file is missing or broken, or every relation is symmetric.
    """
    file = "visual_genome_relation.json"
    items = read_items(annotations, ARO, file, fields={"relation_name": str, **_FIELDS})
    symmetric = read_annotation(annotations, ARO, SYMMETRIC)
    if not isinstance(symmetric, list) or not all(isinstance(name, str) for name in symmetric):
        where = annotations.path(ARO, SYMMETRIC)
        raise DataError(where, f"{symmetric!r:.80}", "a JSON list of relations")
    names = [item["relation_name"] for _, item in items]
    return _choice(
        VG_RELATION,
        list(zip(names, items, strict=True)),
        counted=set(names) - set(symmetric),
        subsets=("relations", "symmetric"),
        average=average,
        where=annotations.path(ARO, file),
    )


def load_vg_attribution(annotations: Storage, *, average: Average = "macro") -> Choice:
    """Load VG-Attribution from `aro/visual_genome_attribution.json`.

    Args:
        annotations: folder of all annotation files.
        average: `macro` averages over pairs of attributes, as the official script does; `micro` over items.

    Raises:
        DataError: the file is missing or broken, or no pair has 25 items.
    """
    file = "visual_genome_attribution.json"
    where = annotations.path(ARO, file)
    items = read_items(annotations, ARO, file, fields={"attributes": list, **_FIELDS})
    for item_id, item in items:
        if len(item["attributes"]) < 2 or not all(isinstance(a, str) for a in item["attributes"]):
            raise DataError(f"{where}, item {item_id!r}", f"attributes {item['attributes']!r}", "two texts")
    names = ["_".join(item["attributes"][:2]) for _, item in items]
    return _choice(
        VG_ATTRIBUTION,
        list(zip(names, items, strict=True)),
        counted={name for name, count in Counter(names).items() if count >= MIN_PAIR},
        subsets=("pairs", "rare_pairs"),
        average=average,
        where=where,
    )


def _choice(
    name: str,
    items: list[tuple[str, AnnotatedItem]],
    *,
    counted: set[str],
    subsets: tuple[str, str],
    average: Average,
    where: str,
) -> Choice:
    """Build the benchmark from pairs of group and item.

    Items of `counted` groups form the first subset, all others the second.
    """
    if not counted:
        raise DataError(where, f"no item of {subsets[0]}", "at least one")
    rows = [
        {
            "benchmark": name,
            "subset": subsets[group not in counted],
            "item_id": f"{group}/{item_id}",
            "image_id": image_key(IMAGES, boxed(item["image_path"], *(item[side] for side in _BOX))),
            "texts": [item["true_caption"], item["false_caption"]],
        }
        for group, (item_id, item) in items
    ]
    macro = {subsets[0]: [group for group, _ in items if group in counted]} if average == "macro" else {}
    note = f"mean over {subsets[0]}" if macro else "mean over items"
    protocol = ChoiceProtocol(rule=Rule.STRICT, subsets=subsets, groups=macro, note=note)
    return Choice(name, pa.Table.from_pylist(rows, schema=CHOICE_ITEMS), protocol, where=where)
