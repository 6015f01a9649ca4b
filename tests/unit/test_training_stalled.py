"""Which worker is named when a run makes no step any more."""

from __future__ import annotations

import dataclasses

from degla_ray.training.stalled import Beat, describe

FIRST = Beat(rank=0, host="10.0.0.2", pid=7, step=37, phase="forward", count=90)
SECOND = Beat(rank=1, host="10.0.0.3", pid=8, step=37, phase="data", count=88)


def later(beat: Beat) -> Beat:
    return dataclasses.replace(beat, count=beat.count + 3)


def test_describe_worker_without_a_new_beat_is_silent_and_the_others_wait() -> None:
    assert describe(900.4, [FIRST, SECOND], [later(FIRST), SECOND]) == (
        "no step for 900 s: worker 1 (host 10.0.0.3, pid 8) was last heard after step 37; "
        "worker 0 (host 10.0.0.2, pid 7) waits in step 38 after its phase 'forward'"
    )


def test_describe_workers_that_all_beat_are_told_with_their_phases() -> None:
    told = describe(900.4, [FIRST, SECOND], [later(FIRST), later(SECOND)])
    assert "last heard" not in told
    assert "worker 1 (host 10.0.0.3, pid 8) waits in step 38 after its phase 'data'" in told
