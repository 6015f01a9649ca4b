"""Negatives written by a language model: blocks of requests to an engine pool, resumable to the answer.

    captions of a window of shards -> requests -> engine -> quality checks -> ledger -> shards

Captions that differ only in case, spacing or a final full stop share one request. Once all requests for a
caption are answered, those whose answer failed a check are repeated with another seed, ahead of captions that
have not been asked for. A window (about 20,000 captions) bounds the driver's memory; the next one is opened
before the answers of the last are in, so that engines never wait.
"""

from __future__ import annotations

import time
from collections import Counter, deque
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
from degla_ray.negatives.llm.sending import GenerationJob, request, sender
from degla_ray.negatives.plausibility import CaptionModels
from degla_ray.negatives.selection import Veto, no_veto
from degla_ray.negatives.shard import STAGE, scene_veto, to_table, vocabulary
from degla_ray.schema import NEGATIVES, REJECTS, Kind, RejectReason
from degla_ray.stage import MANIFEST, StageFolder, shard_of

WINDOW = 20_000
"""Captions processed at a time, unless a single shard has more: 20 kB of the driver's memory each."""


LEDGER_S = 2.0
"""Seconds between two appended files of the ledger: a killed driver loses the answers since the last one."""


@dataclass(kw_only=True)
class _Window:
    """Shards and their captions, grouped by `text_key`, with the state of each (caption, kind) pair."""

    shards: list[int]
    captions: dict[str, list[ImageCaption]]
    states: StateTable


@dataclass(kw_only=True)
class _ShardOutput:
    """Rows of a shard's two parts, and the counts of its receipt."""

    negatives: list[tuple[Any, ...]] = field(default_factory=list)
    rejects: list[tuple[Any, ...]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=lambda: Counter(captions=0))


def generate_pending(
    job: GenerationJob,
    folder: StageFolder,
    captions: pa.Table,
    graphs: dict[str, str],
    models: CaptionModels | None = None,
) -> bool:
    """Generate the pending shards; return False if `max_gpu_hours` ended the run before all were done.

    Args:
        job: settings and prompts.
        folder: output folder.
        captions: all captions (sample_id, image_id, caption).
        graphs: image_id -> scene graph.
        models: n-gram models of the captions, which limit the options of slots; None does without.
    """
    pending = folder.pending()
    pool = job.engine.pool(job.prompts)
    words = vocabulary(values(captions["caption"])) if job.uses_vocabulary else None
    keys = [pa.array(map(text_key, chunk.to_pylist()), pa.string()) for chunk in captions["caption"].chunks]
    by_key = captions.append_column("key", pa.chunked_array(keys, pa.string()))
    shards = CaptionShards.of(by_key, graphs, folder.num_shards, by="key")
    clock = EngineClock(pool.gpus)
    # A key's captions are all in one shard.
    distinct = sum(len(by_key["key"].take(shards.rows(shard)).unique()) for shard in pending)
    wanted = distinct * len(job.kinds)
    new = len(pending) == folder.num_shards and Ledger(folder).empty
    with (
        Progress(job.config, wanted, clock) as progress,
        _taken_back(folder, progress, new),
        _timed(folder, progress),
        pool.started(job.config.generation.stall_s, clock) as engines,
        sender(job, engines, words, models) as sends,
        Run(job, folder, shards, pending, progress) as run,
    ):
        refusals = Refusals(job.config.engine, job.block)
        while True:
            while sends.has_room and (block := run.next_block()):
                sends.send(block)
            if sends.busy:
                rows = refusals.passed(sends.receive())
            else:
                if new and not progress.answers:
                    refusals.stop()
                rows = refusals.release()
                if not rows:
                    return True
            run.keep(rows)
            if progress.used_up:
                return False


