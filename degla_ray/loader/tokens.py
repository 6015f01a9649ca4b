"""The tokens of all captions and negatives, made once before training.

Decoders therefore need no tokenizer, which would cost each of them half a gigabyte of imports. A tokenizer
truncates a text at the model's context length, and may lower-case it. A negative with the same tokens as its
caption would push the caption away from itself, so it is dropped; of a caption's negatives with equal tokens,
the first is kept. Dropped negatives are listed in the run's folder (`rejects/`) and counted in `tokens.json`.
A core tokenises about 10,000 texts per second: 200 s for 2 M negatives on one.

Shape suffixes: R rows (captions), G their negatives, U texts (captions, then negatives), L tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from degla_ray.config import ModelConfig
from degla_ray.errors import DataError, without_ray_wrapper
from degla_ray.loader.samples import Samples, Texts
from degla_ray.schema import REJECTS, RejectReason
from degla_ray.stage import part_name
from degla_ray.storage import Storage

COUNTS, REJECTS_FOLDER = "tokens.json", "rejects"
CHUNK_ROWS = 2000
"""Captions (with their negatives) per task."""
_REASONS = {1: RejectReason.SAME_AS_CAPTION, 2: RejectReason.DUPLICATE_NEGATIVE}


@dataclass(frozen=True, kw_only=True)
class Tokenised:
    """The tokens of some rows and what comparing them found.

    Attributes:
        captions: tokens of the captions.
        negatives: tokens of their negatives.
        cut: number of captions that are longer than the context.
        fault_G: uint8; 1: same tokens as the caption, 2: same tokens as an earlier negative, else 0.
    """

    captions: Texts
    negatives: Texts
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


def tokenise(samples: Samples, tokenizer: Callable[..., Any], first: int, last: int) -> Tokenised:
    """Tokenise rows [first, last) and compare each negative with its row's caption and other negatives."""
    captions = samples.caption.slice(first, last - first).to_pylist()
    begin, end = int(samples.first_negative[first]), int(samples.first_negative[last])
    tokens_RL, cut_R, padding = _cut(tokenizer, captions)
    tokens_GL = np.empty((0, tokens_RL.shape[1]), tokens_RL.dtype)
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
    return Tokenised(
        captions=Texts.of(tokens_RL, padding),
        negatives=Texts.of(tokens_GL, padding),
        cut=int(cut_R.sum()),
        fault_G=fault_G,
    )


def _tokenise(samples: Samples, model: ModelConfig, first: int, last: int) -> Tokenised:
    return tokenise(samples, _tokenizer(model), first, last)


@lru_cache(maxsize=1)
def _tokenizer(model: ModelConfig) -> Callable[..., Any]:
    from degla_ray.model.build import build_tokenizer

    return build_tokenizer(model)


def tokenise_all(run: Storage, samples: Samples, model: ModelConfig) -> tuple[Samples, Counts]:
    """Return the samples with their tokens, without negatives that the model cannot tell apart; and counts.

    Args:
        run: the run's folder, to which `tokens.json` and `rejects/` are written.
        samples: samples of the split.
        model: model whose tokenizer is used.

    Raises:
        DataError: no negative is left.
        SettingError: the model does not exist.
    """
    # SPREAD also escapes the placement group of a sweep's trial, which has no CPUs left for these tasks.
    reference, task = ray.put(samples), ray.remote(_tokenise).options(scheduling_strategy="SPREAD")
    waiting = [
        task.remote(reference, model, first, min(first + CHUNK_ROWS, len(samples)))
        for first in range(0, len(samples), CHUNK_ROWS)
    ]
    with without_ray_wrapper():
        found: list[Tokenised] = ray.get(waiting)
    fault_G = np.concatenate([tokenised.fault_G for tokenised in found])
    length = found[0].captions.context
    counts = Counts(
        length=length,
        captions=len(samples),
        captions_cut=sum(tokenised.cut for tokenised in found),
        negatives=len(fault_G),
        **{str(reason): int((fault_G == fault).sum()) for fault, reason in _REASONS.items()},
    )
    run.write_table(_rejects(samples, fault_G, length), REJECTS_FOLDER, part_name(0, 1))
    run.write_json(dataclasses.asdict(counts), COUNTS)
    if len(fault_G) and fault_G.all():
        raise DataError(
            run.path(REJECTS_FOLDER),
            f"{len(fault_G):,} negatives, none of which differs from its caption in {length} tokens",
            "negatives that differ early enough, or a model with a longer context",
        )
    negatives = Texts.joined([tokenised.negatives for tokenised in found]).take(np.flatnonzero(fault_G == 0))
    texts = Texts.joined([*(tokenised.captions for tokenised in found), negatives])
    return dataclasses.replace(_without(samples, fault_G != 0), texts=texts), counts


def _cut(tokenizer: Callable[..., Any], texts: list[str]) -> tuple[NDArray[Any], NDArray[np.bool_], int]:
    """Return the texts' tokens, whether each text is truncated, and the padding token.

    A text is truncated if one more token of context would show more of it.
    """
    tokens_RL = np.asarray(tokenizer(texts))
    longer = np.asarray(tokenizer([*texts, ""], context_length=tokens_RL.shape[1] + 1))
    padding = longer[-1, -1]
    cut_R = (longer[:-1, :-1] != tokens_RL).any(axis=1) | (longer[:-1, -1] != padding)
    return tokens_RL, cut_R, int(padding)


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
