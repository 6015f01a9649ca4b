"""A glimpse of what a job wrote, for the end of its console output: real rows, not counts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from degla_ray.schema import CAPTIONS, NEGATIVES
from degla_ray.storage import Storage

if TYPE_CHECKING:
    from degla_ray.training.trainer import TrainResult

SHOWN = 2  # captions


def shown(text: str) -> str:
    """Return a text from data as one line that a terminal shows and does not obey.

    A newline would begin a line that seems to be ours, and an escape sequence would move the cursor.
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def captions_shown(prepared: str) -> list[str]:
    """Return two captions of a folder that `prepare` wrote, of two images where there are two."""
    captions = Storage(prepared).read_dataset("captions", CAPTIONS)
    first = {row["image_id"]: row for row in reversed(captions.slice(0, 64).to_pylist())}
    rows = sorted(first.values(), key=lambda row: str(row["sample_id"]))[:SHOWN]
    return [shown(f"e.g. {row['image_id']} ({row['split']}): {row['caption']}") for row in rows]


def negatives_shown(prepared: str, negatives: str) -> list[str]:
    """Return a caption with one negative of each kind, of one of the captions that have most kinds."""
    rows = Storage(negatives).read_dataset("negatives", NEGATIVES, ["sample_id", "kind", "negative"])
    if not len(rows):
        return []
    counts = rows.group_by("sample_id").aggregate([("kind", "count_distinct")])
    most = counts.filter(pc.equal(counts["kind_count_distinct"], pc.max(counts["kind_count_distinct"])))
    sample = most["sample_id"][0]
    captions = Storage(prepared).read_dataset("captions", CAPTIONS, ["sample_id", "caption"])
    caption = captions.filter(pc.equal(captions["sample_id"], sample))["caption"][0].as_py()
    own: pa.Table = rows.filter(pc.equal(rows["sample_id"], sample))
    of_kind = dict(zip(own["kind"].to_pylist(), own["negative"].to_pylist(), strict=True))
    width = max(map(len, of_kind))
    lines = [f"e.g. {caption}", *(f"     {kind:<{width}}  {text}" for kind, text in sorted(of_kind.items()))]
    return [shown(line) for line in lines]


def training_shown(result: TrainResult) -> list[str]:
    """Return the first and the last losses of a run, and its last validation if it had any."""
    from degla_ray.training.validation import read_all  # imports Ray, which `prepare` may not need

    run = Storage(result.run_folder)
    trace = run.read_bytes(result.trace_path.removeprefix(f"{run.uri}/")).splitlines()
    lines = [_losses(json.loads(row)) for row in (trace[:1] + trace[1:][-1:])]
    validations = [v for v in read_all(run) if v.state == "done"]
    return [*lines, *(v.describe() for v in validations[-1:])]


def _losses(row: dict[str, float]) -> str:
    terms = ", ".join(f"{name} {value:.3f}" for name, value in row.items() if name not in ("step", "lr"))
    return f"step {row['step']:,}: {terms}"
