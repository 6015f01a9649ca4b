"""Send requests to the engines and check the answers, each block on its own way.

    requests -> worker: what to ask -> engine -> worker: quality checks -> the ledger's rows

Workers and engines are Ray actors that live as long as the run. The driver only passes references from one to
the next, so a block never waits for another one, and retries travel with whatever else is on the way.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from degla_ray import resources
from degla_ray.config import NegativesConfig
from degla_ray.errors import DeglaError
from degla_ray.negatives.llm.answers import QualityChecks
from degla_ray.negatives.llm.engines.base import WORKER, Engine
from degla_ray.negatives.llm.ledger import Row, text_key
from degla_ray.negatives.llm.pool import BLOCK, calls_at_a_time
from degla_ray.negatives.llm.prompting import Prompts
from degla_ray.negatives.plausibility import CaptionModels
from degla_ray.schema import ATTEMPTS, Kind

WORKERS_PER_ENGINE = 2
"""An engine of 400 answers a second keeps two processes busy with questions and checks of 3 ms an answer."""


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

    @property
    def block(self) -> int:
        """Number of requests in a block.

        It is at most the engine's concurrency, so that all requests of a block are in flight together: if a
        server hangs, they time out at once instead of one after another.
        """
        return min(BLOCK, self.engine.concurrency)

    def requests_in(self, rows: Sequence[dict[str, Any]]) -> int:
        """Return the number of requests that rows made by `request` need; a caption's rows are together."""
        return len({row["key"] for row in rows}) if self.config.generation.prompting == "joint" else len(rows)


