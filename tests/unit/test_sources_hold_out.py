"""`val_fraction`: images of a source without a validation split are divided by a hash of their id."""

from __future__ import annotations

import pytest

from degla_ray.errors import SettingError
from degla_ray.sources.base import Caption, Record
from degla_ray.sources.hold_out import hold_out


def _records(number: int, split: str = "train") -> list[Record]:
    names = [f"{split}/{index}.jpg" for index in range(number)]
    return [
        Record(name, name, tuple(Caption(f"{name}#{i}", f"caption {i}", split) for i in range(2)))
        for name in names
    ]


def _held_out(records: list[Record]) -> set[str]:
    for record in records:
        assert len({caption.split for caption in record.captions}) == 1, "an image in two splits"
    return {record.image_id for record in records if record.captions[0].split == "val"}


def test_hold_out_moves_about_the_share_and_loses_nothing() -> None:
    before = _records(4000)
    after = list(hold_out(before, 0.25))
    assert 900 < len(_held_out(after)) < 1100
    assert [[c.sample_id for c in r.captions] for r in after] == [
        [c.sample_id for c in r.captions] for r in before
    ]


def test_hold_out_more_images_or_a_larger_share_move_none_that_is_there_back() -> None:
    few, many = (_held_out(list(hold_out(_records(n), 0.1))) for n in (200, 400))
    larger = _held_out(list(hold_out(_records(200), 0.2)))
    assert few == {name for name in many if int(name[6:-4]) < 200}
    assert few < larger
    assert _held_out(list(hold_out(_records(200)[::-1], 0.1))) == few


def test_hold_out_leaves_other_splits_alone() -> None:
    after = list(hold_out([*_records(100), *_records(50, "test")], 0.5))
    assert sum(record.captions[0].split == "test" for record in after) == 50


@pytest.mark.parametrize(
    ("records", "told"),
    [
        ([*_records(50), *_records(5, "val")], "splits train, val"),
        (_records(50, "all"), "splits all"),
        (_records(1), "both splits"),
    ],
)
def test_hold_out_refuses_what_it_cannot_divide(records: list[Record], told: str) -> None:
    with pytest.raises(SettingError, match=told) as caught:
        list(hold_out(records, 0.1))
    assert caught.value.setting == "val_fraction"
