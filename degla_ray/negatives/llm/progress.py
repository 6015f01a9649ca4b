"""Progress of a generation run on the console."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from types import TracebackType

from degla_ray.config import NegativesConfig
from degla_ray.negatives.llm.engine_clock import EngineClock
from degla_ray.negatives.llm.ledger import Row, State, StateTable

REPORT_S = 10.0


class Progress:
    """Progress reporter that prints a line every ten seconds.

    Args:
        config: settings, of which `generation.max_gpu_hours` is used.
        wanted: number of (caption, kind) pairs in the pending shards, however many answers each takes.
        clock: clock of the engines.
    """

    def __init__(self, config: NegativesConfig, wanted: int, clock: EngineClock) -> None:
        self._limit_h = config.generation.max_gpu_hours
        self._wanted, self._clock = wanted, clock
        self._book: StateTable | None = None
        self._closed = self._found = 0
        self._last_error = ""
        self._counts: Counter[str] = Counter()
        self._started = self._printed = time.monotonic()
        self._asking_since: float | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._print()

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
        return self._closed + (self._book.settled() if self._book else 0)

    @property
    def remaining_s(self) -> float | None:
        """Estimated seconds left at this run's rate so far; None before the first pair is settled."""
        newly = self.settled - self._found
        if self._asking_since is None or not newly:
            return None
        return (time.monotonic() - self._asking_since) * (self._wanted - self.settled) / newly

    def begin(self, book: StateTable) -> None:
        """Start the next window; entries already settled in its book come from an earlier run."""
        self._closed = self.settled
        self._book = book
        self._found += book.settled()
        self._asking_since = self._asking_since or time.monotonic()

    def add(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._counts[row["state"]] += 1
            self._counts[f"reason {row['reason']}"] += bool(row["reason"])
            if row["state"] == State.ERROR:
                self._last_error = row["text"]
            self._counts["tokens in"] += row["prompt_tokens"]
            self._counts["cached"] += row["cached_tokens"]
        if time.monotonic() - self._printed >= REPORT_S:
            self._print()

    def _print(self) -> None:
        self._printed = time.monotonic()
        elapsed = max(self._printed - self._started, 1e-9)
        count = self._counts
        answers = self.answers
        if not answers:
            return
        reasons = Counter({k.removeprefix("reason "): n for k, n in count.items() if k.startswith("reason ")})
        commonest = ", ".join(f"{reason} {n}" for reason, n in reasons.most_common(3) if n)
        left = self.remaining_s
        print(
            f"negatives: {count[State.OK]:,} accepted of {answers:,} answers "
            f"({count[State.OK] / elapsed:,.1f}/s of {answers / elapsed:,.1f}/s)"
            f"; {self.settled:,} of {self._wanted:,} questions settled"
            + (f", {timedelta(seconds=round(left))} left" if left else "")
            + f"; prefix cache {count['cached'] / max(count['tokens in'], 1):.0%}"
            + (f"; {commonest}" if commonest else "")
            + (f"; last error: {self._last_error}" if self._last_error else ""),
            flush=True,
        )
