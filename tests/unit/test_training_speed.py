"""Samples a second by the clock on the wall, with everything that a run spends time on."""

from __future__ import annotations

import pytest

from degla_ray.training.speed import WINDOW_S, Speed, SpeedMeter


def run(intervals: list[tuple[int, float, float]]) -> Speed:
    """The last speed of intervals of (steps, seconds in which they trained, seconds besides)."""
    meter, now, steps, besides = SpeedMeter(0.0), 0.0, 0, 0.0
    for more, trained_s, besides_s in intervals:
        now, steps, besides = now + trained_s + besides_s, steps + more, besides + besides_s
        speed = meter.measure(now, steps, besides)
    return speed


def test_speed_counts_what_log_intervals_and_checkpoints_cost() -> None:
    """100 intervals of 10 steps: 1 s of training, 0.1 s of trace, and every tenth a checkpoint of 4 s."""
    speed = run([(1, 0.1, 0.0), *((10, 1.0, 0.1 + 4.0 * (n % 10 == 9)) for n in range(100))])
    assert speed.step_s == pytest.approx(150 / 1000)
    assert speed.training_share == pytest.approx(100 / 150)


def test_speed_without_costs_is_the_training_alone() -> None:
    speed = run([(1, 0.1, 0.0), *((10, 1.0, 0.0) for _ in range(20))])
    assert (speed.step_s, speed.training_share) == (pytest.approx(0.1), pytest.approx(1.0))


def test_speed_start_up_counts_in_the_first_interval_only() -> None:
    assert run([(1, 30.0, 0.0)]).step_s == 30.0
    assert run([(1, 30.0, 0.0), (5, 1.0, 0.0)]).step_s == pytest.approx(0.2)


def test_speed_is_that_of_the_last_ten_minutes() -> None:
    """An hour at 1 s a step, then ten minutes and more at 2 s."""
    slower = [(1, 2.0, 0.0)] * (int(WINDOW_S / 2) + 1)
    speed = run([(1, 1.0, 0.0)] * 3600 + slower)
    assert speed.step_s == pytest.approx(2.0)
