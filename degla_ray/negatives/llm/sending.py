"""Send requests to the engines and check the answers: one Ray Data pipeline per round.

    requests -> is the kind applicable, which slot? -> engine -> quality checks -> the ledger's rows

Requests travel in blocks, each answered by one call of an engine. The engines are started elsewhere (pool.py)
and outlive the pipeline.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from degla_ray import resources
from degla_ray.config import NegativesConfig
from degla_ray.deadline import with_deadline
from degla_ray.errors import DeglaError
from degla_ray.negatives.llm.answers import QualityChecks
from degla_ray.negatives.llm.engines.base import Engine
from degla_ray.negatives.llm.ledger import Row, text_key, to_arrow
from degla_ray.negatives.llm.pool import CALLS_AT_A_TIME
from degla_ray.negatives.llm.prompting import Prompts
from degla_ray.schema import Kind

BLOCK = 128
"""Requests in one call of an engine; a crash can lose a few such blocks."""


@dataclass(frozen=True, kw_only=True)
class GenerationJob:
    """Settings and prompts shared by all requests of a run.

    Attributes:
        engine: the language model.
        prompts: prompts in the order in which kinds are requested; those for a single kind come first.
        prompt_sha: hash of all prompts, written to the rows.
    """

    config: NegativesConfig
    engine: Engine
    prompts: Prompts
    prompt_sha: str

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return tuple(dict.fromkeys(kind for kinds in self.prompts for kind in kinds))

    @property
    def uses_vocabulary(self) -> bool:
        """Whether words of the dataset's captions are put into negatives."""
        asked = self.config.generation
        return asked.fill_with_rules or asked.prompting == "slots"


def send(
    job: GenerationJob, engines: Sequence[Any], requests: list[dict[str, Any]], words: frozenset[str] | None
) -> Iterator[list[Row]]:
    """Yield the ledger's rows for the requests, block by block as they are answered.

    Args:
        job: settings and prompts.
        engines: handles from `EnginePool.started`.
        requests: rows made by `request`, in the order in which they are sent.
        words: the dataset's vocabulary, for slots and for the rules that fill in; None allows all words.

    Raises:
        DeglaError: no answer arrived for `generation.stall_s` seconds.
    """
    import ray
    import ray.data

    blocks = [pa.Table.from_pylist(block) for block in _blocks(job, requests)]
    checkers = min(len(blocks), max(1, resources.cpus_at_most() // 4))
    checks = {
        "engine": job.config.engine,
        "model": job.engine.model,
        "words": words,
        "fills": job.config.generation.fill_with_rules,
        "slots": job.config.generation.prompting == "slots",
    }
    dataset = (
        ray.data.from_arrow(blocks)
        .map_batches(
            _Ask,
            fn_constructor_kwargs=checks,
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=1),
            num_cpus=0.5,
        )
        .map_batches(
            _Answer,
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
            _Check,
            fn_constructor_kwargs=checks,
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=checkers),
            num_cpus=0.5,
        )
    )
    batches = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    stall_s = job.config.generation.stall_s
    for batch in with_deadline(batches, stall_s, lambda done: _stalled(stall_s)):
        yield batch.to_pylist()


def block_size(job: GenerationJob) -> int:
    """Return the number of requests in a block.

    It is at most the engine's concurrency, so that all requests of a block are in flight together: if a
    server hangs, they time out at once instead of one after another.
    """
    return min(BLOCK, job.engine.concurrency or BLOCK)


def _blocks(job: GenerationJob, requests: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield the requests in blocks; a joint request is never split between two blocks."""
    block = block_size(job)
    if job.config.generation.prompting == "joint":
        by_caption = sorted(requests, key=lambda q: str(q["key"]))
        groups = [list(group) for _, group in itertools.groupby(by_caption, key=lambda q: q["key"])]
        size = max(1, block // len(job.kinds))
        for i in range(0, len(groups), size):
            yield [row for group in groups[i : i + size] for row in group]
    else:
        for i in range(0, len(requests), block):
            yield requests[i : i + block]


def request(
    run_seed: int, caption: str, kind: str, attempt: int = 0, *, last: bool = False, wanted: int = 1
) -> dict[str, Any]:
    """Return a request as a row for `send`.

    Args:
        run_seed: the run's seed.
        caption: the caption.
        kind: the requested kind.
        attempt: number of earlier attempts.
        last: whether no further attempt may follow.
        wanted: negatives still missing, which one answer to a slot may supply.
    """
    key = text_key(caption)
    seed = seed_of(run_seed, key, kind, attempt)
    asked = {"key": key, "kind": kind, "attempt": attempt, "caption": caption, "seed": seed}
    return asked | {"last": last, "wanted": wanted}


def seed_of(run_seed: int, key: str, kind: str, attempt: int) -> int:
    """Return a request's 31-bit seed, which depends on the run's seed and the request, not on the order."""
    return random.Random(f"{run_seed} {key} {kind} {attempt}").getrandbits(31)


def _stalled(seconds: float) -> DeglaError:
    return DeglaError(
        f"generation.stall_s: no answer for {seconds:g} s; the engines' own logs (Ray's worker-*.err)"
        " say why; run the same command again to continue"
    )


class _Ask:
    """Stage that adds what to ask: requests whose kind is not applicable to the caption skip the engine."""

    def __init__(self, **checks: Any) -> None:
        self._checks = QualityChecks(**checks)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows = zip(batch["caption"], batch["kind"], batch["seed"], strict=True)
        asked = [
            self._checks.question(str(caption), Kind(str(kind)), int(seed)) for caption, kind, seed in rows
        ]
        return {**batch, **{name: [each[name] for each in asked] for name in ("applicable", "slot")}}


class _Answer:
    """Stage that sends each block to the least busy engine.

    Args:
        engines: handles; an engine receives blocks only once it is ready.
    """

    def __init__(self, engines: list[Any]) -> None:
        self._engines = engines
        self._starting = {handle.ready.remote(): number for number, handle in enumerate(engines)}
        self._busy: dict[int, int] = {}
        self._lock = threading.Lock()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import ray

        with self._lock:
            if self._starting:
                wait_s = 0.0 if self._busy else None
                started, _ = ray.wait(list(self._starting), num_returns=1, timeout=wait_s)
                self._busy |= {self._starting.pop(ref): 0 for ref in started}
            number = min(self._busy, key=lambda n: self._busy[n])
            self._busy[number] += 1
        try:
            answered: dict[str, Any] = ray.get(self._engines[number].answer.remote(batch))
            return answered
        finally:
            with self._lock:
                self._busy[number] -= 1


class _Check:
    """Stage that applies the quality checks to answers."""

    def __init__(self, **checks: Any) -> None:
        self._checks = QualityChecks(**checks)

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        answers = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        return to_arrow([row for answer in answers for row in self._checks.judge(answer)])
