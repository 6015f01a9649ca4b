"""Progress of a generation run on the console, and the estimate of a full run from a few real requests.

The estimate (`--generation.estimate 200`) uses the rate of one engine, without its start. The expected
number of attempts per negative follows from the accepted share p: 1 + (1-p) + (1-p)^2 + …, up to
`generation.attempts` terms.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType

from rich.console import Console
from rich.table import Table

from degla_ray.config import NegativesConfig
from degla_ray.negatives.llm.failures import Refusals, tell
from degla_ray.negatives.llm.ledger import Row, State, StateTable, text_key
from degla_ray.negatives.llm.pool import EngineClock, EnginePool
from degla_ray.negatives.llm.sending import GenerationJob, request, sender
from degla_ray.negatives.progress_line import ProgressLine
from degla_ray.negatives.shard import vocabulary


class Progress:
    """Progress of a run: (caption, kind) pairs settled, whatever number of answers each takes.

    Args:
        config: settings, of which `generation.max_gpu_hours` is used.
        wanted: number of (caption, kind) pairs in the pending shards.
        clock: clock of the engines.
    """

    def __init__(self, config: NegativesConfig, wanted: int, clock: EngineClock) -> None:
        self._limit_h = config.generation.max_gpu_hours
        self._wanted, self._clock = wanted, clock
        self._open: list[StateTable] = []
        self._closed = self._found = 0
        self._counts: Counter[str] = Counter()
        self._started = time.monotonic()
        self._asking_since: float | None = None
        self._error_shown = False
        self._line = ProgressLine("negatives", wanted, "settled")

    def __enter__(self) -> Progress:
        self._line.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.answers:
            self._show()
        self._line.__exit__(kind, error, trace)

    @property
    def used_up(self) -> bool:
        """Whether the engines have run for `max_gpu_hours`."""
        return self._limit_h is not None and self.gpu_hours >= self._limit_h

    @property
    def answers(self) -> int:
        """Number of answers from engines, accepted or not."""
        return sum(self._counts[state.value] for state in State if state is not State.NOT_APPLICABLE)

    @property
    def accepted(self) -> int:
        """Number of accepted negatives, including those that the rules filled in."""
        return self._counts[State.OK]

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    @property
    def gpu_hours(self) -> float:
        """GPU hours of all engines together; an engine without a GPU counts as one GPU."""
        return self._clock.gpu_hours

    @property
    def settled(self) -> int:
        """Number of (caption, kind) pairs that need no further requests."""
        return self._closed + sum(states.settled() for states in self._open)

    @property
    def remaining_s(self) -> float | None:
        """Estimated seconds left at this run's rate so far; None before the first pair is settled."""
        newly = self.settled - self._found
        if self._asking_since is None or not newly:
            return None
        return (time.monotonic() - self._asking_since) * (self._wanted - self.settled) / newly

    def begin(self, states: StateTable) -> None:
        """Count a window from now on; pairs that are already settled come from an earlier run."""
        self._open.append(states)
        self._found += states.settled()
        self._asking_since = self._asking_since or time.monotonic()

    def end(self, states: StateTable) -> None:
        """Forget a window whose pairs are all settled, but not their number."""
        self._closed += states.settled()
        self._open.remove(states)

    def add(self, rows: Sequence[Row]) -> None:
        """Count new rows of the ledger; the first error is printed at once."""
        for row in rows:
            self._counts[row["state"]] += 1
            if row["state"] == State.ERROR and not self._error_shown:
                self._error_shown = True
                self._line.print(f"negatives: first failed request: {row['reason']}: {row['text']}")
        if self._line.due:
            self._show()

    def _show(self) -> None:
        answers = self.answers
        elapsed = max(time.monotonic() - (self._asking_since or self._started), 1e-9)
        failed = self._counts[State.ERROR]
        self._line.show(
            self.settled,
            f"{self.accepted / max(1, answers):.0%} accepted, {answers / elapsed:,.1f} answers/s"
            + (f", {failed:,} failed" if failed else ""),
            self.remaining_s,
        )


