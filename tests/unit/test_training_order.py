"""The order of visits: the same on any number of workers, whole, and fixed for all time."""

from __future__ import annotations

import numpy as np
import pytest

from degla_ray.loader.order import BatchOrder, Visits, draw_negatives, permuted, step_seed, uniforms


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
@pytest.mark.parametrize("num_rows", [1, 7, 64, 1000])
def test_order_any_number_of_workers_same_bytes(workers: int, num_rows: int) -> None:
    order = BatchOrder(seed=3, num_rows=num_rows, batch_size=16)
    for step in (0, 1, 5, 100):
        whole = order.batch(step)
        shares = [order.batch(step, rank, workers) for rank in range(workers)]
        assert np.concatenate([p.row_B for p in shares]).tobytes() == whole.row_B.tobytes()
        assert np.concatenate([p.epoch_B for p in shares]).tobytes() == whole.epoch_B.tobytes()


@pytest.mark.parametrize(("num_rows", "batch_size"), [(10, 4), (64, 16), (5, 12), (1, 3)])
def test_order_epochs_end_to_end_every_row_once_an_epoch(num_rows: int, batch_size: int) -> None:
    order = BatchOrder(seed=0, num_rows=num_rows, batch_size=batch_size)
    batches = [order.batch(step) for step in range(num_rows)]  # num_rows * batch_size visits: whole epochs
    rows, epochs = (np.concatenate([getattr(b, f) for b in batches]) for f in ("row_B", "epoch_B"))
    assert (epochs == np.repeat(np.arange(batch_size), num_rows)).all()
    for epoch in range(batch_size):
        assert sorted(rows[epochs == epoch]) == list(range(num_rows))


@pytest.mark.parametrize("count", [1, 2, 3, 10, 63, 64, 65, 1000, 99_991])
def test_permuted_is_a_bijection(count: int) -> None:
    places = np.arange(count)
    assert sorted(permuted(0, ("order", 0), count, places).tolist()) == places.tolist()


def test_permuted_other_seed_or_purpose_other_permutation() -> None:
    places = np.arange(1000)
    base = permuted(0, ("order", 0), 1000, places)
    for other in (permuted(0, ("order", 1), 1000, places), permuted(1, ("order", 0), 1000, places)):
        assert (base != other).mean() > 0.9


