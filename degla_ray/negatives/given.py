"""The engine `given`: negatives supplied in the source's own file (DeGLA's JSON, NegCLIP's TSV).

They are copied unchanged and in order, so that training on a published dataset uses it as published. Only
negatives equal to their caption, and duplicates, are rejected. No Ray; 100,000 rows a second.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa

from degla_ray.errors import DataError
from degla_ray.negatives.checks import normal_form
from degla_ray.negatives.shard import STAGE, to_table
from degla_ray.schema import GIVEN, GIVEN_KIND, NEGATIVES, REJECTS, RejectReason
from degla_ray.stage import StageFolder, shard_of
from degla_ray.storage import Storage


def read_given(source: Storage) -> dict[str, list[str]]:
    """Return sample_id -> negatives of a folder written by `prepare`.

    Raises:
        DataError: the folder's source supplied no negatives.
    """
    if not source.names("given"):
        raise DataError(source.uri, "no negatives", "a source that brings some: degla_json or negclip_tsv")
    rows = source.read_dataset("given", GIVEN)
    found: dict[str, list[str]] = {}
    columns = (rows[name].to_pylist() for name in ("sample_id", "negative"))
    for sample_id, negative in zip(*columns, strict=True):
        found.setdefault(sample_id, []).append(negative)
    return found


def write_given(folder: StageFolder, captions: pa.Table, given: dict[str, list[str]]) -> None:
    """Write the pending shards.

    Args:
        folder: the output folder.
        captions: all captions (sample_id, caption).
        given: negatives by sample_id.
    """
    columns = (captions[name].to_pylist() for name in ("sample_id", "caption"))
    by_shard: dict[int, list[tuple[str, str]]] = {}
    for sample_id, caption in sorted(zip(*columns, strict=True)):
        by_shard.setdefault(shard_of(sample_id, folder.num_shards), []).append((sample_id, caption))
    for shard in folder.pending():
        negatives: list[tuple[Any, ...]] = []
        rejects: list[tuple[Any, ...]] = []
        counts: Counter[str] = Counter(captions=0)
        for sample_id, caption in by_shard.get(shard, []):
            same, seen = normal_form(caption), set()
            before = len(negatives)
            for text in given.get(sample_id, []):
                form = normal_form(text)
                if form == same or form in seen:
                    reason = RejectReason.SAME_AS_CAPTION if form == same else RejectReason.DUPLICATE_NEGATIVE
                    rejects.append((STAGE, sample_id, GIVEN_KIND, text, reason.value, ""))
                    counts[f"rejects.{GIVEN_KIND}.{reason}"] += 1
                    continue
                seen.add(form)
                negatives.append((sample_id, GIVEN_KIND, text, GIVEN_KIND, "", "", 0, None))
            counts["captions"] += 1
            counts[f"rows.{GIVEN_KIND}"] += len(negatives) - before
            if len(negatives) > before:
                state = "ok"
            else:
                state = "rejected" if given.get(sample_id) else "not_applicable"
            counts[f"captions.{GIVEN_KIND}.{state}"] += 1
        folder.write_part("negatives", shard, to_table(negatives, NEGATIVES))
        folder.write_part("rejects", shard, to_table(rejects, REJECTS))
        folder.write_receipt(shard, counts)
