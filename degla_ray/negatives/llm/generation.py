"""Negatives written by a language model: a Ray Data pipeline over an engine pool, resumable to the answer.

    captions of a window of shards -> requests -> engine -> quality checks -> ledger -> shards

Captions that differ only in case, spacing or a final full stop share one request. Requests are ordered by
kind, or by caption for joint requests, so that consecutive prompts share a prefix. They are sent in rounds: a
request whose answer failed a check is repeated in the next round with another seed. A window (about 20,000
captions) bounds the driver's memory; the price is that engines idle at the end of a round, while its last
answers arrive.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from degla_ray.negatives.captions import CaptionShards, ImageCaption, values
from degla_ray.negatives.llm.failures import Refusals, Refused
from degla_ray.negatives.llm.ledger import (
    CLOSED,
    OPEN,
    Ledger,
    Row,
    State,
    StateRow,
    StateTable,
    may_retry,
    text_key,
)
from degla_ray.negatives.llm.pool import EngineClock
from degla_ray.negatives.llm.progress import Progress
from degla_ray.negatives.llm.sending import GenerationJob, block_size, request, send
from degla_ray.negatives.selection import Veto, no_veto
from degla_ray.negatives.shard import STAGE, scene_veto, to_table, vocabulary
from degla_ray.schema import NEGATIVES, REJECTS, Kind, RejectReason
from degla_ray.stage import MANIFEST, StageFolder, shard_of

WINDOW = 20_000
"""Captions processed at a time, unless a single shard has more: 20 kB of the driver's memory each."""


@dataclass(kw_only=True)
class _Window:
    """Shards and their captions, grouped by `text_key`."""

    shards: list[int]
    captions: dict[str, list[ImageCaption]] = field(default_factory=dict)

    def text(self, key: str) -> str:
        return self.captions[key][0].text


@dataclass(kw_only=True)
class _ShardOutput:
    """Rows of a shard's two parts, and the counts of its receipt."""

    negatives: list[tuple[Any, ...]] = field(default_factory=list)
    rejects: list[tuple[Any, ...]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=lambda: Counter(captions=0))


def generate_pending(
    job: GenerationJob, folder: StageFolder, captions: pa.Table, graphs: dict[str, str]
) -> bool:
    """Generate the pending shards; return False if `max_gpu_hours` ended the run before all were done."""
    ledger, pending = Ledger(folder), folder.pending()
    pool = job.engine.pool(job.prompts)
    stall_s = job.config.generation.stall_s
    words = vocabulary(values(captions["caption"])) if job.config.generation.fill_with_rules else None
    keys = [pa.array(map(text_key, chunk.to_pylist()), pa.string()) for chunk in captions["caption"].chunks]
    by_key = captions.append_column("key", pa.chunked_array(keys, pa.string()))
    shards = CaptionShards.of(by_key, graphs, folder.num_shards, by="key")
    clock = EngineClock(pool.gpus)
    # A key's captions are all in one shard.
    distinct = sum(len(by_key["key"].take(shards.rows(shard)).unique()) for shard in pending)
    wanted = distinct * len(job.kinds)
    new = len(pending) == folder.num_shards and ledger.empty
    with (
        Progress(job.config, wanted, clock) as progress,
        _taken_back(folder, progress, new),
        _timed(folder, progress),
        pool.started(stall_s, clock) as engines,
    ):
        refusals = Refusals(job.config.engine, block_size(job))
        for window in _windows(shards, pending):
            states = StateTable(
                window.captions, job.kinds, job.config.per_kind, job.config.generation.attempts
            )
            known = [row for row in ledger.read(window.shards) if (row["key"], row["kind"]) in states.rows]
            states.add(known)
            if job.config.generation.retry_failed:
                states.retry(job.config.generation.retry_reasons)
            progress.begin(states)

            def keep(rows: list[Row], states: StateTable = states) -> None:
                if rows:
                    states.add(rows)
                    ledger.append(rows)
                    progress.add(rows)

            while work := states.next_round():
                for rows in send(job, engines, _requests(job, window, work), words):
                    keep(refusals.passed(rows))
                    if progress.used_up:
                        return False
                if new and not progress.answers:
                    refusals.stop()
                keep(refusals.release())
            _close(job, folder, ledger, window, states)
    return True


@contextmanager
def _taken_back(folder: StageFolder, progress: Progress, new: bool) -> Iterator[None]:
    """Empty a new folder whose every request was refused: corrected settings have another fingerprint."""
    try:
        yield
    except Refused:
        if new and not progress.answers:
            for name in (OPEN, CLOSED, "negatives", "rejects", "receipts", "runs"):
                folder.storage.delete_folder(name)
            folder.storage.delete_file(MANIFEST)
        raise


