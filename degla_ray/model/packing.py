"""Texts without their padding, laid out on the host so that the device is never asked for a size.

A tower computes its linear layers and norms on the tokens alone (about 12 of CLIP's 77 positions a caption);
only attention sees texts side by side. Every index that this takes is made here, with numpy, where the tokens
are: the loader does it for training, so that student and teacher share it and no step waits for the device.

Sizes are rounded up, so that kernels and compiled graphs meet few shapes: the length of a text to 8, the
number of tokens to `token_multiple`. Spare tokens cost their share of the linear layers (at most 255 tokens a
batch at 256) and reach no output.

Shape suffixes: X texts, L positions per text, T tokens of all texts and spare ones, P = X · L places, S = X +
2 boundaries.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LENGTH_MULTIPLE = 8
GPU_TOKEN_MULTIPLE = 256


@dataclass(frozen=True, kw_only=True)
class PackedText:
    """X texts as one sequence of T tokens, with the indices between the packed and the padded layout.

    Attributes:
        token_T: int32 token ids, text after text; 0 for spare tokens.
        position_T: int32, position of each token in its text.
        last_X: int32, index of each text's last token among the T.
        place_T: int64, as index_copy demands; place of each token among the P. Spare tokens share the last
            place of the first text, which is always padding.
        token_P: int32, index of the token at each place; at padded places, the text's last token, which
            causal attention never shows to a token before it.
        real_XL: bool, whether a place holds a token.
        start_S: int32, where each text begins among the T, then where the spare tokens begin and end.
        longest: tokens of the longest text, or the number of spare tokens if that is larger.
    """

    token_T: Tensor
    position_T: Tensor
    last_X: Tensor
    place_T: Tensor
    token_P: Tensor
    real_XL: Tensor
    start_S: Tensor
    longest: int

    @property
    def shape(self) -> tuple[int, int]:
        """Return (X, L)."""
        X, L = self.real_XL.shape
        return X, L

    def to(self, device: torch.device, non_blocking: bool = False) -> PackedText:
        """Return a copy on `device`."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {n: v.to(device, non_blocking=non_blocking) for n, v in values.items() if n != "longest"}
        return PackedText(**moved, longest=self.longest)


def pack(tokens_XL: NDArray[np.integer], last_X: NDArray[np.integer], token_multiple: int = 1) -> PackedText:
    """Return texts packed, on the CPU.

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
        token_T=_int32(np.concatenate([tokens_XL[text_T, position_T], ends])),
        position_T=_int32(np.concatenate([position_T, ends])),
        last_X=_int32(start_S[1 : X + 1] - 1),
        place_T=torch.from_numpy(np.concatenate([text_T * L + position_T, ends + L - 1])),
        token_P=_int32(token_P.reshape(-1)),
        real_XL=torch.from_numpy(real_XL),
        start_S=_int32(start_S),
        longest=max(int(length_X.max(initial=0)), spare),
    )


def _int32(values: NDArray[np.integer]) -> Tensor:
    return torch.from_numpy(values.astype(np.int32))


def _rounded_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
