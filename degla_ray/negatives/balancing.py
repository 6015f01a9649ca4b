"""Leave out the negatives that their text alone would tell from their captions, and score a model's.

The shards of a rule engine are first written to a folder of candidates. Their scores give the share to keep
of each kind and bin, and with it each shard is written alone. Negatives of a language model are too dear to
leave out: they only get their score.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from degla_ray.negatives.plausibility import Balance, CaptionModels, fold_of, plausibility
from degla_ray.negatives.shard import STAGE, to_table
from degla_ray.schema import NEGATIVES, REJECTS, RejectReason
from degla_ray.stage import StageFolder, part_name

CANDIDATES = "candidates"
"""Subfolder of the candidates, deleted at the end."""


def write_balanced(candidates: StageFolder, folder: StageFolder, window: float | None) -> None:
    """Write the pending shards of `folder` from the candidates.

    Args:
        candidates: folder whose shards all have a receipt.
        folder: the output folder, of as many shards.
        window: greatest size of a score that is kept; None sets no limit.
    """
    rows = candidates.storage.read_dataset("negatives", NEGATIVES, ["kind", "plausibility"])
    balance = Balance.of(scores_by_kind(rows), window)
    for shard in folder.pending():
        name = part_name(shard, folder.num_shards)
        with candidates.storage.open_parquet("negatives", name) as file:
            rows = file.read()
        with candidates.storage.open_parquet("rejects", name) as file:
            rejects = file.read()
        keep = pa.array(kept(rows, balance, window))
        left_out = rows.filter(pc.invert(keep))
        guessable = [
            (STAGE, r["sample_id"], r["kind"], r["negative"], RejectReason.GUESSABLE.value,
             f"plausibility {r['plausibility']:+.2f}")
            for r in left_out.to_pylist()
        ]  # fmt: skip
        folder.write_part("negatives", shard, rows.filter(keep))
        folder.write_part("rejects", shard, pa.concat_tables([rejects, to_table(guessable, REJECTS)]))
        counts = candidates.storage.read_json("receipts", f"{shard:05d}.json")
        folder.write_receipt(shard, _counts(counts, rows.filter(keep), left_out))


def write_scores(folder: StageFolder, captions: pa.Table, models: CaptionModels) -> None:
    """Score the negatives of a folder whose shards all have a receipt."""
    columns = (captions[name].to_pylist() for name in ("sample_id", "image_id", "caption"))
    of_sample = {sample: (fold_of(image), text) for sample, image, text in zip(*columns, strict=True)}
    for shard in range(folder.num_shards):
        with folder.storage.open_parquet("negatives", part_name(shard, folder.num_shards)) as file:
            rows = file.read()
        known = [of_sample[sample] for sample in rows["sample_id"].to_pylist()]
        negatives = rows["negative"].to_pylist()
        score = np.zeros(len(rows), np.float32)
        for fold in {fold for fold, _ in known}:
            mine = [i for i, (f, _) in enumerate(known) if f == fold]
            texts = [known[i][1] for i in mine], [negatives[i] for i in mine]
            score[mine] = plausibility(models.selector(fold), *texts)
        place = rows.schema.get_field_index("plausibility")
        scored = rows.set_column(place, NEGATIVES.field("plausibility"), pa.array(score))
        folder.write_part("negatives", shard, scored)


def scores_by_kind(rows: pa.Table) -> dict[str, NDArray[np.float64]]:
    """Return the scores of each kind's negatives."""
    return {
        kind: rows.filter(pc.equal(rows["kind"], kind))["plausibility"].to_numpy().astype(np.float64)
        for kind in pc.unique(rows["kind"]).to_pylist()
    }


def kept(rows: pa.Table, balance: Balance, window: float | None) -> NDArray[np.bool_]:
    """Return which rows of NEGATIVES to keep."""
    keep = np.zeros(len(rows), bool)
    columns = (rows[name].to_pylist() for name in ("sample_id", "kind", "negative"))
    keys = np.array([" ".join(key) for key in zip(*columns, strict=True)], object)
    kinds, scores = np.array(rows["kind"].to_pylist(), object), rows["plausibility"].to_numpy()
    for kind in set(kinds):
        mine = kinds == kind
        keep[mine] = balance.keeps(kind, scores[mine].astype(np.float64), keys[mine], window)
    return keep


def _counts(counts: Mapping[str, int], rows: pa.Table, left_out: pa.Table) -> Counter[str]:
    """Return the receipt's counts of a shard, with the rows that are left out among the rejects."""
    after = Counter(counts)
    for kind in pc.unique(left_out["kind"]).to_pylist():
        mine, rest = (table.filter(pc.equal(table["kind"], kind)) for table in (rows, left_out))
        captions = len(pc.unique(mine["sample_id"]))
        after[f"captions.{kind}.rejected"] += counts[f"captions.{kind}.ok"] - captions
        after[f"captions.{kind}.ok"] = captions
        after[f"rows.{kind}"] = len(mine)
        after[f"rejects.{kind}.{RejectReason.GUESSABLE}"] = len(rest)
    return after
