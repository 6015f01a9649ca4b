"""What was asked of a language model and what became of it, row by row, so that nothing is asked twice.

While a window of shards is worked on, finished answers are appended to `ledger/` as they come; when all of
its (caption, kind) are settled, its shards get their parts and receipts and the appended files go. A killed
driver loses what was in flight: at most the blocks that the engines were busy with. Trade-off: one small
file a block of 128 answers, so 80,000 of them for two million captions, five kinds each, never more than a
window's at a time.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import pyarrow as pa

from degla_ray.negatives.checks import normal_form
from degla_ray.schema import ATTEMPTS, Kind, RejectReason
from degla_ray.stage import StageFolder, part_name, shard_of

OPEN, CLOSED = "ledger", "attempts"
"""Folders of the rows of unfinished windows, and of finished shards."""


class State(StrEnum):
    """What becomes of a (caption, kind); it ends in exactly one of them."""

    OK = "ok"
    REJECTED = "rejected"
    ERROR = "error"
    NOT_APPLICABLE = "not_applicable"


Row = dict[str, Any]
"""A row of the schema ATTEMPTS."""


def text_key(caption: str) -> str:
    """The same for captions that read alike: up to case, spacing and a final full stop."""
    text = " ".join(caption.split()).rstrip(".").casefold()
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


@dataclass(kw_only=True)
class Entry:
    """One (caption, kind).

    Attributes:
        asked: attempts made.
        allowed: attempts that may be made.
        rows: all that is known.
    """

    allowed: int
    asked: int = 0
    rows: list[Row] = field(default_factory=list)

    def state(self) -> State:
        """By the best answer; of those that failed, by the last."""
        states = [State(row["state"]) for row in self.rows]
        return State.OK if State.OK in states else states[-1]


def may_retry(entry: Entry, reasons: Sequence[RejectReason]) -> bool:
    """Whether it ended in an error, or without a negative for one of `reasons`."""
    state = entry.state()
    return state is State.ERROR or (state is State.REJECTED and entry.rows[-1]["reason"] in reasons)


class Book:
    """All entries of one window of shards, as their ledger has them.

    Args:
        keys: of the window's captions.
        kinds: kinds wanted.
        per_kind: negatives wanted for an entry.
        attempts: questions for each wanted negative, at most.
    """

    def __init__(self, keys: Iterable[str], kinds: Sequence[Kind], per_kind: int, attempts: int) -> None:
        self._per_kind, self._attempts = per_kind, attempts
        self.entries = {
            (key, kind.value): Entry(allowed=per_kind * attempts) for kind in kinds for key in keys
        }

    def add(self, rows: Iterable[Row]) -> None:
        for row in rows:
            entry = self.entries[(row["key"], row["kind"])]
            entry.rows.append(row)
            entry.asked = max(entry.asked, row["attempt"] + 1)

    def resolve(self) -> None:
        """Of two equal negatives of a caption, the one of the later attempt, or kind, becomes a reject.

        Hangs on what was answered alone, never on when, so that a run that was killed and went on ends with
        what an uninterrupted one has.
        """
        accepted = [
            (row["attempt"], entry, i)
            for entry in self.entries.values()  # by kind
            for i, row in enumerate(entry.rows)
            if row["state"] == State.OK
        ]
        seen: dict[str, set[str]] = {}
        for _, entry, i in sorted(accepted, key=lambda found: found[0]):
            row = entry.rows[i]
            forms, form = seen.setdefault(row["key"], set()), normal_form(row["text"])
            if form in forms:
                why = {"reason": RejectReason.DUPLICATE_NEGATIVE.value, "detail": "check duplicate"}
                entry.rows[i] = {**row, "state": State.REJECTED.value, **why}
            forms.add(form)

    def retry(self, reasons: Sequence[RejectReason]) -> int:
        """Allows further attempts where `may_retry` says so; returns for how many entries."""
        again = 0
        for entry in self.entries.values():
            if entry.rows and self._done(entry) and may_retry(entry, reasons):
                entry.allowed = entry.asked + self._per_kind * self._attempts
                again += 1
        return again

    def next_round(self) -> list[tuple[str, str, int, bool]]:
        """(key, kind, number of the attempt, whether it is the last) to be asked now, by kind.

        Those with the fewest attempts: a round is over before the next begins, also after a restart.
        """
        self.resolve()
        left = [
            (key, kind, entry.asked, entry.asked + 1 == entry.allowed)
            for (key, kind), entry in self.entries.items()
            if not self._done(entry)
        ]
        first = min((attempt for _, _, attempt, _ in left), default=0)
        return [question for question in left if question[2] == first]

    def settled(self) -> int:
        """Entries that nothing is asked for any more."""
        return sum(self._done(entry) for entry in self.entries.values())

    def _done(self, entry: Entry) -> bool:
        states = [row["state"] for row in entry.rows]
        return (
            State.NOT_APPLICABLE in states
            or states.count(State.OK) >= self._per_kind
            or entry.asked >= entry.allowed
        )


class Ledger:
    """The rows on disk.

    Args:
        folder: the output of the stage.
    """

    def __init__(self, folder: StageFolder) -> None:
        self._folder = folder

    @property
    def empty(self) -> bool:
        """Whether nothing was answered yet."""
        return not self._names() and not self._folder.storage.names(CLOSED)

    def append(self, rows: Sequence[Row]) -> None:
        self._folder.storage.write_table(table(rows), OPEN, f"{uuid.uuid4().hex}.parquet")

    def read(self, shards: Sequence[int]) -> list[Row]:
        """Rows of unfinished windows, and those of `shards` that were finished before, oldest first."""
        storage = self._folder.storage
        names = [(OPEN, name) for name in self._names()]
        closed = [(CLOSED, part_name(shard, self._folder.num_shards)) for shard in shards]
        names += [name for name in closed if storage.is_file(*name)]
        rows = [row for name in names for row in storage.open_parquet(*name).read().to_pylist()]
        distinct = {(r["key"], r["kind"], r["attempt"], r["state"], r["text"]): r for r in rows}
        return sorted(distinct.values(), key=lambda row: (row["key"], row["kind"], row["attempt"]))

    def settled(self, shard: int) -> list[Entry]:
        """The entries of a finished shard; none where it was written without a language model."""
        name = part_name(shard, self._folder.num_shards)
        if not self._folder.storage.is_file(CLOSED, name):
            return []
        entries: dict[tuple[str, str], Entry] = {}
        for row in self._folder.storage.open_parquet(CLOSED, name).read().to_pylist():
            entries.setdefault((row["key"], row["kind"]), Entry(allowed=0)).rows.append(row)
        return list(entries.values())

    def close(self, shards: Mapping[int, Sequence[Row]]) -> None:
        """Writes the rows of settled shards; the appended files go with `clear`, after the receipts."""
        for shard, rows in shards.items():
            self._folder.write_part(CLOSED, shard, table(rows))

    def clear(self, shards: Collection[int]) -> None:
        """Drops the appended rows of settled shards.

        Others are there where an interrupted run's windows were not this one's: with `retry_failed` finished
        shards come before those that it was busy with.
        """
        storage, names = self._folder.storage, self._names()
        rows = [row for name in names for row in storage.open_parquet(OPEN, name).read().to_pylist()]
        left = [row for row in rows if shard_of(row["key"], self._folder.num_shards) not in shards]
        if left:
            self.append(left)
        for name in names:
            storage.delete_file(OPEN, name)

    def _names(self) -> list[str]:
        return [n for n in self._folder.storage.names(OPEN) if n.endswith(".parquet")]


def table(rows: Sequence[Row]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=ATTEMPTS)
