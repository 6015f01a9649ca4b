"""SugarCrepe and SugarCrepe++ on COCO val2017: captions against seven (SugarCrepe++: five) kinds of hard
negatives.

Sources: Hsieh et al. 2023 (SugarCrepe); Dumpala et al. 2024 (SugarCrepe++).
"""

from __future__ import annotations

import pyarrow as pa

from degla_ray.encoding.features import image_key
from degla_ray.evaluation.benchmarks.annotations import read_items
from degla_ray.evaluation.benchmarks.base import Rule, Shown
from degla_ray.evaluation.benchmarks.choice import Choice, ChoiceProtocol
from degla_ray.evaluation.benchmarks.two_positives import TwoPositives
from degla_ray.schema import CHOICE_ITEMS
from degla_ray.storage import Storage

SUGARCREPE, SUGARCREPE_PP = "sugarcrepe", "sugarcrepe_pp"
SUBSETS = ("replace_obj", "replace_att", "replace_rel", "swap_obj", "swap_att", "add_obj", "add_att")
SUBSETS_PP = SUBSETS[:5]
IMAGES = "coco_val2017"
AVERAGES = {
    "sugarcrepe_replace": SUBSETS[:3],
    "sugarcrepe_swap": SUBSETS[3:5],
    "sugarcrepe_add": SUBSETS[5:],
    "sugarcrepe": SUBSETS,
}
EXTRA_ID = "108"  # the index that is missing from swap_obj.json
EXTRA_ITEM = {  # in the first release of swap_obj.json, not in the current one
    "filename": "000000310622.jpg",
    "caption": "A West 32nd sign under a Korea Way road sign. ",
    "negative_caption": "A Korea Way sign under a West 32nd road sign.",
}
_FIELDS = {"filename": str, "caption": str, "negative_caption": str}


def load_sugarcrepe(annotations: Storage, *, extra_item: bool = False) -> Choice:
    """Load SugarCrepe from `sugarcrepe/SUBSET.json`.

    Args:
        annotations: folder of all annotation files.
        extra_item: include the 246th item of swap_obj, which older papers counted and the current release
            lacks.

    Raises:
        DataError: a file is missing or broken.
    """
    rows = []
    for subset in SUBSETS:
        items = dict(read_items(annotations, SUGARCREPE, f"{subset}.json", fields=_FIELDS))
        if subset == "swap_obj":
            items = {item_id: item for item_id, item in items.items() if item != EXTRA_ITEM}
            items |= {EXTRA_ID: EXTRA_ITEM} if extra_item else {}
        rows += [
            {
                "benchmark": SUGARCREPE,
                "subset": subset,
                "item_id": item_id,
                "image_id": image_key(IMAGES, item["filename"]),
                "texts": [item["caption"], item["negative_caption"]],
            }
            for item_id, item in items.items()
        ]
    note = "swap_obj with 246 items" if extra_item else ""
    return Choice(
        SUGARCREPE,
        pa.Table.from_pylist(rows, schema=CHOICE_ITEMS),
        ChoiceProtocol(rule=Rule.STRICT, subsets=SUBSETS, averages=AVERAGES, note=note),
        where=annotations.path(SUGARCREPE),
    )


def load_sugarcrepe_pp(annotations: Storage) -> TwoPositives:
    """Load SugarCrepe++ from `sugarcrepe_pp/SUBSET.json`.

    Raises:
        DataError: a file is missing or broken.
    """
    items = []
    for subset in SUBSETS_PP:
        fields = {"id": int, "caption2": str, **_FIELDS}
        for item_id, item in read_items(
            annotations, SUGARCREPE_PP, f"{subset}.json", fields=fields, id_field="id"
        ):
            texts = (item["caption"], item["caption2"], item["negative_caption"])
            images = (image_key(IMAGES, item["filename"]),)
            items.append(Shown(subset=subset, item_id=item_id, images=images, texts=texts))
    return TwoPositives(SUGARCREPE_PP, items)
