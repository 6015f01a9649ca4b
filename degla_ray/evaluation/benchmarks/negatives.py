"""Each caption of a prepared folder against each of its own negatives; the subsets are the kinds of
negatives.

This measures the training objective on captions that were not trained on. Strict: a tie is wrong.
"""

from __future__ import annotations

import hashlib

import pyarrow as pa
import pyarrow.compute as pc

from degla_ray.errors import DataError
from degla_ray.evaluation.benchmarks.base import Rule
from degla_ray.evaluation.benchmarks.choice import Choice, ChoiceProtocol
from degla_ray.schema import CHOICE_ITEMS, Kind

NAME = "negatives"


def own_negatives(captions: pa.Table, negatives: pa.Table, source: str, where: str) -> Choice:
    """Build the benchmark over the captions (CAPTIONS, one split) that have negatives (NEGATIVES).

    The item id contains a hash of the negative's text, so the same pair has the same id in every folder.

    Raises:
        DataError: no caption of the split has a negative.
    """
    wanted = negatives.filter(
        pc.is_in(negatives["sample_id"], value_set=captions["sample_id"].combine_chunks())
    )
    if not len(wanted):
        raise DataError(where, "no negatives of this split", "a folder that `negatives` made from `prepared`")
    by_sample = {row["sample_id"]: row for row in captions.to_pylist()}
    rows = []
    for negative in wanted.to_pylist():
        caption = by_sample[negative["sample_id"]]
        digest = hashlib.blake2b(negative["negative"].encode(), digest_size=6).hexdigest()
        rows.append(
            {
                "benchmark": NAME,
                "subset": negative["kind"],
                "item_id": f"{negative['sample_id']}/{digest}",
                "image_id": caption["image_id"],
                "texts": [caption["caption"], negative["negative"]],
            }
        )
    present = {row["subset"] for row in rows}
    subsets = [kind.value for kind in Kind if kind.value in present]
    items = pa.Table.from_pylist(rows, schema=CHOICE_ITEMS)
    return Choice(NAME, items, ChoiceProtocol(rule=Rule.STRICT, subsets=subsets), source, where)
