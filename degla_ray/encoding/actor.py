"""The actor that holds the model: pixels or tokens in, features out.

On a GPU, batches are copied to pinned memory and from there by a stream of their own, while the batch before
is computed: the actor runs two calls at a time. On a CPU the same code copies to plain memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from degla_ray.devices import Precision
from degla_ray.encoding.rows import row_of, with_array

if TYPE_CHECKING:
    import torch

    from degla_ray.model.loaded import LoadedModel

GPU_CALLS = 2
"""Batches in flight per GPU actor: one is copied while the other is computed."""


class Encoder:
    """Callable of the stage: a table of READ with pixels or tokens -> the same row with features.

    Args:
        loaded: Ray reference to the model.
        cpus: logical CPUs of the actor.
        precision: arithmetic of the towers.
    """

    def __init__(self, loaded: Any, cpus: float, precision: Precision) -> None:
        import ray
        import torch

        torch.set_num_threads(max(1, int(cpus)))
        model: LoadedModel = ray.get(loaded)
        self.towers = Towers(model, "cuda" if ray.get_gpu_ids() else "cpu", precision)

    def __call__(self, read: pa.Table) -> pa.Table:
        row, array = row_of(read)
        if not row["ids"]:
            return with_array(row, np.zeros((0, 0), dtype=np.float32))
        return with_array(row, self.towers.images(array) if row["source"] else self.towers.texts(array))


class Towers:
    """A model on a device.

    Args:
        loaded: the model; it moves to the device.
        device: `cpu` or `cuda`.
        precision: arithmetic of the towers.
    """

    def __init__(self, loaded: LoadedModel, device: str, precision: Precision) -> None:
        import torch

        self.device = torch.device(device)
        if self.device.type == "cuda" and precision != "fp32":
            torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in fp32
        self.model = loaded.model.to(self.device).eval()
        self._autocast = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        self._copies = torch.cuda.Stream() if self.device.type == "cuda" else None
        mean, std = (torch.tensor(loaded.preprocess_cfg[name]) for name in ("mean", "std"))
        self._mean_C11, self._std_C11 = (x[:, None, None].to(self.device) for x in (mean, std))

    def images(self, pixels_BHWC: np.ndarray) -> np.ndarray:
        """Return img_BD, float32 and L2-normalised, of uint8 pixels."""
        from degla_ray.model.encode import encode_image

        return self._encode(lambda: encode_image(self.model, self._normalised(self._on_device(pixels_BHWC))))

    def texts(self, tokens_BL: np.ndarray) -> np.ndarray:
        """Return txt_BD, float32 and L2-normalised, of int32 token ids."""
        import torch

        from degla_ray.model.encode import encode_text

        # A copy, because the array is not writable; on the CPU, where `encode_text` packs the tokens.
        return self._encode(lambda: encode_text(self.model, torch.tensor(tokens_BL)))

    def _encode(self, features: Callable[[], torch.Tensor]) -> np.ndarray:
        import torch

        autocast = torch.autocast(self.device.type, self._autocast, enabled=self._autocast is not None)
        with torch.inference_mode(), autocast:
            features_BD: np.ndarray = features().cpu().numpy()
        return features_BD

    def _normalised(self, pixels_BHWC: torch.Tensor) -> torch.Tensor:
        """Return images_BCHW in the order of operations of open_clip's transform, so with its rounding."""
        x_BCHW = pixels_BHWC.permute(0, 3, 1, 2).contiguous().float()
        return x_BCHW.div_(255).sub_(self._mean_C11).div_(self._std_C11)

    def _on_device(self, array: np.ndarray) -> torch.Tensor:
        """Copy an array that is not writable once, to memory that the device copies from on its own."""
        import torch

        on_gpu = self._copies is not None
        host = torch.empty(array.shape, dtype=getattr(torch, array.dtype.name), pin_memory=on_gpu)
        np.copyto(host.numpy(), array)
        if self._copies is None:
            return host
        with torch.cuda.stream(self._copies):
            copied = host.to(self.device, non_blocking=True)
        computing = torch.cuda.current_stream()
        computing.wait_stream(self._copies)
        copied.record_stream(computing)  # so that its memory is reused only after the computation
        return copied
