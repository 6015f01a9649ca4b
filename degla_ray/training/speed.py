"""Wall-clock speed of a run, and the share of its time spent training: pure arithmetic."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

WINDOW_S = 600.0
"""Averaging window in seconds; equals the default interval between checkpoints."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Average speed over the last ten minutes.

    Attributes:
        step_s: seconds per step, everything included.
        training_share: of that time, the share (0 to 1) that was neither waiting for data nor spent at log
            intervals (trace, progress, checkpoints, reports).
    """

    step_s: float
    training_share: float


class SpeedMeter:
    """A speed meter with a sliding window, which drops the first interval because it includes start-up.

    Args:
        now: time in seconds on any clock at which the first step begins.
    """

    def __init__(self, now: float) -> None:
        self._seen = deque([(now, 0, 0.0)])  # (time, steps so far, seconds so far not spent training)
        self._starting = True

    def measure(self, now: float, steps: int, idle_s: float) -> Speed:
        """Return the speed at the end of an interval.

        Args:
            now: time in seconds.
            steps: steps since the meter was created.
            idle_s: seconds since then that were not spent training.
        """
        while len(self._seen) > 1 and self._seen[1][0] <= now - WINDOW_S:
            self._seen.popleft()
        time, before, idle_before = self._seen[0]
        wall_s = max(now - time, 1e-9)
        share = 1.0 - (idle_s - idle_before) / wall_s
        if self._starting:
            self._seen.clear()
            self._starting = False
        self._seen.append((now, steps, idle_s))
        return Speed(step_s=wall_s / (steps - before), training_share=min(1.0, max(0.0, share)))
