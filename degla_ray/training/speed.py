"""How fast a run goes by the clock on the wall, and what its time is spent on. Pure arithmetic."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

WINDOW_S = 600.0
"""Seconds that a rate is averaged over: as long as from one checkpoint to the next by default."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Of the last ten minutes.

    Attributes:
        step_s: seconds a step, everything included.
        training_share: of that time, the share (0 to 1) that was neither waiting for data nor spent at log
            intervals (trace, progress, checkpoints, reports).
    """

    step_s: float
    training_share: float


class SpeedMeter:
    """Averages over a sliding window; the first interval, with a run's start-up in it, counts only itself.

    Args:
        now: time in seconds when the first step begins, of any clock.
    """

    def __init__(self, now: float) -> None:
        self._seen = deque([(now, 0, 0.0)])  # time, steps, seconds besides training, all so far
        self._starting = True

    def measure(self, now: float, steps: int, besides_s: float) -> Speed:
        """Return the speed at the end of an interval.

        Args:
            now: time in seconds.
            steps: since the meter was made.
            besides_s: seconds since then in which no training was done.
        """
        while len(self._seen) > 1 and self._seen[1][0] <= now - WINDOW_S:
            self._seen.popleft()
        time, before, besides_before = self._seen[0]
        wall_s = max(now - time, 1e-9)
        share = 1.0 - (besides_s - besides_before) / wall_s
        if self._starting:
            self._seen.clear()
            self._starting = False
        self._seen.append((now, steps, besides_s))
        return Speed(step_s=wall_s / (steps - before), training_share=min(1.0, max(0.0, share)))
