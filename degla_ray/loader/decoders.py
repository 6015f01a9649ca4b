"""The Ray actors that build a worker's batches, on its own node first.

An actor that dies is restarted and its batches are rebuilt, because a batch is a function of its step. A
decoder imports no torch, so it starts in a second. At 32 images of 224 pixels its own memory is about 80 MB,
more than half of it Ray and what Ray imports; pages of Ray's object store that it wrote come on top.
"""

from __future__ import annotations

import os
from typing import Any

import ray
from ray._private import state
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from degla_ray.loader.decode import BatchReader, HostBatch

DECODER_CPUS = 1.0
MOST = 32
"""Decoders of a worker that `decode_tasks: null` starts at most."""


class Decoder:
    """An actor around a BatchReader, created on the first call so that a restarted actor needs no setup."""

    def __init__(self) -> None:
        self._reader: BatchReader | None = None

    def read(self, samples_and_spec: list[Any], step: int, following: range) -> HostBatch:
        """Return the local batch of a step.

        Args:
            samples_and_spec: references to Samples and BatchSpec.
            step: number of the global batch.
            following: the steps that this decoder will be asked for next.
        """
        if self._reader is None:
            self._reader = BatchReader(*ray.get(samples_and_spec))
        return self._reader.read(step, following)


def start_decoders(count: int) -> list[Any]:
    """Start a worker's decoders: on its node, or elsewhere once that node's CPUs are taken."""
    here = ray.get_runtime_context().get_node_id()
    free = int(_cpus_of(here))
    actor = ray.remote(Decoder)
    options: dict[str, Any] = {"num_cpus": DECODER_CPUS, "max_restarts": -1, "max_task_retries": -1}
    beside = NodeAffinitySchedulingStrategy(here, soft=True)
    return [
        actor.options(**options, scheduling_strategy=beside if n < free else "SPREAD").remote()
        for n in range(count)
    ]


def number_of_decoders(setting: int | None, workers_on_node: int, cpus_per_worker: float) -> int:
    """Return the decoders of each worker: `setting`, or a share of the cores that its node has left."""
    if setting is not None:
        return setting
    cores = len(os.sched_getaffinity(0))
    left = cores - workers_on_node * cpus_per_worker
    return max(1, min(MOST, int(left // workers_on_node)))


def end_decoders(decoders: list[Any]) -> None:
    """End a worker's decoders."""
    for actor in decoders:
        ray.kill(actor)


def _cpus_of(node_id: str) -> float:
    """Return the logical CPUs of a node that nothing has reserved now."""
    available = state.available_resources_per_node().get(node_id, {})
    return float(available.get("CPU", 0.0))