@contextmanager
def sender(
    job: GenerationJob,
    engines: Sequence[Any],
    words: frozenset[str] | None,
    models: CaptionModels | None = None,
) -> Iterator[Sender]:
    """Start the workers and yield what sends requests; end the workers on exit.

    Args:
        job: settings and prompts.
        engines: handles from `EnginePool.started`.
        words: the dataset's vocabulary, for slots and for the rules that fill in; None allows all words.
        models: n-gram models of the captions, for slots; None does without.
    """
    import ray

    checks = {
        "engine": job.config.engine,
        "model": job.engine.model,
        "words": words,
        "fills": job.config.generation.fill_with_rules,
        "slots": job.config.generation.prompting == "slots",
        "models": models if job.config.generation.prompting == "slots" else None,
    }
    count = min(resources.cpus_at_most() // 4, WORKERS_PER_ENGINE * len(engines))
    actor = ray.remote(_Worker).options(num_cpus=WORKER["CPU"], max_restarts=-1, max_task_retries=-1)
    shared = [ray.put(checks)]  # in a list, which keeps Ray from making it a part of the actor
    workers = [actor.remote(shared) for _ in range(max(1, count))]
    try:
        yield Sender(job, engines, workers)
    finally:
        for worker in workers:
            ray.kill(worker)


class Sender:
    """Blocks of requests on their way through workers and engines.

    Args:
        job: settings and prompts.
        engines, workers: handles of actors; each is used as soon as it is ready.
    """

    def __init__(self, job: GenerationJob, engines: Sequence[Any], workers: Sequence[Any]) -> None:
        self._stall_s = job.config.generation.stall_s
        self._engines = _Actors(engines, calls_at_a_time(job.engine.concurrency, job.block))
        self._workers = _Actors(workers, 2)
        self._ahead = 2 * len(engines)
        self._unasked: deque[Any] = deque()
        self._asked: deque[Any] = deque()
        self._answered: deque[Any] = deque()
        self._checked: deque[Any] = deque()
        self._then: dict[Any, Callable[[Any], None]] = {}  # what to do with a result, by its reference
        for actors in (self._engines, self._workers):
            self._then |= {handle.ready.remote(): actors.starter(handle) for handle in actors.handles}
        self._blocks = 0

    @property
    def busy(self) -> bool:
        """Whether any block is on its way."""
        return self._blocks > 0

    @property
    def has_room(self) -> bool:
        """Whether another block would be asked for without delay."""
        return len(self._unasked) + len(self._asked) < self._ahead

    def send(self, requests: Sequence[dict[str, Any]]) -> None:
        """Put a block on its way; its requests are rows made by `request`, those of a caption together."""
        self._unasked.append({name: [row[name] for row in requests] for name in requests[0]})
        self._blocks += 1
        self._forward()

    def receive(self) -> list[Row]:
        """Return the ledger's rows of the next block that is through.

        Raises:
            DeglaError: none was for `generation.stall_s` seconds.
        """
        import ray

        deadline = time.monotonic() + self._stall_s
        while not self._checked:
            left_s = max(0.0, deadline - time.monotonic())
            done, _ = ray.wait(list(self._then), timeout=left_s, fetch_local=False)
            if not done:
                raise _stalled(self._stall_s)
            for ref in done:
                self._then.pop(ref)(ref)
            self._forward()
        self._blocks -= 1
        columns = ray.get(self._checked.popleft())
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def answers_to(self, job: GenerationJob, requests: Sequence[dict[str, Any]]) -> Iterator[list[Row]]:
        """Yield the rows for these requests, block by block."""
        blocks = in_blocks(job, iter(requests))
        while True:
            while self.has_room and (block := next(blocks, None)):
                self.send(block)
            if not self.busy:
                return
            yield self.receive()

    def _forward(self) -> None:
        """Hand each block to an actor that is free, those with the shortest way left first."""
        while self._answered and (worker := self._workers.take()) is not None:
            self._on(worker.check.remote(self._answered.popleft()), self._workers, worker, self._checked)
        while self._asked and (engine := self._engines.take()) is not None:
            self._on(engine.answer.remote(self._asked.popleft()), self._engines, engine, self._answered)
        while self._unasked and (worker := self._workers.take()) is not None:
            self._on(worker.ask.remote(self._unasked.popleft()), self._workers, worker, self._asked)

    def _on(self, ref: Any, actors: _Actors, handle: Any, to: deque[Any]) -> None:
        def then(ref: Any) -> None:
            actors.give_back(handle)
            to.append(ref)

        self._then[ref] = then


class _Actors:
    """Actors of one sort, and the number of calls that each of them has.

    Args:
        handles: handles; an actor counts as free only once it is ready.
        calls: calls that an actor takes at a time.
    """

    def __init__(self, handles: Sequence[Any], calls: int) -> None:
        self.handles, self._calls = handles, calls
        self._busy: dict[Any, int] = {}

    def starter(self, handle: Any) -> Callable[[Any], None]:
        """Return what to call with the result of the actor's `ready`."""

        def start(ref: Any) -> None:
            import ray

            ray.get(ref)  # raises if it could not start
            self._busy[handle] = 0

        return start

    def take(self) -> Any | None:
        """Return the actor with the fewest calls and count one more; None if all have enough."""
        handle = min(self._busy, key=self._busy.__getitem__, default=None)
        if handle is None or self._busy[handle] >= self._calls:
            return None
        self._busy[handle] += 1
        return handle

    def give_back(self, handle: Any) -> None:
        self._busy[handle] -= 1


class _Worker:
    """Actor that prepares questions and checks answers.

    Args:
        shared: reference to the arguments of QualityChecks.
    """

    def __init__(self, shared: list[Any]) -> None:
        import ray

        self._checks = QualityChecks(**ray.get(shared[0]))

    def ready(self) -> None:
        """Return once the actor has started."""

    def ask(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Add what to ask; requests whose kind is not applicable to the caption skip the engine."""
        rows = zip(*(batch[name] for name in ("caption", "kind", "seed", "fold")), strict=True)
        asked = [self._checks.question(text, Kind(kind), seed, fold) for text, kind, seed, fold in rows]
        return {**batch, **{name: [each[name] for each in asked] for name in ("applicable", "slot")}}

    def check(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Return the ledger's columns."""
        answers = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        rows = [row for answer in answers for row in self._checks.judge(answer)]
        return {name: [row[name] for row in rows] for name in ATTEMPTS.names}


def in_blocks(job: GenerationJob, rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield rows made by `request` in blocks; the rows of a caption that come together stay together."""
    block: list[dict[str, Any]] = []
    for row in rows:
        if block and row["key"] != block[-1]["key"] and job.requests_in(block) >= job.block:
            yield block
            block = []
        block.append(row)
    if block:
        yield block


def request(
    run_seed: int,
    caption: str,
    kind: str,
    attempt: int = 0,
    *,
    last: bool = False,
    wanted: int = 1,
    fold: int = 0,
) -> dict[str, Any]:
    """Return a request as a row of a block.

    Args:
        run_seed: the run's seed.
        caption: the caption.
        kind: the requested kind.
        attempt: number of earlier attempts.
        last: whether no further attempt may follow.
        wanted: negatives still missing, which one answer to a slot may supply.
        fold: fold of the caption's image.
    """
    key = text_key(caption)
    seed = seed_of(run_seed, key, kind, attempt)
    asked = {"key": key, "kind": kind, "attempt": attempt, "caption": caption, "seed": seed}
    return asked | {"last": last, "wanted": wanted, "fold": fold}


def seed_of(run_seed: int, key: str, kind: str, attempt: int) -> int:
    """Return a request's 31-bit seed, which depends on the run's seed and the request, not on the order."""
    return random.Random(f"{run_seed} {key} {kind} {attempt}").getrandbits(31)


def _stalled(seconds: float) -> DeglaError:
    return DeglaError(
        f"generation.stall_s: no answer for {seconds:g} s; the engines' own logs (Ray's worker-*.err)"
        " say why; run the same command again to continue"
    )
