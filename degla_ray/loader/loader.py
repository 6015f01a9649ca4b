"""The loader of one worker: batches in order, decoded outside the worker's process.

Each worker has `decode_tasks` Ray actors (on CPU nodes, if there are any), which build whole local batches.
Step s goes to actor s mod n, at most `prefetch_batches` are in flight, and they are consumed in order; this
window is the back-pressure. An actor that dies is restarted and its batches are rebuilt, because a batch is a
function of its step.

Why not Ray Data: with one batch per block and the order preserved it yielded the same batches, but took 5 to
10 s to the first batch (here: 0.3 s plus the actors' imports) and 7 to 12 ms of the trainer's CPU time per
step (here: under 3 ms), and the pipelines of several workers compete for the cluster's CPUs.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import GetTimeoutError, RayTaskError
from torch import Tensor

from degla_ray.config import ModelConfig
from degla_ray.errors import DataError, DeglaError
from degla_ray.loader.decode import BatchReader, BatchSpec
from degla_ray.loader.tokens import Compared, compare

DECODER_CPUS = 0.5
"""Logical CPUs of a decoder, which mostly waits for its trainer when training is the bottleneck."""
DEADLINE_S = 600.0
"""Seconds to wait for a batch before the run fails."""


@dataclass(frozen=True, kw_only=True)
class LocalBatch:
    """A worker's share of a global batch, on the CPU.

    Attributes:
        step: number of the global batch.
        images_BHWC: uint8.
        tokens_BL: int32.
        negatives_BKL: int32; zeros for missing negatives.
        mask_BK: bool; True for valid negatives.
    """

    step: int
    images_BHWC: Tensor
    tokens_BL: Tensor
    negatives_BKL: Tensor
    mask_BK: Tensor


class Decoder:
    """An actor around a BatchReader, created on the first call so that a restarted actor needs no setup."""

    def __init__(self) -> None:
        import open_clip  # noqa: F401  # for the tokenizer; takes seconds, meanwhile the workers start

        torch.set_num_threads(1)
        self._arguments: list[Any] | None = None
        self._reader: BatchReader | None = None
        self._tokenizer: Callable[..., Any] | None = None

    def read(self, samples_and_spec: list[Any], step: int) -> dict[str, NDArray[Any]]:
        """Return the local batch of a step; the first argument holds references to Samples and BatchSpec."""
        if self._reader is None or samples_and_spec != self._arguments:  # new after a restart of the workers
            self._arguments, self._reader = samples_and_spec, BatchReader(*ray.get(samples_and_spec))
        return self._reader.read(step)

    def compare(self, samples: list[Any], model: ModelConfig, first: int, last: int) -> Compared:
        """Compare the tokens of rows [first, last) with their negatives'; `samples` holds one reference."""
        from degla_ray.model.build import build_tokenizer

        if self._tokenizer is None:
            self._tokenizer = build_tokenizer(model)
        return compare(ray.get(samples[0]), self._tokenizer, first, last)


def start_decoders(num_workers: int, each: int) -> list[list[Any]]:
    """Start every worker's decoders from the driver: they are ready sooner and outlive a lost worker."""
    actor = ray.remote(Decoder).options(
        num_cpus=DECODER_CPUS, max_restarts=-1, max_task_retries=-1, scheduling_strategy="SPREAD"
    )
    return [[actor.remote() for _ in range(each)] for _ in range(num_workers)]


def end_decoders(decoders: list[list[Any]]) -> None:
    """End the decoders of all workers."""
    for of_worker in decoders:
        for actor in of_worker:
            ray.kill(actor)


class Loader:
    """An iterable over the local batches of steps [first, last).

    Args:
        samples_ref: reference to the Samples.
        spec: everything else that determines the batches.
        first: first step.
        last: step before which to end.
        decoders: this worker's actors.
        prefetch: maximum batches in flight; raised to one per decoder.

    Attributes:
        wait_s: seconds that the worker waited for batches, except the first.
        first_wait_s: seconds that the worker waited for the first batch.
    """

    def __init__(
        self, samples_ref: Any, spec: BatchSpec, *, first: int, last: int, decoders: list[Any], prefetch: int
    ) -> None:
        self._arguments = [samples_ref, ray.put(spec)]
        self._actors = decoders
        self._first, self._last = first, last
        self._window = max(len(decoders), prefetch)
        self.wait_s = 0.0
        self.first_wait_s = 0.0

    def __iter__(self) -> Iterator[LocalBatch]:
        in_flight: deque[tuple[int, Any]] = deque()
        requested = self._first  # step after the last one requested
        for step in range(self._first, self._last):
            while requested < self._last and len(in_flight) < self._window:
                actor = self._actors[requested % len(self._actors)]
                in_flight.append((requested, actor.read.remote(self._arguments, requested)))
                requested += 1
            expected, reference = in_flight.popleft()
            assert expected == step
            started = time.perf_counter()
            arrays = self._wait_for(step, reference)
            waited = time.perf_counter() - started
            if step == self._first:
                self.first_wait_s = waited
            else:
                self.wait_s += waited
            # Copied, because arrays in Ray's object store are read-only.
            tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
            yield LocalBatch(
                step=step,
                images_BHWC=tensors["images"],
                tokens_BL=tensors["tokens"],
                negatives_BKL=tensors["negatives"],
                mask_BK=tensors["mask"],
            )

    def _wait_for(self, step: int, reference: Any) -> dict[str, Any]:
        try:
            return ray.get(reference, timeout=DEADLINE_S)
        except GetTimeoutError as error:
            actor = self._actors[step % len(self._actors)]
            raise DataError(
                f"decoder {actor}",
                f"no batch {step} after {DEADLINE_S:.0f} s",
                f"a batch; perhaps the cluster has no free CPUs (each decoder needs {DECODER_CPUS})",
            ) from error
        except RayTaskError as error:
            if isinstance(error.cause, DeglaError):
                raise error.cause from error
            raise