@contextmanager
def _timed(folder: StageFolder, progress: Progress) -> Iterator[None]:
    """Record the run's seconds, GPU hours and answer counts for the report."""
    try:
        yield
    finally:
        taken = {name: getattr(progress, name) for name in ("seconds", "gpu_hours", "answers", "accepted")}
        folder.storage.write_json(taken, "runs", f"{time.time_ns()}.json")


def reopen(folder: StageFolder, reasons: Sequence[RejectReason]) -> None:
    """Make finished shards pending again if they contain a (caption, kind) pair to retry."""
    ledger = Ledger(folder)
    pending = set(folder.pending())
    again = [
        shard
        for shard in range(folder.num_shards)
        if shard not in pending and any(may_retry(row, reasons) for row in ledger.settled(shard))
    ]
    folder.reopen(again)


def _windows(captions: CaptionShards, pending: Sequence[int]) -> Iterator[_Window]:
    for shards in captions.windows(pending, WINDOW):
        window = _Window(shards=shards)
        for shard in shards:
            for caption in captions.captions_of(shard):
                window.captions.setdefault(text_key(caption.text), []).append(caption)
        yield window


def _requests(
    job: GenerationJob, window: _Window, work: Sequence[tuple[str, str, int, bool]]
) -> list[dict[str, Any]]:
    seed = job.config.seed
    return [request(seed, window.text(key), kind, attempt, last=last) for key, kind, attempt, last in work]


def _close(
    job: GenerationJob, folder: StageFolder, ledger: Ledger, window: _Window, states: StateTable
) -> None:
    """Write the window's shards from its settled rows: the ledger's rows, the parts, then the receipts."""
    parts: dict[int, list[str]] = {shard: [] for shard in window.shards}
    for key in window.captions:
        parts[shard_of(key, folder.num_shards)].append(key)
    kept = {
        shard: [row for key in keys for kind in job.kinds for row in states.rows[(key, kind.value)].attempts]
        for shard, keys in parts.items()
    }
    ledger.close(kept)
    for shard, keys in parts.items():
        output = _ShardOutput()
        for key in sorted(keys):
            for caption in window.captions[key]:
                output.counts["captions"] += 1
                veto = no_veto if caption.graph is None else scene_veto(caption.graph, output.counts)
                for kind in job.kinds:
                    _settle(job, caption, veto, kind, states.rows[(key, kind.value)], output)
        for row in kept[shard]:
            _count(row, output.counts)
        folder.write_part("negatives", shard, to_table(output.negatives, NEGATIVES))
        folder.write_part("rejects", shard, to_table(output.rejects, REJECTS))
        folder.write_receipt(shard, output.counts)
    ledger.clear(set(window.shards))


def _settle(
    job: GenerationJob, caption: ImageCaption, veto: Veto, kind: Kind, row: StateRow, output: _ShardOutput
) -> None:
    """Append one caption's rows of one kind, rejecting a negative that its scene graph makes true."""
    counts, state = output.counts, row.state()
    if state is State.OK:
        state = State.REJECTED
        for attempt in row.attempts:
            if attempt["state"] != State.OK:
                continue
            if (reason := veto(attempt["text"], kind)) is not None:
                vetoed = {"reason": reason.value, "detail": "check veto"}
                output.rejects.append(_reject(caption, attempt | vetoed))
                counts[f"rejects.{kind}.{reason}"] += 1
                continue
            state = State.OK
            counts[f"rows.{kind}"] += 1
            written_by = (attempt["engine"], attempt["model"], job.prompt_sha, attempt["attempt"])
            output.negatives.append((caption.sample_id, kind.value, attempt["text"], *written_by, None))
    for attempt in row.attempts:
        if attempt["state"] in (State.REJECTED, State.ERROR):
            output.rejects.append(_reject(caption, attempt))
            counts[f"rejects.{kind}.{attempt['reason']}"] += 1
    counts[f"rows.{kind}"] += 0
    counts[f"captions.{kind}.{state.value}"] += 1


def _reject(caption: ImageCaption, row: Row) -> tuple[Any, ...]:
    return (STAGE, caption.sample_id, row["kind"], row["text"], row["reason"], row["detail"])


def _count(row: Row, counts: Counter[str]) -> None:
    counts[f"attempts.{row['kind']}.{row['state']}"] += 1
    for name in ("prompt_tokens", "completion_tokens", "cached_tokens"):
        counts[f"{name}.{row['kind']}"] += row[name]
