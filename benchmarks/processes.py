"""What processes of a loader use, and the earlier loader's measurement. Imports nothing of degla_ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psutil


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A loader with one decoding process and a trainer that takes no time.

    Attributes:
        per_core_s: images for each second that the decoding process computed.
        per_s: images per second of wall-clock time.
        private_mb: the decoding process's memory that it shares with no other, in MB, without the pages of
            shared memory in which it passes batches on.
    """

    per_core_s: float
    per_s: float
    private_mb: float


def measure(batches: Callable[[int], Iterator[Any]], batch: int, steps: int, warm_up: int = 1) -> Measured:
    """Measure a loader after its first batches.

    Args:
        batches: number of batches -> batches.
        batch: images per batch.
        steps: batches to measure.
        warm_up: batches before these.
    """
    before = _decoders()
    following = batches(warm_up + steps)
    for _ in range(warm_up):
        next(following)
    decoder = max(_decoders() - before, key=_computed_s)
    computed_s, started = _computed_s(decoder), time.perf_counter()
    for _ in range(steps - 1):
        next(following)
    private_mb = _private_mb(decoder.pid)
    next(following)
    wall_s = time.perf_counter() - started
    computed_s = _computed_s(decoder) - computed_s
    for _ in following:  # ends its processes
        pass
    images = batch * steps
    return Measured(per_core_s=images / computed_s, per_s=images / wall_s, private_mb=private_mb)


def _decoders() -> set[psutil.Process]:
    """Return the processes below this one that are Ray actors which decode, or forks of a DataLoader."""
    this = psutil.Process()
    forked = this.cmdline()
    found = ((process, process.cmdline()) for process in this.children(recursive=True))
    return {p for p, words in found if words and (words[0].startswith("ray::Decoder") or words == forked)}


def _computed_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _private_mb(pid: int) -> float:
    kib, shared = 0, False
    with open(f"/proc/{pid}/smaps") as file:
        for line in file:
            words = line.split()
            if not words[0].endswith(":"):
                shared = len(words) > 5 and words[5].startswith("/dev/shm/")
            elif words[0] in ("Private_Clean:", "Private_Dirty:") and not shared:
                kib += int(words[1])
    return kib * 1024 / 1e6