def estimate(job: GenerationJob, captions: Sequence[str]) -> None:
    """Send one attempt for a sample of captions and print the estimate for all; write no files."""
    texts = {text_key(caption): caption for caption in captions}
    sample = sorted(texts)[
        : job.config.generation.estimate
    ]  # keys are hashes, so the first ones are a random sample
    words = vocabulary(captions) if job.uses_vocabulary else None
    requests = [request(job.config.seed, texts[key], kind.value) for key in sample for kind in job.kinds]
    rows: list[Row] = []
    pool = job.engine.pool(job.prompts)
    with replace(pool, min_size=1, max_size=1).started(job.config.generation.stall_s) as engines:
        started = time.monotonic()
        refusals = Refusals(job.config.engine, job.block)
        with sender(job, engines, words) as sends:
            for block in sends.answers_to(job, requests):
                rows += refusals.passed(block)
        refusals.stop()
        rows += refusals.release()
        rate = _answers(rows) / (time.monotonic() - started)
    tell(rows)
    total = _print_kinds(job, rows, texts=len(texts), asked=len(sample))
    _print_cost(job.config, pool, total, rate)


def _answers(rows: Sequence[Row]) -> int:
    return sum(row["state"] != State.NOT_APPLICABLE for row in rows)


def _print_kinds(job: GenerationJob, rows: Sequence[Row], *, texts: int, asked: int) -> Counter[str]:
    """Print a table with the estimates of each kind; return their totals."""
    per_kind = job.config.per_kind
    attempts = job.config.generation.attempts * per_kind
    table = Table(title=f"Estimate for {texts:,} distinct captions, from {asked:,} of them")
    for heading in ("kind", "applicable", "accepted", "attempts each", "answers", "negatives", "tokens"):
        table.add_column(heading, justify="left" if heading == "kind" else "right")
    total: Counter[str] = Counter()
    for kind in job.kinds:
        expected = _expected([row for row in rows if row["kind"] == kind], texts, attempts, per_kind)
        total.update({name: round(value) for name, value in expected.items()})
        table.add_row(
            kind.value,
            f"{expected['can'] / texts:.0%}",
            f"{expected['share']:.0%}",
            f"{expected['each']:.1f}",
            *(f"{expected[name]:,.0f}" for name in ("answers", "negatives", "tokens")),
        )
    Console().print(table)
    return total


def _print_cost(config: NegativesConfig, pool: EnginePool, total: Counter[str], rate: float) -> None:
    engine_hours = total["answers"] / max(rate, 1e-9) / 3600
    gpu_hours = engine_hours * max(1, pool.gpus)
    unit, price = "GPU hours" if pool.gpus else "engine hours", config.generation.price_per_gpu_hour
    engines = f"{pool.max_size} engine" + ("s" if pool.max_size > 1 else "")
    print(
        f"{total['negatives']:,} negatives from {total['answers']:,} answers of {total['tokens']:,} tokens\n"
        f"{engines} at {rate:,.1f} answers/s each: {engine_hours / pool.max_size:,.2f} hours, "
        f"{gpu_hours:,.2f} {unit}, cost {gpu_hours * price:,.2f}"
    )


def _expected(rows: Sequence[Row], texts: int, attempts: int, per_kind: int) -> dict[str, float]:
    """Return one kind's estimates for all captions.

    Keys: `can` (captions to which the kind is applicable), `share` (accepted per answer), `each` (attempts
    per caption), `answers`, `negatives` and `tokens` (totals).
    """
    answers = [row for row in rows if row["state"] != State.NOT_APPLICABLE]
    can = texts * len(answers) / max(1, len(rows))
    share = sum(row["state"] == State.OK for row in answers) / max(1, len(answers))
    each = _expected_attempts(share, attempts, per_kind)
    tokens = sum(row["prompt_tokens"] + row["completion_tokens"] for row in answers) / max(1, len(answers))
    return {
        "can": can,
        "share": share,
        "each": each,
        "answers": can * each,
        "negatives": can * share * each,
        "tokens": can * each * tokens,
    }


def _expected_attempts(share: float, attempts: int, per_kind: int) -> float:
    """Return the mean number of attempts until `per_kind` answers are accepted or `attempts` are made."""
    missing = {per_kind: 1.0}  # negatives still wanted -> probability
    mean = 0.0
    for _ in range(attempts):
        asking = {wanted: p for wanted, p in missing.items() if wanted}
        mean += sum(asking.values())
        missing = {0: missing.get(0, 0.0)}
        for wanted, p in asking.items():
            missing[wanted - 1] = missing.get(wanted - 1, 0.0) + p * share
            missing[wanted] = missing.get(wanted, 0.0) + p * (1 - share)
    return mean
