"""What a generation run has done so far, on the console while it runs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType

from degla_ray.config import NegativesConfig
from degla_ray.negatives.ledger import Row, State

REPORT_S = 10.0


class Progress:
    """Prints a line every ten seconds.

    Args:
        config: for the limit on hours.
        total: (caption, kind)s of the pending shards.
        engine_gpus: GPUs, or engines where there are none, that run at a time.
    """

    def __init__(self, config: NegativesConfig, total: int, engine_gpus: int) -> None:
        self._limit_h = config.generation.max_gpu_hours
        self._total, self._gpus = total, engine_gpus
        self._settled = 0
        self._counts: Counter[str] = Counter()
        self._started = self._printed = time.monotonic()

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
        """Of the engines, whatever became of them."""
        return sum(self._counts[state.value] for state in State if state is not State.NOT_APPLICABLE)

    @property
    def accepted(self) -> int:
        """Answers that passed, and negatives that rules filled in."""
        return self._counts[State.OK]

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started

    @property
    def gpu_hours(self) -> float:
        """Of all engines together; one without a GPU counts as one."""
        return self.seconds / 3600 * self._gpus

    def resume(self, settled: int) -> None:
        """Entries of the next window that an earlier run settled."""
        self._settled += settled

    def add(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._counts[row["state"]] += 1
            self._counts[f"reason {row['reason']}"] += bool(row["reason"])
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
        done = self._settled + count[State.OK] + count[State.NOT_APPLICABLE]
        print(
            f"negatives: {count[State.OK]:,} accepted of {answers:,} answers "
            f"({count[State.OK] / elapsed:,.1f}/s of {answers / elapsed:,.1f}/s)"
            f"; {done:,} of {self._total:,} have theirs or need none"
            f"; prefix cache {count['cached'] / max(count['tokens in'], 1):.0%}"
            + (f"; {commonest}" if commonest else ""),
            flush=True,
        )