def test_permuted_spreads_neighbours_evenly() -> None:
    """Neighbouring places land as far apart as independent draws would (a third of the range on average)."""
    count = 100_000
    rows = permuted(5, ("order", 0), count, np.arange(count))
    assert abs(np.abs(np.diff(rows)).mean() / count - 1 / 3) < 0.01
    landed = np.bincount(rows[: count // 2] * 20 // count, minlength=20)  # of the first half, by twentieths
    assert np.abs(landed - count / 40).max() < 5 * (count / 80) ** 0.5


def test_permuted_is_the_recorded_one() -> None:
    """Golden: a run begun with one version of numpy must go on in the same order with another."""
    assert permuted(42, ("order", 0), 10, np.arange(10)).tolist() == [3, 9, 0, 7, 6, 4, 8, 5, 2, 1]
    assert permuted(42, ("order", 1), 10, np.arange(10)).tolist() == [6, 9, 3, 7, 1, 0, 2, 5, 8, 4]


PART_ROWS = (7, 0, 20, 3, 11, 9)


@pytest.mark.parametrize("block_rows", [1, 10, 25, 1000])
def test_order_in_blocks_every_row_once_an_epoch_on_any_number_of_workers(block_rows: int) -> None:
    order = BatchOrder(seed=1, num_rows=50, batch_size=10, part_rows=PART_ROWS, block_rows=block_rows)
    for epoch in range(2):
        batches = [order.batch(step) for step in range(5 * epoch, 5 * epoch + 5)]
        assert sorted(np.concatenate([b.row_B for b in batches])) == list(range(50))
    pieces = np.concatenate([order.batch(3, rank, 2).row_B for rank in range(2)])
    assert pieces.tolist() == order.batch(3).row_B.tolist()


def test_order_in_blocks_few_parts_are_in_use_at_once() -> None:
    part_rows = (100,) * 64
    order = BatchOrder(seed=1, num_rows=6400, batch_size=100, part_rows=part_rows, block_rows=400)
    rows = np.concatenate([order.batch(step).row_B for step in range(64)])
    parts = [set((rows[start : start + 400] // 100).tolist()) for start in range(0, 6400, 400)]
    assert {len(used) for used in parts} == {4}
    assert len({tuple(sorted(used)) for used in parts}) == 16
    within = rows[:400]
    assert np.abs(np.diff(within // 100)).astype(bool).mean() > 0.6  # parts alternate: 0.75 expected


def test_order_batch_that_does_not_divide_raises() -> None:
    with pytest.raises(ValueError, match="does not divide among 3"):
        BatchOrder(seed=0, num_rows=10, batch_size=4).batch(0, 0, 3)


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 3), (2.0, 5), (0.1, 1), (0.0, 1)])
def test_order_steps_of_epochs_rounded_up(epochs: float, steps: int) -> None:
    assert BatchOrder(seed=0, num_rows=10, batch_size=4).steps(epochs) == steps


def test_negatives_drawn_without_repetition_and_masked_where_too_few() -> None:
    count_B = np.array([0, 2, 4, 9])
    visits = Visits(epoch_B=np.zeros(4, np.int64), row_B=np.arange(4))
    index_BK, mask_BK = draw_negatives(7, visits, count_B, 4)
    assert mask_BK.sum(axis=1).tolist() == [0, 2, 4, 4]
    for index_K, mask_K, count in zip(index_BK, mask_BK, count_B, strict=True):
        drawn = index_K[mask_K]
        assert len(set(drawn)) == len(drawn)
        assert all(0 <= i < count for i in drawn)


def test_negatives_draw_depends_on_epoch_and_row_not_on_company() -> None:
    rows = np.array([5, 6, 7, 8])
    alike = np.full(4, 10)
    first = Visits(epoch_B=np.zeros(4, np.int64), row_B=rows)
    index_BK, _ = draw_negatives(1, first, alike, 3)
    alone = Visits(epoch_B=np.zeros(1, np.int64), row_B=rows[2:3])
    assert draw_negatives(1, alone, alike[:1], 3)[0].tolist() == index_BK[2:3].tolist()
    later = Visits(epoch_B=np.ones(4, np.int64), row_B=rows)
    assert draw_negatives(1, later, alike, 3)[0].tolist() != index_BK.tolist()


def test_negatives_over_many_epochs_each_drawn_equally_often() -> None:
    epochs = 4000
    visits = Visits(epoch_B=np.arange(epochs), row_B=np.zeros(epochs, np.int64))
    index_BK, _ = draw_negatives(0, visits, np.full(epochs, 5), 2)
    share = np.bincount(index_BK.ravel(), minlength=5) / index_BK.size
    assert np.abs(share - 0.2).max() < 0.02  # 5 standard deviations


def test_negatives_none_asked_for_gives_empty() -> None:
    visits = Visits(epoch_B=np.zeros(2, np.int64), row_B=np.arange(2))
    index_BK, mask_BK = draw_negatives(0, visits, np.array([3, 0]), 0)
    assert index_BK.shape == mask_BK.shape == (2, 0)


def test_uniforms_even_and_independent_of_purpose() -> None:
    visits = Visits(epoch_B=np.zeros(5000, np.int64), row_B=np.arange(5000))
    crop, other = (uniforms(0, purpose, visits, 2) for purpose in ("crop", "flip"))
    assert crop.min() >= 0.0
    assert crop.max() < 1.0
    assert abs(crop.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(crop[:, 0], crop[:, 1])[0, 1]) < 0.07
    assert abs(np.corrcoef(crop[:, 0], other[:, 0])[0, 1]) < 0.07


def test_step_seed_differs_by_step_and_worker() -> None:
    seeds = {step_seed(0, step, rank) for step in range(50) for rank in range(4)}
    assert len(seeds) == 200
    assert all(0 <= s < 2**63 for s in seeds)
