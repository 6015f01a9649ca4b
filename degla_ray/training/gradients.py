"""Gradients of one step: both towers forward, the objective, backward; in one batch or in micro-batches.

With micro-batches (`accumulation_steps`), features are cached as in GradCache (arXiv 2101.06983). All
micro-batches pass through the towers without a graph; the objective is computed once on the features of the
whole batch; then each micro-batch passes through the towers again to backpropagate the feature gradients.
The result equals the gradients of one batch, `logit_scale` included, with the memory of one micro-batch and
one more forward pass (a third more time).

Shape suffixes: B own rows, K negatives, V valid negatives, L tokens, X = B + V texts, H W C pixels.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from itertools import compress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from degla_ray.config import TrainConfig
from degla_ray.loader.loader import LocalBatch
from degla_ray.model.encode import encode_image, encode_text
from degla_ray.model.loaded import LoadedModel
from degla_ray.model.packing import PackedText
from degla_ray.model.teacher import Teacher
from degla_ray.objectives import Features, State, losses, next_state

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class _Towers(nn.Module):
    """Both towers in one forward pass, as DistributedDataParallel needs it."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.clip = clip

    def forward(
        self, images_BCHW: Tensor, text: PackedText | Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        scale = self.clip.logit_scale.exp()  # type: ignore[operator]
        bias = getattr(self.clip, "logit_bias", None)
        # a copy: DistributedDataParallel returns tensors, not parameters
        bias = None if bias is None else bias.clone()
        return encode_image(self.clip, images_BCHW), encode_text(self.clip, text), scale, bias


def freeze_unreached(student: nn.Module, loaded: LoadedModel) -> list[str]:
    """Freeze the parameters that no loss reaches, such as CoCa's caption decoder, and return their names.

    DistributedDataParallel waits for a gradient of every trainable parameter. One backward pass over a blank
    image shows which parameters get one. It runs in eval mode, so that it changes no buffer.
    """
    training, device = student.training, next(student.parameters()).device
    image_BCHW = torch.zeros(1, 3, *loaded.preprocess_cfg["size"], device=device)
    outputs = _Towers(student.eval())(image_BCHW, loaded.tokenizer(["a"]).long().to(device))
    trained = [output.sum() for output in outputs if output is not None and output.requires_grad]
    if trained:
        torch.stack(trained).sum().backward()
    student.train(training)
    unreached = {n: p for n, p in student.named_parameters() if p.requires_grad and p.grad is None}
    student.zero_grad(set_to_none=True)
    for parameter in unreached.values():
        parameter.requires_grad_(False)
    return list(unreached)


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """A micro-batch: rows that pass through the towers at once."""

    images_BCHW: Tensor
    text: PackedText | Tensor
    """Captions, then the negatives of each."""
    mask_BK: Tensor

    def rows(self, txt_XD: Tensor) -> tuple[Tensor, Tensor]:
        """Split text features into txt_BD and neg_BKD."""
        B, K = self.mask_BK.shape
        return txt_XD[:B], txt_XD[B:].reshape(B, K, txt_XD.shape[1])


class Gradients:
    """Gradient computation for one worker.

    Attributes:
        state: the objective's state, carried from step to step.
    """

    def __init__(
        self, student: nn.Module, teacher: Teacher | None, config: TrainConfig, preprocess: dict[str, Any]
    ) -> None:
        """`student`: the open_clip model on its device; `preprocess`: open_clip's, for mean and std."""
        self.config, self.teacher = config, teacher
        self.state: State = {}
        self.device = next(student.parameters()).device
        towers = _Towers(student)
        self._towers: nn.Module = towers
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            on_gpu = self.device.type == "cuda"
            self._towers = DistributedDataParallel(
                towers,
                device_ids=[self.device] if on_gpu else None,
                broadcast_buffers=False,  # open_clip's towers have constant buffers only
                gradient_as_bucket_view=True,
            )
        mean, std = (torch.tensor(preprocess[k], device=self.device) for k in ("mean", "std"))
        self._mean_C11, self._std_C11 = mean[:, None, None] * 255.0, std[:, None, None] * 255.0

    def compute(self, batch: LocalBatch, scaler: torch.amp.GradScaler, seed: int) -> dict[str, Tensor]:
        """Accumulate the gradients of a step in the student's parameters.

        Args:
            batch: this worker's rows.
            scaler: scales the loss before the backward pass.
            seed: seed of torch's generators, so that both passes of a micro-batch have the same dropout.

        Returns:
            The objective's terms over this worker's rows, and `logit_scale`, detached.
        """
        pieces = self._pieces(batch)
        compute = self._whole if len(pieces) == 1 else self._in_pieces
        terms, features, scale = compute(pieces, scaler, seed)
        self.state = next_state(features, scale, self.config.objective)
        return {name: value.detach() for name, value in {**terms, "logit_scale": scale.float()}.items()}

    def _whole(
        self, pieces: list[_Piece], scaler: torch.amp.GradScaler, seed: int
    ) -> tuple[dict[str, Tensor], Features, Tensor]:
        student, taught, scale, bias = self._forward(self._towers, pieces[0], seed)
        features = Features(**student, neg_mask_BK=pieces[0].mask_BK, **taught)
        terms = self._losses(features, scale, bias)
        scaler.scale(terms["loss"]).backward()
        return terms, features, scale.detach().reshape(())

    def _in_pieces(
        self, pieces: list[_Piece], scaler: torch.amp.GradScaler, seed: int
    ) -> tuple[dict[str, Tensor], Features, Tensor]:
        plain = getattr(self._towers, "module", self._towers)
        with torch.no_grad():
            seen = [self._forward(plain, piece, seed + i) for i, piece in enumerate(pieces)]
        leaves = {name: torch.cat([s[0][name] for s in seen]).requires_grad_() for name in seen[0][0]}
        taught = {name: torch.cat([s[1][name] for s in seen]) for name in seen[0][1]}
        _, _, scale, bias = seen[0]
        scalars = [x.detach().requires_grad_() for x in (scale, bias) if x is not None]
        features = Features(**leaves, neg_mask_BK=torch.cat([p.mask_BK for p in pieces]), **taught)
        terms = self._losses(features, scalars[0], scalars[1] if bias is not None else None)
        scaler.scale(terms["loss"]).backward()

        first = 0
        for i, piece in enumerate(pieces):
            own = slice(first, first := first + len(piece.mask_BK))
            last = i == len(pieces) - 1
            # Gradients are averaged over the workers only once, with the last micro-batch.
            quiet = not last and isinstance(self._towers, DistributedDataParallel)
            with self._towers.no_sync() if quiet else nullcontext():  # type: ignore[operator]
                student, _, *found = self._forward(self._towers, piece, seed + i, teach=False)
                tensors = [student[name] for name in leaves]
                gradients = [_gradient(leaf)[own] for leaf in leaves.values()]
                if last:
                    tensors += [scalar for scalar in found if scalar is not None]
                    gradients += [_gradient(leaf) for leaf in scalars]
                trained = [t.requires_grad for t in tensors]  # a tower may be frozen
                torch.autograd.backward(list(compress(tensors, trained)), list(compress(gradients, trained)))
        return terms, features, scale.detach().reshape(())

    def _losses(self, features: Features, scale: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
        return losses(features, scale, self.config.objective, logit_bias=bias, state=self.state)

    def _forward(
        self, towers: nn.Module, piece: _Piece, seed: int, teach: bool = True
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor, Tensor | None]:
        """Return the student's features, the teacher's features, logit_scale and logit_bias."""
        torch.manual_seed(seed)
        dtype = _AUTOCAST.get(self.config.precision)
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            img_BD, txt_XD, scale, bias = towers(piece.images_BCHW, piece.text)
            taught: dict[str, Tensor] = {}
            if teach and self.teacher is not None:
                teacher_img_BD, teacher_txt_XD = self.teacher.encode(piece.images_BCHW, piece.text)
                teacher_txt_BD, teacher_neg_BKD = piece.rows(teacher_txt_XD)
                taught = {
                    "teacher_img_BD": teacher_img_BD,
                    "teacher_txt_BD": teacher_txt_BD,
                    "teacher_neg_BKD": teacher_neg_BKD,
                }
        txt_BD, neg_BKD = piece.rows(txt_XD)
        return {"img_BD": img_BD, "txt_BD": txt_BD, "neg_BKD": neg_BKD}, taught, scale, bias

    def _pieces(self, batch: LocalBatch) -> list[_Piece]:
        count = len(batch.texts)
        parts = zip(batch.images_BHWC.chunk(count), batch.texts, batch.mask_BK.chunk(count), strict=True)
        return [
            _Piece(
                images_BCHW=(images_BHWC.permute(0, 3, 1, 2).float() - self._mean_C11) / self._std_C11,
                text=text,
                mask_BK=mask_BK,
            )
            for images_BHWC, text, mask_BK in parts
        ]


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
