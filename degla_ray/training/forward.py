"""The forward pass of a step: a worker's rows through the towers of student and teacher.

Shape suffixes: B own rows, K negatives, X = B (1 + K) texts, H W C pixels, D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from degla_ray.config import TrainComputeConfig
from degla_ray.loader.loader import LocalBatch
from degla_ray.model.encode import encode_image, encode_text
from degla_ray.model.loaded import LoadedModel
from degla_ray.model.packing import PackedText
from degla_ray.model.teacher import Teacher

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Rows that pass through the towers together.

    Attributes:
        images_BCHW: float32, normalised.
        text: captions, then the negatives of each; absent negatives are any text.
        mask_BK: bool; True for negatives that exist.
    """

    images_BCHW: Tensor
    text: PackedText | Tensor
    mask_BK: Tensor

    def split_texts(self, txt_XD: Tensor) -> tuple[Tensor, Tensor]:
        """Split text features into txt_BD and neg_BKD."""
        B, K = self.mask_BK.shape
        return txt_XD[:B], txt_XD[B:].reshape(B, K, txt_XD.shape[1])


class Normalise:
    """Conversion of a loader's batch, which is on the device, into micro-batches.

    Args:
        preprocess: open_clip's preprocess config, for mean and std.
        device: device of the model.
    """

    def __init__(self, preprocess: dict[str, Any], device: torch.device) -> None:
        mean, std = (torch.tensor(preprocess[k], device=device) for k in ("mean", "std"))
        self._mean_C11, self._std_C11 = mean[:, None, None] * 255.0, std[:, None, None] * 255.0

    def __call__(self, batch: LocalBatch) -> list[MicroBatch]:
        count = len(batch.texts)
        images, masks = batch.images_BHWC.tensor_split(count), batch.mask_BK.tensor_split(count)
        parts = zip(images, batch.texts, masks, strict=True)
        return [
            MicroBatch(images_BCHW=self._pixels(images_BHWC), text=text, mask_BK=mask_BK)
            for images_BHWC, text, mask_BK in parts
        ]

    def _pixels(self, images_BHWC: Tensor) -> Tensor:
        return (images_BHWC.permute(0, 3, 1, 2).float() - self._mean_C11) / self._std_C11


@dataclass(frozen=True, kw_only=True)
class StudentOutput:
    """The student's output for some rows.

    Attributes:
        features: `img_BD`, `txt_BD` and `neg_BKD`.
        scale: exp of logit_scale, a scalar.
        bias: logit_bias of a SigLIP-style model, a scalar; None for other models.
    """

    features: dict[str, Tensor]
    scale: Tensor
    bias: Tensor | None

    @property
    def scalars(self) -> list[Tensor]:
        return [self.scale] if self.bias is None else [self.scale, self.bias]


class Forward:
    """The forward pass of student and teacher under one autocast type.

    Attributes:
        towers: the student's towers; with several workers, wrapped in DistributedDataParallel.
    """

    def __init__(self, student: nn.Module, teacher: Teacher | None, config: TrainComputeConfig) -> None:
        self.device = next(student.parameters()).device
        self._teacher, self._dtype = teacher, _AUTOCAST.get(config.precision)
        self.towers: nn.Module = _Towers(student)
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            on_gpu = self.device.type == "cuda"
            self.towers = DistributedDataParallel(
                self.towers,
                device_ids=[self.device] if on_gpu else None,
                forward_sync_buffers=False,  # equal everywhere: BatchNorm keeps its statistics
                gradient_as_bucket_view=True,
            )
            if config.gradient_compression == "bf16":
                self.towers.register_comm_hook(None, bf16_compress_hook)

    def student(self, rows: MicroBatch, seed: int) -> StudentOutput:
        """Encode rows with the student; the same seed gives the same dropout."""
        return self._encode(self.towers, rows, seed)

    @torch.no_grad()
    def student_without_graph(self, rows: MicroBatch, seed: int) -> StudentOutput:
        """Encode rows with the student, without autograd or DistributedDataParallel."""
        return self._encode(getattr(self.towers, "module", self.towers), rows, seed)

    def teacher(self, rows: MicroBatch) -> dict[str, Tensor]:
        """Return the teacher's features under the names that `Features` gives them; {} without a teacher."""
        if self._teacher is None:
            return {}
        with self._autocast():
            img_BD, txt_XD = self._teacher.encode(rows.images_BCHW, rows.text)
        txt_BD, neg_BKD = rows.split_texts(txt_XD)
        return {"teacher_img_BD": img_BD, "teacher_txt_BD": txt_BD, "teacher_neg_BKD": neg_BKD}

    def _encode(self, towers: nn.Module, rows: MicroBatch, seed: int) -> StudentOutput:
        torch.manual_seed(seed)
        with self._autocast():
            img_BD, txt_XD, scale, bias = towers(rows.images_BCHW, rows.text)
        txt_BD, neg_BKD = rows.split_texts(txt_XD)
        features = {"img_BD": img_BD, "txt_BD": txt_BD, "neg_BKD": neg_BKD}
        return StudentOutput(features=features, scale=scale, bias=bias)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self._dtype, enabled=self._dtype is not None)


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
        # Cloned, because DistributedDataParallel returns tensors, not parameters.
        bias = None if bias is None else bias.clone()
        return encode_image(self.clip, images_BCHW), encode_text(self.clip, text), scale, bias
