"""Move a share of a source's images from split `train` to `val`, for data that comes without a split.

An image is selected by a hash of its id alone: the choice is the same on every run, and adding images later
moves none of those already there. The share is therefore met on average only: of 60 images, `val_fraction`
0.1 selects between 2 and 11 in 97 of 100 data sets.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator

from degla_ray.errors import SettingError
from degla_ray.sources.base import Record

TRAIN, VAL = "train", "val"


def hold_out(records: Iterable[Record], fraction: float) -> Iterator[Record]:
    """Yield the records, with about `fraction` of those in split `train` moved to split `val`.

    All captions of an image move with it.

    Raises:
        SettingError: after the last record: the source has a split `val`, has none called `train`, or is so
            small that one of the two would be empty.
    """
    before: Counter[str] = Counter()
    after: Counter[str] = Counter()
    for record in records:
        before[record.captions[0].split] += 1
        divided = _moved(record) if _is_held_out(record, fraction) else record
        after[divided.captions[0].split] += 1
        yield divided
    if before and (VAL in before or TRAIN not in before):
        splits = ", ".join(sorted(before))
        expected = f"null for a source with the splits {splits}: it divides a split `{TRAIN}`"
        raise SettingError("val_fraction", fraction, f"{expected} that has no `{VAL}` beside it")
    if before and not (after[TRAIN] and after[VAL]):
        found = ", ".join(f"{after[split]} in {split}" for split in (TRAIN, VAL))
        raise SettingError("val_fraction", fraction, f"a share that leaves images in both splits ({found})")


def _is_held_out(record: Record, fraction: float) -> bool:
    if record.captions[0].split != TRAIN:
        return False
    digest = hashlib.blake2b(record.image_id.encode(), digest_size=8, person=b"val").digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def _moved(record: Record) -> Record:
    return record._replace(captions=tuple(caption._replace(split=VAL) for caption in record.captions))