class Run:
    """The open windows of a run: what to ask for next, and what becomes of the answers.

    Args:
        job: settings and prompts.
        folder: output folder.
        captions: the captions of each shard.
        pending: the shards to write.
        progress: counts windows and rows.
    """

    def __init__(
        self,
        job: GenerationJob,
        folder: StageFolder,
        captions: CaptionShards,
        pending: Sequence[int],
        progress: Progress,
    ) -> None:
        self._job, self._folder, self._captions, self._progress = job, folder, captions, progress
        self._ledger, self._windows = Ledger(folder), captions.windows(pending, WINDOW)
        self._window_of: dict[str, _Window] = {}  # of open windows
        self._again: deque[str] = deque()  # captions whose requests so far are all answered
        self._fresh: Iterator[str] = iter(())  # captions of the last window that nothing was asked for
        self._unwritten: list[Row] = []
        self._written_at = 0.0

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: object) -> None:
        self._write()

    def next_block(self) -> list[dict[str, Any]]:
        """Return the next requests, or [] if none can be made before more answers are in."""
        block: list[dict[str, Any]] = []
        while self._job.requests_in(block) < self._job.block and (key := self._next_caption()) is not None:
            window = self._window_of[key]
            caption, seed = window.captions[key][0], self._job.config.seed
            block += [
                request(seed, caption.text, kind, attempt, last=last, wanted=wanted, fold=caption.fold)
                for kind, attempt, last, wanted in window.states.next_round(key)
            ]
            if window.states.finished:
                self._finish(window)
        return block

    def keep(self, rows: Sequence[Row]) -> None:
        """Record rows and note the captions that may be asked for again."""
        if not rows:
            return
        self._unwritten += rows
        if time.monotonic() - self._written_at >= LEDGER_S:
            self._write()
        for row in rows:
            self._again += self._window_of[row["key"]].states.add([row])
        self._progress.add(rows)

    def _next_caption(self) -> str | None:
        """Return the key of a caption to ask for: one to try again, a new one, or one of the next window."""
        while not self._again:
            key = next(self._fresh, None)
            if key is not None:
                return key
            shards = next(self._windows, None)
            if shards is None:
                return None
            self._fresh = self._open(shards)
        return self._again.popleft()

    def _open(self, shards: list[int]) -> Iterator[str]:
        """Open a window and return the keys of its captions."""
        asked = self._job.config.generation
        captions: dict[str, list[ImageCaption]] = {}
        for shard in shards:
            for caption in self._captions.captions_of(shard):
                captions.setdefault(text_key(caption.text), []).append(caption)
        states = StateTable(captions, self._job.kinds, self._job.config.per_kind, asked.attempts)
        known = self._ledger.read(shards)
        states.add([row for row in known if (row["key"], row["kind"]) in states.rows])
        if asked.retry_failed:
            states.retry(asked.retry_reasons)
        window = _Window(shards=shards, captions=captions, states=states)
        self._window_of |= dict.fromkeys(captions, window)
        self._progress.begin(states)
        if not captions:
            self._finish(window)
        return iter(captions)

    def _finish(self, window: _Window) -> None:
        """Write a window whose captions are all settled, and forget it."""
        self._write()
        _close(self._job, self._folder, self._ledger, window)
        self._progress.end(window.states)
        for key in window.captions:
            del self._window_of[key]

    def _write(self) -> None:
        """Append the rows since the last time to the ledger."""
        if self._unwritten:
            self._ledger.append(self._unwritten)
        self._unwritten, self._written_at = [], time.monotonic()


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


def _close(job: GenerationJob, folder: StageFolder, ledger: Ledger, window: _Window) -> None:
    """Write the window's shards from its settled rows: the ledger's rows, the parts, then the receipts."""
    parts: dict[int, list[str]] = {shard: [] for shard in window.shards}
    for key in window.captions:
        parts[shard_of(key, folder.num_shards)].append(key)
    kept = {
        shard: [
            row
            for key in keys
            for kind in job.kinds
            for row in window.states.rows[(key, kind.value)].attempts
        ]
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
                    _settle(job, caption, veto, kind, window.states.rows[(key, kind.value)], output)
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
