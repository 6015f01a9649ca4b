"""Rows that the stages of encoding exchange: Arrow tables of one row, whose large array is not copied.

As Python bytes, an array would be copied by `tobytes`, into an Arrow builder, into Ray's object store and out
of it again. Here the table refers to the array's own memory, so only the object store copies it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

_NAMES = pa.list_(pa.string())
_PASSED_ON = [(name, _NAMES) for name in ("digests", "known", "known_digests", "failed", "reasons")]
READ = pa.schema([("source", pa.string()), ("ids", _NAMES), ("truncated", pa.list_(pa.bool_())), *_PASSED_ON])
"""What was read: its array holds the pixels or tokens of `ids`. `known` are images whose features are cached;
`failed` are those that could not be read."""


def as_items(batches: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return batches of work as items of Ray Data; tables would cost a task per batch that only measures it.

    Args:
        batches: `source`, `ids` and `where` of each batch; without a source, the ids are texts.
    """
    return [{"batch": json.dumps(batch)} for batch in batches]


def batch_of(item: pa.Table) -> dict[str, Any]:
    """Return the batch of one of `as_items`."""
    [text] = item["batch"].to_pylist()
    batch: dict[str, Any] = json.loads(text)
    return batch


def with_array(row: dict[str, Any], array: np.ndarray) -> pa.Table:
    """Return a table of one row of READ, and an array that is referred to."""
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    columns = {
        "array": pa.LargeListArray.from_arrays(pa.array([0, len(flat)], type=pa.int64()), pa.array(flat)),
        "shape": pa.array([list(array.shape)], type=pa.list_(pa.int64())),
        "dtype": pa.array([array.dtype.str]),
    }
    table = pa.Table.from_pylist([row], schema=READ)
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table


def row_of(table: pa.Table) -> tuple[dict[str, Any], np.ndarray]:
    """Return the row of `with_array`'s table, and a read-only view of its array."""
    [row] = table.drop_columns(["array"]).to_pylist()
    [chunk] = (chunk for chunk in table["array"].chunks if len(chunk))
    shape, dtype = row.pop("shape"), row.pop("dtype")
    return row, chunk.flatten().to_numpy().view(dtype).reshape(shape)
