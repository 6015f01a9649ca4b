"""The loader of one worker: batches in order, built by its decoders and copied to its device ahead of time.

Step s goes to decoder s mod n, at most `prefetch_batches` are in flight, and they are consumed in order; this
window is the back-pressure. A thread takes each batch from Ray's object store and copies it to the device,
one batch ahead of training: on a GPU through pinned memory and a stream of its own (torch's host allocator
keeps and reuses the pinned buffers), on a CPU without a copy.

Why not Ray Data: with one batch per block and the order preserved it yielded the same batches, but took 5 to
10 s to the first batch (here: 0.3 s plus the actors' imports) and 7 to 12 ms of the trainer's CPU time per
step (here: under 3 ms), and the pipelines of several workers compete for the cluster's CPUs.
"""

from __future__ import annotations

import queue
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.exceptions import GetTimeoutError
from torch import Tensor

from degla_ray.errors import DataError, without_ray_wrapper
from degla_ray.loader.decode import BatchSpec, HostBatch
from degla_ray.loader.decoders import DECODER_CPUS
from degla_ray.model.packing import PackedText

DEADLINE_S = 600.0
"""Seconds to wait for a batch before the run fails."""
_POLL_S = 1.0
# Arrays in Ray's object store are read-only; nothing writes to a batch.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


@dataclass(frozen=True, kw_only=True)
class LocalBatch:
    """A worker's share of a global batch, on its device.

    Attributes:
        step: number of the global batch.
        images_BHWC: uint8.
        texts: captions and negatives of each micro-batch: PackedText, or int64 tokens_XL padded to the
            context length for a tower that takes padded texts.
        mask_BK: bool; True for negatives that exist.
    """

    step: int
    images_BHWC: Tensor
    texts: tuple[PackedText | Tensor, ...]
    mask_BK: Tensor


def local_batch(step: int, host: HostBatch, device: torch.device) -> LocalBatch:
    """Return a batch on a device; on a GPU it arrives later, in the order of the current stream."""

    def moved(array: Any) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)

    return LocalBatch(
        step=step,
        images_BHWC=moved(host.images_BHWC),
        texts=tuple(t.map(moved) if isinstance(t, PackedText) else moved(t).long() for t in host.texts),
        mask_BK=moved(host.mask_BK),
    )


class Loader:
    """An iterable over the local batches of steps [first, last).

    Args:
        samples_ref: reference to the Samples.
        spec: everything else that determines the batches.
        first: first step.
        last: step before which to end.
        decoders: this worker's actors.
        prefetch: maximum batches in flight; raised to one per decoder.
        device: where the batches are wanted.

    Attributes:
        wait_s: seconds that the worker waited for batches, except the first.
        first_wait_s: seconds that the worker waited for the first batch.
    """

    def __init__(
        self,
        samples_ref: Any,
        spec: BatchSpec,
        *,
        first: int,
        last: int,
        decoders: list[Any],
        prefetch: int,
        device: torch.device | None = None,
    ) -> None:
        self._arguments = [samples_ref, ray.put(spec)]
        self._actors = decoders
        self._first, self._last = first, last
        self._window = max(len(decoders), prefetch)
        self._device = device or torch.device("cpu")
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self.wait_s = 0.0
        self.first_wait_s = 0.0

    def __iter__(self) -> Iterator[LocalBatch]:
        ready: queue.Queue[_Ready] = queue.Queue(maxsize=1)
        ended = threading.Event()
        thread = threading.Thread(target=self._fill, args=(ready, ended), name="loader", daemon=True)
        thread.start()
        try:
            for step in range(self._first, self._last):
                started = time.perf_counter()
                following = ready.get()
                waited = time.perf_counter() - started
                if step == self._first:
                    self.first_wait_s = waited
                else:
                    self.wait_s += waited
                if following.error is not None:
                    raise following.error
                assert following.batch is not None
                assert following.batch.step == step
                if following.copied is not None:
                    torch.cuda.current_stream(self._device).wait_event(following.copied)
                yield following.batch
        finally:
            ended.set()

    def _fill(self, ready: queue.Queue[_Ready], ended: threading.Event) -> None:
        try:
            for step, batch in self._host_batches():
                following = self._copied(step, batch)
                while not ended.is_set():
                    try:
                        ready.put(following, timeout=_POLL_S)
                        break
                    except queue.Full:
                        continue
                if ended.is_set():
                    return
        except BaseException as error:
            ready.put(_Ready(error=error))

    def _host_batches(self) -> Iterator[tuple[int, HostBatch]]:
        in_flight: deque[tuple[int, Any]] = deque()
        requested = self._first  # step after the last one requested
        for step in range(self._first, self._last):
            while requested < self._last and len(in_flight) < self._window:
                number = len(self._actors)
                actor = self._actors[requested % number]
                following = range(requested + number, self._last, number)
                in_flight.append((requested, actor.read.remote(self._arguments, requested, following)))
                requested += 1
            expected, reference = in_flight.popleft()
            assert expected == step
            yield step, self._wait_for(step, reference)

    def _copied(self, step: int, host: HostBatch) -> _Ready:
        if self._stream is None:
            return _Ready(batch=local_batch(step, host, self._device))
        with torch.cuda.stream(self._stream):
            batch = local_batch(step, host, self._device)
            copied = torch.cuda.Event()
            copied.record(self._stream)
        return _Ready(batch=batch, copied=copied)

    def _wait_for(self, step: int, reference: Any) -> HostBatch:
        try:
            with without_ray_wrapper():
                return ray.get(reference, timeout=DEADLINE_S)
        except GetTimeoutError as error:
            actor = self._actors[step % len(self._actors)]
            raise DataError(
                f"decoder {actor}",
                f"no batch {step} after {DEADLINE_S:.0f} s",
                f"a batch; perhaps the cluster has no free CPUs (each decoder needs {DECODER_CPUS:g})",
            ) from error


@dataclass(frozen=True, kw_only=True)
class _Ready:
    """A batch whose copy was started, or the error that ended the loader."""

    batch: LocalBatch | None = None
    copied: Any = None
    error: BaseException | None = None
