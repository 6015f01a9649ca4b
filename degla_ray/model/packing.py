"""Texts without their padding, laid out on the host so that the device is never asked for a size.

A tower computes its linear layers and norms on the tokens alone (about 12 of CLIP's 77 positions a caption);
only attention sees texts side by side. Every index that this takes is made here, with numpy, where the tokens
are: the loader does it for training, so that student and teacher share it and no step waits for the device.
This module does not import torch, which a decoder would have to hold in memory.

Sizes are rounded up, so that kernels and compiled graphs meet few shapes: the length of a text to 8, the
number of tokens to `token_multiple`. Spare tokens cost their share of the linear layers (at most 255 tokens a
batch at 256) and reach no output.

Shape suffixes: X texts, L positions per text, T tokens of all texts and spare ones, P = X · L places, S = X +
2 boundaries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = Any
"""A numpy array on the host, a tensor on its device."""
LENGTH_MULTIPLE = 8
GPU_TOKEN_MULTIPLE = 256


@dataclass(frozen=True, kw_only=True)
class PackedText:
    """X texts as one sequence of T tokens, with the indices between the packed and the padded layout.

    `pack` makes numpy arrays; `map` converts them to tensors.

    Attributes:
        token_T: int32 token ids, text after text; 0 for spare tokens.
        position_T: int32, position of each token in its text.
        last_X: int32, index of each text's last token among the T.
        place_T: int64, as index_copy demands; place of each token among the P. Spare tokens share the last
            place of the first text, which is always padding.
        token_P: int32, index of the token at each place; at padded places, the text's last token, which the
            causal rule or `real_XL` hides from the tokens before it.
        real_XL: bool, whether a place holds a token.
        start_S: int32, where each text begins among the T, then where the spare tokens begin and end.
        longest: tokens of the longest text, or the number of spare tokens if that is larger.
    """

    token_T: Array
    position_T: Array
    last_X: Array
    place_T: Array
    token_P: Array
    real_XL: Array
    start_S: Array
    longest: int

    @property
    def shape(self) -> tuple[int, int]:
        """Return (X, L)."""
        X, L = self.real_XL.shape
        return X, L

    def __len__(self) -> int:
        return self.shape[0]

    def map(self, convert: Callable[[Array], Array]) -> PackedText:
        """Return the texts with every array converted, for example to a tensor on a device."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return PackedText(**{name: v if name == "longest" else convert(v) for name, v in values.items()})


@dataclass(frozen=True, kw_only=True)
class TextEnd:
    """How a tower finds a text's last token, after which it needs nothing.

    Attributes:
        token: id of the end token, at its first place; None: the largest id (OpenAI's rule).
        padding: id of the padding token, for a tower that uses all other tokens: then the last of them.
    """

    token: int | None = None
    padding: int | None = None

    def find(self, tokens_XL: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return last_X, the position of each text's last token."""
        if self.padding is not None:
            from_end_X = (tokens_XL != self.padding)[:, ::-1].argmax(axis=-1)
            return tokens_XL.shape[1] - 1 - from_end_X
        return (tokens_XL if self.token is None else tokens_XL == self.token).argmax(axis=-1)


def pack(tokens_XL: NDArray[np.integer], last_X: NDArray[np.integer], token_multiple: int = 1) -> PackedText:
    """Return texts packed, as arrays.

    Args:
        tokens_XL: token ids, padded to any common length.
        last_X: position of each text's last token.
        token_multiple: number of which T is a multiple.
    """
    length_X = last_X.astype(np.int64) + 1
    X, T = len(length_X), int(length_X.sum())
    # One position more than the longest text, so that the first text has padding for the spare tokens.
    L = _rounded_up(int(length_X.max(initial=0)) + 1, LENGTH_MULTIPLE)
    spare = _rounded_up(T, token_multiple) - T
    real_XL = np.arange(L) < length_X[:, None]
    text_T, position_T = np.nonzero(real_XL)
    start_S = np.concatenate([[0], np.cumsum(length_X), [T + spare]])
    token_P = np.minimum(np.arange(L), last_X[:, None]) + start_S[:X, None]
    ends = np.zeros(spare, np.int64)
    return PackedText(
        token_T=np.concatenate([tokens_XL[text_T, position_T], ends]).astype(np.int32),
        position_T=np.concatenate([position_T, ends]).astype(np.int32),
        last_X=(start_S[1 : X + 1] - 1).astype(np.int32),
        place_T=np.concatenate([text_T * L + position_T, ends + L - 1]),
        token_P=token_P.reshape(-1).astype(np.int32),
        real_XL=real_XL,
        start_S=start_S.astype(np.int32),
        longest=max(int(length_X.max(initial=0)), spare),
    )


def _rounded_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
