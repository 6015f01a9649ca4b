"""Removal, before training, of negatives that the model's tokenizer cannot distinguish.

A tokenizer truncates a text at the model's context length, and may lower-case it. A negative with the same
tokens as its caption would push the caption away from itself, so it is dropped; of a caption's negatives with
equal tokens, the first is kept. Dropped negatives are listed in the run's folder (`rejects/`) and counted in
`tokens.json`. Each decoder tokenises about 10,000 texts per second: 200 s for 2 M negatives on one.

Shape suffixes: R rows (captions), G their negatives, L tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.exceptions import RayTaskError

from degla_ray.config import ModelConfig
from degla_ray.errors import DataError, DeglaError
from degla_ray.loader.samples import Samples
from degla_ray.schema import REJECTS, RejectReason
from degla_ray.stage import part_name
from degla_ray.storage import Storage

COUNTS, REJECTS_FOLDER = "tokens.json", "rejects"
CHUNK_ROWS = 2000
"""Captions (with their negatives) that a decoder compares per call."""
_REASONS = {1: RejectReason.SAME_AS_CAPTION, 2: RejectReason.DUPLICATE_NEGATIVE}


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The result of comparing some rows after tokenisation.

    Attributes:
        length: the model's context length, in tokens.
        cut: number of captions that are longer.
        fault_G: uint8; 1: same tokens as the caption, 2: same tokens as an earlier negative, else 0.
    """

    length: int
    cut: int
    fault_G: NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Counts of truncated captions and dropped negatives of a run.

    Attributes:
        length: the model's context length, in tokens.
        captions: captions of the split.
        captions_cut: captions longer than `length`.
        negatives: negatives before any was dropped.
        same_as_caption: negatives dropped because their tokens equal their caption's.
        duplicate_negative: negatives dropped because their tokens equal an earlier negative's.
    """

    length: int
    captions: int
    captions_cut: int
    negatives: int
    same_as_caption: int
    duplicate_negative: int

    def describe(self) -> str:
        line = f"{self.captions_cut:,} of {self.captions:,} captions are cut at {self.length} tokens"
        if not self.negatives:
            return line
        dropped = self.same_as_caption + self.duplicate_negative
        line += f"; {dropped:,} of {self.negatives:,} negatives dropped"
        if not dropped:
            return line
        return (
            f"{line}: {self.same_as_caption:,} have their caption's tokens, {self.duplicate_negative:,} "
            f"those of another negative ({REJECTS_FOLDER}/)"
        )


def compare(samples: Samples, tokenizer: Callable[..., Any], first: int, last: int) -> Compared:
    """Tokenise rows [first, last) and compare each negative with its row's caption and other negatives."""
    captions = samples.caption.slice(first, last - first).to_pylist()
    begin, end = int(samples.first_negative[first]), int(samples.first_negative[last])
    tokens_RL = np.asarray(tokenizer(captions))
    length = tokens_RL.shape[1]
    fault_G = np.zeros(end - begin, np.uint8)
    if end > begin:
        tokens_GL = np.asarray(tokenizer(samples.negative.slice(begin, end - begin).to_pylist()))
        row_G = np.repeat(np.arange(last - first), np.diff(samples.first_negative[first : last + 1]))
        seen: set[tuple[int, bytes]] = set()
        for g, (row, tokens_L) in enumerate(zip(row_G.tolist(), tokens_GL, strict=True)):
            key = (row, tokens_L.tobytes())
            fault_G[g] = 2 if key in seen else 0
            seen.add(key)
        fault_G[(tokens_GL == tokens_RL[row_G]).all(axis=1)] = 1
    return Compared(length=length, cut=int(_cut(tokenizer, captions, tokens_RL).sum()), fault_G=fault_G)


def drop_indistinguishable(
    run: Storage, samples: Samples, model: ModelConfig, decoders: list[list[Any]]
) -> tuple[Samples, Counts]:
    """Return the samples without the negatives that the model cannot tell apart, and the counts.

    Args:
        run: the run's folder, to which `tokens.json` and `rejects/` are written.
        samples: samples of the split.
        model: model whose tokenizer is used.
        decoders: actors that tokenise.

    Raises:
        DataError: no negative is left.
        SettingError: the model does not exist.
    """
    reference, actors = ray.put(samples), [actor for of_worker in decoders for actor in of_worker]
    waiting = [
        actors[number % len(actors)].compare.remote(
            [reference], model, first, min(first + CHUNK_ROWS, len(samples))
        )
        for number, first in enumerate(range(0, len(samples), CHUNK_ROWS))
    ]
    try:
        found: list[Compared] = ray.get(waiting)
    except RayTaskError as error:
        if isinstance(error.cause, DeglaError):
            raise error.cause from error
        raise
    fault_G = np.concatenate([compared.fault_G for compared in found])
    counts = Counts(
        length=found[0].length,
        captions=len(samples),
        captions_cut=sum(compared.cut for compared in found),
        negatives=len(fault_G),
        **{str(reason): int((fault_G == fault).sum()) for fault, reason in _REASONS.items()},
    )
    run.write_table(_rejects(samples, fault_G, counts.length), REJECTS_FOLDER, part_name(0, 1))
    run.write_json(dataclasses.asdict(counts), COUNTS)
    if len(fault_G) and fault_G.all():
        raise DataError(
            run.path(REJECTS_FOLDER),
            f"{len(fault_G):,} negatives, none of which differs from its caption in the first "
            f"{counts.length} tokens",
            "negatives that differ early enough, or a model with a longer context",
        )
    return _without(samples, fault_G != 0), counts


def _cut(tokenizer: Callable[..., Any], texts: list[str], tokens_RL: NDArray[Any]) -> NDArray[np.bool_]:
    """Return whether each text is truncated: one more token of context would show more of it."""
    length = tokens_RL.shape[1]
    longer = np.asarray(tokenizer([*texts, ""], context_length=length + 1))
    padding = longer[-1, -1]
    return (longer[:-1, :-1] != tokens_RL).any(axis=1) | (longer[:-1, -1] != padding)


def _rejects(samples: Samples, fault_G: NDArray[np.uint8], length: int) -> pa.Table:
    dropped = np.flatnonzero(fault_G)
    row = np.searchsorted(samples.first_negative, dropped, side="right") - 1
    return pa.table(
        {
            "stage": ["train"] * len(dropped),
            "sample_id": samples.sample_id.take(pa.array(row)),
            "kind": [""] * len(dropped),
            "text": samples.negative.take(pa.array(dropped)),
            "reason": [str(_REASONS[fault]) for fault in fault_G[dropped].tolist()],
            "detail": [f"the same {length} tokens for this model"] * len(dropped),
        }
    ).cast(REJECTS)


def _without(samples: Samples, dropped_G: NDArray[np.bool_]) -> Samples:
    before = np.concatenate([[0], np.cumsum(dropped_G)])
    return dataclasses.replace(
        samples,
        negative=samples.negative.filter(pa.array(~dropped_G)),
        first_negative=samples.first_negative - before[samples.first_negative],
    )
