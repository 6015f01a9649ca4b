"""When checkpoints are saved and where log intervals end."""

from __future__ import annotations

import pytest

from degla_ray.config import CheckpointConfig, ValidationSettings
from degla_ray.training.interval import Schedule


def schedule_of(
    *, steps: int | None = None, minutes: float | None = None, every: int | None = None
) -> Schedule:
    return Schedule(
        checkpoint=CheckpointConfig(every_steps=steps, every_minutes=minutes),
        validation=ValidationSettings(every_steps=every, suite="folder"),
        total_steps=100,
    )


def test_schedule_saves_by_steps_by_minutes_for_validations_and_at_the_end() -> None:
    schedule = schedule_of(steps=30, minutes=2.0, every=20)
    saved = [step for step in range(1, 101) if schedule.must_save(step, unsaved_s=0.0)]
    assert saved == [20, 30, 40, 60, 80, 90, 100]
    assert not schedule.must_save(7, unsaved_s=119.0)
    assert schedule.must_save(7, unsaved_s=120.0)
    assert not schedule_of().must_save(7, unsaved_s=1e6)
    assert schedule_of().must_save(100, unsaved_s=0.0)


@pytest.mark.parametrize("step_s", [0.01, 0.07, 0.4, 1.0, 30.0])
def test_schedule_intervals_take_about_a_second_and_miss_no_save(step_s: float) -> None:
    schedule = schedule_of(steps=30, every=20)
    ends, step = [], 1
    while step < 100:
        step = schedule.next_end(step, step_s)
        ends.append(step)
    assert {20, 30, 40, 60, 80, 90, 100} <= set(ends)
    longest = max(b - a for a, b in zip([1, *ends], ends, strict=False)) * step_s
    assert longest <= max(step_s, 1.0 + step_s)
    assert schedule_of().next_end(1, 0.1) == 11
