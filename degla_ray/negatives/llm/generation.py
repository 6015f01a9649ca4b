"""Negatives written by a language model: a Ray Data pipeline over an engine pool, resumable to the answer.

    captions of a window of shards -> is the kind applicable? -> engine -> quality checks -> ledger -> shards

Captions that differ only in case, spacing or a final full stop share one request. Requests are ordered by
kind, or by caption for joint requests, so that consecutive prompts share a prefix. They are sent in rounds: a
request whose answer failed a check is repeated in the next round with another seed. A window (about 20,000
captions) bounds the driver's memory; the price is that engines idle at the end of a round, while its last
answers arrive.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from degla_ray.config import NegativesConfig
from degla_ray.deadline import with_deadline
from degla_ray.errors import DeglaError
from degla_ray.negatives.llm.engine_clock import EngineClock
from degla_ray.negatives.llm.engines import COMPLETERS
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
    table,
    text_key,
)
from degla_ray.negatives.llm.pool import CALLS_AT_A_TIME, Ask, engine_pool
from degla_ray.negatives.llm.progress import Progress
from degla_ray.negatives.llm.prompting import Prompts
from degla_ray.negatives.llm.quality import Gate, seed_of
from degla_ray.negatives.selection import Veto, no_veto
from degla_ray.negatives.shard import STAGE, ImageCaption, captions_of, scene_veto, to_table, vocabulary
from degla_ray.schema import NEGATIVES, REJECTS, Kind, RejectReason
from degla_ray.stage import MANIFEST, StageFolder, shard_of

WINDOW = 20_000
"""Approximate number of captions processed at a time."""
BLOCK = 128
"""Requests in one call of an engine; a crash can lose a few such blocks."""


@dataclass(frozen=True, kw_only=True)
class GenerationJob:
    """Settings and prompts shared by all requests of a run.

    Attributes:
        prompts: prompts in the order in which kinds are requested; those for a single kind come first.
        model: the model's name in the rows.
    """

    config: NegativesConfig
    prompts: Prompts
    prompt_sha: str
    model: str

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return tuple(dict.fromkeys(kind for kinds in self.prompts for kind in kinds))


@dataclass(kw_only=True)
class _Window:
    """Shards and their captions, grouped by `text_key`."""

    shards: list[int]
    captions: dict[str, list[ImageCaption]] = field(default_factory=dict)

    def text(self, key: str) -> str:
        return self.captions[key][0].text


def generate_pending(
    job: GenerationJob, folder: StageFolder, captions: pa.Table, graphs: dict[str, str]
) -> bool:
    """Generate the pending shards; return False if `max_gpu_hours` ended the run before all were done."""
    ledger, pending = Ledger(folder), folder.pending()
    actors = COMPLETERS[job.config.engine].actors(job.config, job.prompts)
    stall_s = job.config.generation.stall_s
    words = vocabulary(captions["caption"].to_pylist()) if job.config.generation.fill_with_rules else None
    by_key = captions.append_column("key", pa.array([text_key(c) for c in captions["caption"].to_pylist()]))
    clock = EngineClock(actors.gpus)
    wanted = _share(by_key, pending, folder.num_shards) * len(job.kinds)
    new = len(pending) == folder.num_shards and ledger.empty
    with (
        Progress(job.config, wanted, clock) as progress,
        _taken_back(folder, progress, new),
        _timed(folder, progress),
        engine_pool(actors, stall_s, clock) as engines,
    ):
        refusals = Refusals(job.config.engine, block_size(job.config))
        for window in _windows(by_key, graphs, pending, folder.num_shards):
            book = StateTable(window.captions, job.kinds, job.config.per_kind, job.config.generation.attempts)
            known = [row for row in ledger.read(window.shards) if (row["key"], row["kind"]) in book.entries]
            book.add(known)
            if job.config.generation.retry_failed:
                book.retry(job.config.generation.retry_reasons)
            progress.begin(book)

            def keep(rows: list[Row], book: StateTable = book) -> None:
                if rows:
                    book.add(rows)
                    ledger.append(rows)
                    progress.add(rows)

            while work := book.next_round():
                for rows in ask(job, engines, _questions(job, window, work), words):
                    keep(refusals.passed(rows))
                    if progress.used_up:
                        return False
                if new and not progress.answers:
                    refusals.stop()
                keep(refusals.release())
            _close(job, folder, ledger, window, book)
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
    """Make finished shards pending again if they contain an entry to retry."""
    ledger = Ledger(folder)
    pending = set(folder.pending())
    again = [
        shard
        for shard in range(folder.num_shards)
        if shard not in pending and any(may_retry(entry, reasons) for entry in ledger.settled(shard))
    ]
    folder.reopen(again)


def ask(
    job: GenerationJob, engines: Sequence[Any], questions: list[dict[str, Any]], words: frozenset[str] | None
) -> Iterator[list[Row]]:
    """Yield the ledger's rows for the requests, block by block as they are answered.

    Args:
        job: settings and prompts.
        engines: handles from `engine_pool`.
        questions: requests, in the order in which they are sent.
        words: the dataset's vocabulary, for the rules that fill in after a failed last attempt; None if they
            shall not.

    Raises:
        DeglaError: no answer arrived for `generation.stall_s` seconds.
    """
    import ray
    import ray.data

    blocks = [pa.Table.from_pylist(block) for block in _blocks(job, questions)]
    gates = min(len(blocks), max(1, int(ray.cluster_resources().get("CPU", 1)) // 4))
    gate = {"engine": job.config.engine, "model": job.model, "fill": words}
    dataset = (
        ray.data.from_arrow(blocks)
        .map_batches(
            _Applicable,
            fn_constructor_kwargs=gate,
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=1),
            num_cpus=0.5,
        )
        .map_batches(
            Ask,
            fn_constructor_kwargs={"engines": list(engines)},
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(
                size=1,
                max_tasks_in_flight_per_actor=2 * CALLS_AT_A_TIME * len(engines),
                max_concurrent_calls_per_actor=CALLS_AT_A_TIME * len(engines),
            ),
            num_cpus=0.1,
        )
        .map_batches(
            _Judge,
            fn_constructor_kwargs=gate,
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=gates),
            num_cpus=0.5,
        )
    )
    batches = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    stall_s = job.config.generation.stall_s
    for batch in with_deadline(batches, stall_s, lambda done: _stalled(stall_s)):
        yield batch.to_pylist()


def block_size(config: NegativesConfig) -> int:
    """Return the number of requests in a block.

    For a server it is at most `openai.concurrency`, so that all requests of a block are in flight together:
    if the server hangs, they time out at once instead of one after another.
    """
    return min(BLOCK, config.openai.concurrency) if config.engine == "openai" else BLOCK


def _blocks(job: GenerationJob, questions: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield the requests in blocks; a joint request is never split between two blocks."""
    block = block_size(job.config)
    if job.config.generation.prompting == "joint":
        by_caption = sorted(questions, key=lambda q: str(q["key"]))
        groups = [list(group) for _, group in itertools.groupby(by_caption, key=lambda q: q["key"])]
        size = max(1, block // len(job.kinds))
        for i in range(0, len(groups), size):
            yield [row for group in groups[i : i + size] for row in group]
    else:
        for i in range(0, len(questions), block):
            yield questions[i : i + block]


def question(run_seed: int, caption: str, kind: str, attempt: int = 0, last: bool = False) -> dict[str, Any]:
    """Return a request as a row for `ask`; `last` says that no further attempt may follow."""
    key = text_key(caption)
    seed = seed_of(run_seed, key, kind, attempt)
    return {"key": key, "kind": kind, "attempt": attempt, "caption": caption, "seed": seed, "last": last}


def _stalled(seconds: float) -> DeglaError:
    return DeglaError(
        f"generation.stall_s: no answer for {seconds:g} s; the engines' own logs (Ray's worker-*.err)"
        " say why; run the same command again to continue"
    )


class _Applicable:
    """Stage that marks the requests whose kind is applicable to the caption; the others skip the engine."""

    def __init__(self, **gate: Any) -> None:
        self._gate = Gate(**gate)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        pairs = zip(batch["caption"], batch["kind"], strict=True)
        return {**batch, "applicable": [self._gate.applicable(str(c), Kind(str(k))) for c, k in pairs]}


class _Judge:
    """Stage that applies the quality checks to answers."""

    def __init__(self, **gate: Any) -> None:
        self._gate = Gate(**gate)

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        answers = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        return table([row for answer in answers for row in self._gate.judge(answer)])


def _share(captions: pa.Table, shards: Sequence[int], num_shards: int) -> int:
    """Return the number of distinct captions in some shards."""
    wanted = set(shards)
    return sum(shard_of(key, num_shards) in wanted for key in set(captions["key"].to_pylist()))


def _windows(
    captions: pa.Table, graphs: dict[str, str], shards: Sequence[int], num_shards: int
) -> Iterator[_Window]:
    size = max(1, round(WINDOW / max(1, len(captions) / num_shards)))
    for start in range(0, len(shards), size):
        window = _Window(shards=list(shards[start : start + size]))
        for shard in window.shards:
            for caption in captions_of(shard, num_shards, captions, graphs, by="key"):
                window.captions.setdefault(text_key(caption.text), []).append(caption)
        yield window


def _questions(
    job: GenerationJob, window: _Window, work: Sequence[tuple[str, str, int, bool]]
) -> list[dict[str, Any]]:
    seed = job.config.seed
    return [question(seed, window.text(key), kind, attempt, last=last) for key, kind, attempt, last in work]


def _close(
    job: GenerationJob, folder: StageFolder, ledger: Ledger, window: _Window, book: StateTable
) -> None:
    """Write the window's shards from its settled entries: the ledger's rows, the parts, then the receipts."""
    parts: dict[int, list[str]] = {shard: [] for shard in window.shards}
    for key in window.captions:
        parts[shard_of(key, folder.num_shards)].append(key)
    kept = {
        shard: [row for key in keys for kind in job.kinds for row in book.entries[(key, kind.value)].rows]
        for shard, keys in parts.items()
    }
    ledger.close(kept)
    for shard, keys in parts.items():
        counts: Counter[str] = Counter(captions=0)
        negatives: list[tuple[Any, ...]] = []
        rejects: list[tuple[Any, ...]] = []
        for key in sorted(keys):
            for caption in window.captions[key]:
                counts["captions"] += 1
                veto = no_veto if caption.graph is None else scene_veto(caption.graph, counts)
                for kind in job.kinds:
                    entry = book.entries[(key, kind.value)]
                    _settle(job, caption, veto, kind, entry, (negatives, rejects), counts)
        for row in kept[shard]:
            _count(row, counts)
        folder.write_part("negatives", shard, to_table(negatives, NEGATIVES))
        folder.write_part("rejects", shard, to_table(rejects, REJECTS))
        folder.write_receipt(shard, counts)
    ledger.clear(set(window.shards))


def _settle(
    job: GenerationJob,
    caption: ImageCaption,
    veto: Veto,
    kind: Kind,
    entry: StateRow,
    to: tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]],
    counts: Counter[str],
) -> None:
    """Append one caption's rows of one kind, rejecting a negative that its scene graph makes true."""
    negatives, rejects = to
    state = entry.state()
    if state is State.OK:
        state = State.REJECTED
        for row in entry.rows:
            if row["state"] != State.OK:
                continue
            if (reason := veto(row["text"], kind)) is not None:
                vetoed = {"reason": reason.value, "detail": "check veto"}
                rejects.append(_reject(caption, row | vetoed))
                counts[f"rejects.{kind}.{reason}"] += 1
                continue
            state = State.OK
            counts[f"rows.{kind}"] += 1
            written_by = (row["engine"], row["model"], job.prompt_sha, row["attempt"])
            negatives.append((caption.sample_id, kind.value, row["text"], *written_by))
    for row in entry.rows:
        if row["state"] in (State.REJECTED, State.ERROR):
            rejects.append(_reject(caption, row))
            counts[f"rejects.{kind}.{row['reason']}"] += 1
    counts[f"rows.{kind}"] += 0
    counts[f"captions.{kind}.{state.value}"] += 1


def _reject(caption: ImageCaption, row: Row) -> tuple[Any, ...]:
    return (STAGE, caption.sample_id, row["kind"], row["text"], row["reason"], row["detail"])


def _count(row: Row, counts: Counter[str]) -> None:
    counts[f"attempts.{row['kind']}.{row['state']}"] += 1
    for name in ("prompt_tokens", "completion_tokens", "cached_tokens"):
        counts[f"{name}.{row['kind']}"] += row[name]
