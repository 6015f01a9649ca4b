"""The requests sent to a language model and their results, row by row, so that none is sent twice.

While a window of shards is processed, finished answers are appended to `ledger/` every two seconds. When all
(caption, kind) pairs of the window are settled, its shards get their parts and receipts, and the appended
files are deleted. A killed driver loses the blocks in flight and the answers of the last two seconds.
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
"""Folders with the rows of unfinished windows and of finished shards."""


class State(StrEnum):
    """Outcome of an attempt, and of a (caption, kind) pair as a whole."""

    OK = "ok"
    REJECTED = "rejected"
    ERROR = "error"
    NOT_APPLICABLE = "not_applicable"


Row = dict[str, Any]
"""A row of the schema ATTEMPTS."""


def text_key(caption: str) -> str:
    """Return a key that is equal for captions that differ only in case, spacing or a final full stop."""
    text = " ".join(caption.split()).rstrip(".").casefold()
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


@dataclass(kw_only=True)
class StateRow:
    """State-table row of one (caption, kind) pair.

    Attributes:
        made: number of attempts made.
        allowed: maximum number of attempts.
        attempts: the ledger's rows of these attempts.
    """

    allowed: int
    made: int = 0
    attempts: list[Row] = field(default_factory=list)

    def state(self) -> State:
        """Return OK if any attempt was accepted, otherwise the state of the last attempt."""
        states = [State(attempt["state"]) for attempt in self.attempts]
        return State.OK if State.OK in states else states[-1]


def may_retry(row: StateRow, reasons: Sequence[RejectReason]) -> bool:
    """Return whether the row ended in an error, or was last rejected for one of `reasons`."""
    state = row.state()
    return state is State.ERROR or (state is State.REJECTED and row.attempts[-1]["reason"] in reasons)


class StateTable:
    """State table of one window of shards, with a row per (caption, kind) pair.

    Args:
        keys: keys of the window's captions (`text_key`).
        kinds: requested kinds.
        per_kind: requested negatives per caption and kind.
        attempts: maximum number of attempts per requested negative.
    """

    def __init__(self, keys: Collection[str], kinds: Sequence[Kind], per_kind: int, attempts: int) -> None:
        self._per_kind, self._attempts = per_kind, attempts
        self._kinds = [kind.value for kind in kinds]
        self.rows = {
            (key, kind.value): StateRow(allowed=per_kind * attempts) for kind in kinds for key in keys
        }
        self._sent: dict[str, set[str]] = {}  # kinds of the requests on their way
        self._left = set(keys)

    @property
    def finished(self) -> bool:
        """Whether no caption needs a further request."""
        return not self._left

    def add(self, attempts: Iterable[Row]) -> list[str]:
        """Add the ledger's rows; return the keys for which the last request on its way is now answered."""
        answered = []
        for attempt in attempts:
            key = attempt["key"]
            row = self.rows[(key, attempt["kind"])]
            row.attempts.append(attempt)
            row.made = max(row.made, attempt["attempt"] + 1)
            if key in self._sent:
                self._sent[key].discard(attempt["kind"])
                if not self._sent[key]:
                    del self._sent[key]
                    answered.append(key)
        return answered

    def _resolve(self, key: str) -> None:
        """Reject duplicate negatives of a caption, keeping the one of the earliest attempt, then kind.

        The choice depends only on the answers and never on their timing, so a resumed run ends with the same
        rows as an uninterrupted one.
        """
        accepted = [
            (attempt["attempt"], row, i)
            for row in (self.rows[(key, kind)] for kind in self._kinds)
            for i, attempt in enumerate(row.attempts)
            if attempt["state"] == State.OK
        ]
        seen: set[str] = set()
        for _, row, i in sorted(accepted, key=lambda found: found[0]):
            attempt = row.attempts[i]
            form = normal_form(attempt["text"])
            if form in seen:
                why = {"reason": RejectReason.DUPLICATE_NEGATIVE.value, "detail": "check duplicate"}
                row.attempts[i] = {**attempt, "state": State.REJECTED.value, **why}
            seen.add(form)

    def retry(self, reasons: Sequence[RejectReason]) -> int:
        """Allow further attempts for finished rows that satisfy `may_retry`; return their number."""
        again = 0
        for row in self.rows.values():
            if row.attempts and self._done(row) and may_retry(row, reasons):
                row.allowed = row.made + self._per_kind * self._attempts
                again += 1
        return again

    def next_round(self, key: str) -> list[tuple[str, int, bool, int]]:
        """Return the next requests for a caption that has none on its way; [] if it needs no more.

        Each is (kind, attempt, whether it is the last, negatives still missing). A round contains the kinds
        with the fewest attempts, so it is completed before the next begins, even after a restart.
        """
        self._resolve(key)
        left = [(kind, row) for kind in self._kinds if not self._done(row := self.rows[(key, kind)])]
        if not left:
            self._left.discard(key)
            return []
        first = min(row.made for _, row in left)
        found = [
            (kind, first, first + 1 == row.allowed, self._per_kind - _accepted(row))
            for kind, row in left
            if row.made == first
        ]
        self._sent[key] = {kind for kind, *_ in found}
        return found

    def settled(self) -> int:
        """Return the number of rows that need no further requests."""
        return sum(self._done(row) for row in self.rows.values())

    def _done(self, row: StateRow) -> bool:
        return (
            any(attempt["state"] == State.NOT_APPLICABLE for attempt in row.attempts)
            or _accepted(row) >= self._per_kind
            or row.made >= row.allowed
        )


