"""Text-only accuracy of a set before and after selection, and the yield of each window in advance.

Two judges: an n-gram model of captions that took no part in the selection, and a logistic regression on the
pairs themselves (`text_only.py`). On at most 2,000 pairs a kind both take 2 s.
"""

from __future__ import annotations

import random
import tempfile
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from degla_ray.config import NegativesConfig
from degla_ray.negatives.balancing import kept, scores_by_kind
from degla_ray.negatives.captions import CaptionShards, values
from degla_ray.negatives.plausibility import Balance, CaptionModels, fold_of, plausibility
from degla_ray.negatives.rules import RuleEngine
from degla_ray.negatives.shard import STAGE, ShardTask, vocabulary, write_shard
from degla_ray.negatives.text_only import MAX_PAIRS, text_only_accuracy
from degla_ray.number_formats import MISSING, percent
from degla_ray.schema import NEGATIVES, Kind
from degla_ray.stage import StageFolder
from degla_ray.storage import Storage

FILE = "blind.json"
EXAMPLES = 3
"""Examples at either end."""
WINDOWS = (0.02, 0.05, 0.1, 0.2, 0.4, None)
"""Windows of the preview."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A caption, a negative, and the fold of their image."""

    caption: str
    negative: str
    fold: int


def describe_blind(
    candidates: StageFolder, folder: StageFolder, captions: pa.Table, models: CaptionModels, seed: int
) -> None:
    """Print and write (`blind.json`) the accuracy of both judges before and after the selection."""
    before, after = (_pairs(made, captions, seed) for made in (candidates, folder))
    table = Table(title="Captions found without the image (50 % is chance)")
    headings = ("negatives", "n-gram before", "after", "words before", "after")
    for heading in ("kind", *headings):
        table.add_column(heading, justify="right" if heading != "kind" else "left", no_wrap=True)
    found: dict[str, list[float | None]] = {}
    for kind in (*before, "all"):
        both = [
            [pair for mine in pairs.values() for pair in mine] if kind == "all" else pairs.get(kind, [])
            for pairs in (before, after)
        ]
        found[kind] = [by_ngrams(models, pairs) for pairs in both]
        found[kind] += [text_only_accuracy([(p.caption, p.negative) for p in pairs], seed) for pairs in both]
        shares = (MISSING if share is None else f"{percent(share, digits=0)} %" for share in found[kind])
        table.add_row(kind, f"{len(both[1]):,}", *shares)
    Console().print(table)
    remaining = [pair for pairs in after.values() for pair in pairs]
    order = np.argsort(differences(models, remaining))
    ends = {"easiest": order[:EXAMPLES], "hardest": order[::-1][:EXAMPLES]}
    examples = {
        end: [(remaining[i].caption, remaining[i].negative) for i in places] for end, places in ends.items()
    }
    for end, pairs in examples.items():
        print(f"{end} to guess: " + "; ".join(f"{negative!r} for {caption!r}" for caption, negative in pairs))
    names = ("ngram_before", "ngram_after", "words_before", "words_after")
    accuracy = {kind: dict(zip(names, shares, strict=True)) for kind, shares in found.items()}
    folder.storage.write_json({"accuracy": accuracy, "examples": examples}, FILE)


def blind_metrics(storage: Storage) -> dict[str, float]:
    """Return the accuracies that `describe_blind` wrote as `kind/judge`; {} if nothing was selected."""
    accuracy = storage.read_json(FILE)["accuracy"] if storage.exists(FILE) else {}
    return {
        f"{kind}/{name}": share
        for kind, shares in accuracy.items()
        for name, share in shares.items()
        if share is not None
    }


def by_ngrams(models: CaptionModels, pairs: list[Pair]) -> float | None:
    """Return how often the n-gram judge finds the caption; ties count half. None without pairs."""
    score = differences(models, pairs)
    return float(np.mean((score < 0) + 0.5 * (score == 0))) if pairs else None


def differences(models: CaptionModels, pairs: list[Pair]) -> NDArray[np.float64]:
    """Return the plausibility of each pair's negative by its judge."""
    score = np.zeros(len(pairs))
    for fold in {pair.fold for pair in pairs}:
        mine = [i for i, pair in enumerate(pairs) if pair.fold == fold]
        captions, negatives = [pairs[i].caption for i in mine], [pairs[i].negative for i in mine]
        score[mine] = plausibility(models.judge(fold), captions, negatives)
    return score


def preview(
    config: NegativesConfig, kinds: tuple[Kind, ...], captions: pa.Table, graphs: dict[str, str]
) -> None:
    """Print how many negatives of `plausibility_preview` captions each window leaves."""
    wanted = config.plausibility_preview or 0
    texts = list(values(captions["caption"]))
    models = CaptionModels(texts, [fold_of(image) for image in values(captions["image_id"])])
    engine = RuleEngine(vocabulary(texts), models)
    by_shard = CaptionShards.of(captions, graphs, max(1, len(captions) // wanted))
    with tempfile.TemporaryDirectory() as scratch:
        folder = StageFolder(scratch, STAGE, {}, 1)
        task = ShardTask(folder=folder, kinds=kinds, per_kind=config.per_kind, seed=config.seed)
        write_shard(task, engine, 0, by_shard.captions_of(0), models)
        rows = folder.storage.read_dataset("negatives", NEGATIVES)
    table = Table(title=f"Negatives of {len(by_shard.rows(0)):,} captions that each window leaves")
    for heading in ("plausibility_window", *kinds, "all"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_row("(candidates)", *(f"{_count(rows, kind):,}" for kind in (*kinds, "all")))
    for window in WINDOWS:
        left = rows.filter(pa.array(kept(rows, Balance.of(scores_by_kind(rows), window), window)))
        shares = (
            f"{percent(_count(left, kind) / max(1, _count(rows, kind)), digits=0)} %"
            for kind in (*kinds, "all")
        )
        table.add_row("null" if window is None else f"{window:g}", *shares)
    Console().print(table)


def _count(rows: pa.Table, kind: str) -> int:
    return len(rows) if kind == "all" else int(pc.sum(pc.equal(rows["kind"], kind)).as_py() or 0)


def _pairs(made: StageFolder, captions: pa.Table, seed: int) -> dict[str, list[Pair]]:
    """Return at most MAX_PAIRS pairs of each kind."""
    rows = made.storage.read_dataset("negatives", NEGATIVES, ["sample_id", "kind", "negative"])
    drawn: dict[str, list[dict[str, str]]] = {}
    for kind in pc.unique(rows["kind"]).to_pylist():
        mine = rows.filter(pc.equal(rows["kind"], kind))
        places = random.Random(seed).sample(range(len(mine)), min(MAX_PAIRS, len(mine)))
        drawn[kind] = mine.take(places).to_pylist()
    wanted = pa.array({row["sample_id"] for found in drawn.values() for row in found}, pa.large_string())
    mine = captions.filter(pc.is_in(captions["sample_id"], value_set=wanted))
    of_sample = {row["sample_id"]: row for row in mine.to_pylist()}
    return {
        kind: [
            Pair(
                caption=of_sample[row["sample_id"]]["caption"],
                negative=row["negative"],
                fold=fold_of(of_sample[row["sample_id"]]["image_id"]),
            )
            for row in found
        ]
        for kind, found in drawn.items()
    }
