"""The features from which an objective is computed.

Shape suffixes: N global batch, B a worker's own rows (N / workers), K negatives per caption, D feature
dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Features:
    """L2-normalised features of a worker's own rows, converted to float32 whatever the autocast type.

    A negative whose mask is False is absent: it enters no denominator and no distance. Its features are set
    to 0 here, so that not even a NaN in its place reaches a gradient.

    Attributes:
        img_BD: student image features.
        txt_BD: student caption features.
        neg_BKD: student features of each caption's negatives; None means K = 0.
        neg_mask_BK: bool, which negatives exist; None means all.
        teacher_img_BD: teacher image features, without gradient; None without a teacher.
        teacher_txt_BD: teacher caption features; None without a teacher.
        teacher_neg_BKD: teacher features of the negatives; may be None if K = 0.
    """

    img_BD: Tensor
    txt_BD: Tensor
    neg_BKD: Tensor = None  # type: ignore[assignment]  # always a tensor after construction
    neg_mask_BK: Tensor = None  # type: ignore[assignment]
    teacher_img_BD: Tensor | None = None
    teacher_txt_BD: Tensor | None = None
    teacher_neg_BKD: Tensor | None = None

    def __post_init__(self) -> None:
        B, D = self.img_BD.shape
        neg_BKD = self.img_BD.new_zeros(B, 0, D) if self.neg_BKD is None else self.neg_BKD
        K = neg_BKD.shape[1]
        if self.neg_mask_BK is None:
            mask_BK = torch.ones(B, K, dtype=torch.bool, device=self.img_BD.device)
        else:
            mask_BK = self.neg_mask_BK.bool()
        absent_BK1 = ~mask_BK[..., None]

        assert self.txt_BD.shape == (B, D), f"txt_BD is {tuple(self.txt_BD.shape)}, img_BD {(B, D)}"
        assert neg_BKD.shape == (B, K, D), f"neg_BKD is {tuple(neg_BKD.shape)}, img_BD {(B, D)}"
        assert mask_BK.shape == (B, K), f"neg_mask_BK is {tuple(mask_BK.shape)}, neg_BKD {(B, K, D)}"

        store = object.__setattr__  # frozen dataclass
        store(self, "img_BD", self.img_BD.float())
        store(self, "txt_BD", self.txt_BD.float())
        store(self, "neg_BKD", neg_BKD.float().masked_fill(absent_BK1, 0.0))
        store(self, "neg_mask_BK", mask_BK)
        if self.teacher_img_BD is None or self.teacher_txt_BD is None:
            assert self.teacher_img_BD is self.teacher_txt_BD is None, (
                "a teacher encodes both images and texts"
            )
            return
        teacher_neg_BKD = self.teacher_neg_BKD
        if teacher_neg_BKD is None:
            assert K == 0, "a teacher and negatives need teacher_neg_BKD"
            teacher_neg_BKD = self.teacher_img_BD.new_zeros(B, 0, D)
        assert self.teacher_img_BD.shape == self.teacher_txt_BD.shape == (B, D)
        assert teacher_neg_BKD.shape == (B, K, D)
        store(self, "teacher_img_BD", self.teacher_img_BD.detach().float())
        store(self, "teacher_txt_BD", self.teacher_txt_BD.detach().float())
        store(self, "teacher_neg_BKD", teacher_neg_BKD.detach().float().masked_fill(absent_BK1, 0.0))