def _accepted(row: StateRow) -> int:
    return sum(attempt["state"] == State.OK for attempt in row.attempts)


class Ledger:
    """Rows on disk.

    Args:
        folder: output folder of the stage.
    """

    def __init__(self, folder: StageFolder) -> None:
        self._folder = folder

    @property
    def empty(self) -> bool:
        """Whether no answer has been recorded yet."""
        return not self._names() and not self._folder.storage.names(CLOSED)

    def append(self, rows: Sequence[Row]) -> None:
        self._folder.storage.write_table(to_arrow(rows), OPEN, f"{uuid.uuid4().hex}.parquet")

    def read(self, shards: Sequence[int]) -> list[Row]:
        """Return the distinct rows of unfinished windows and of `shards`, by key, kind and attempt."""
        storage = self._folder.storage
        names = [(OPEN, name) for name in self._names()]
        closed = [(CLOSED, part_name(shard, self._folder.num_shards)) for shard in shards]
        names += [name for name in closed if storage.is_file(*name)]
        rows = [row for name in names for row in storage.open_parquet(*name).read().to_pylist()]
        distinct = {(r["key"], r["kind"], r["attempt"], r["state"], r["text"]): r for r in rows}
        return sorted(distinct.values(), key=lambda row: (row["key"], row["kind"], row["attempt"]))

    def settled(self, shard: int) -> list[StateRow]:
        """Return the state rows of a finished shard; [] if it was written without a language model."""
        name = part_name(shard, self._folder.num_shards)
        if not self._folder.storage.is_file(CLOSED, name):
            return []
        rows: dict[tuple[str, str], StateRow] = {}
        for attempt in self._folder.storage.open_parquet(CLOSED, name).read().to_pylist():
            rows.setdefault((attempt["key"], attempt["kind"]), StateRow(allowed=0)).attempts.append(attempt)
        return list(rows.values())

    def close(self, shards: Mapping[int, Sequence[Row]]) -> None:
        """Write the rows of settled shards; `clear` deletes the appended files later, after the receipts."""
        for shard, rows in shards.items():
            self._folder.write_part(CLOSED, shard, to_arrow(rows))

    def clear(self, shards: Collection[int]) -> None:
        """Delete the appended rows of settled shards and keep those of other shards.

        Rows of other shards exist if an interrupted run had different windows: with `retry_failed`, reopened
        shards precede those that the interrupted run was processing.
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


def to_arrow(rows: Sequence[Row]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=ATTEMPTS)
