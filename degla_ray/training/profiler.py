"""A torch profiler trace of some steps of worker 0, as `--profile.steps 10:15` asks for."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from torch.profiler import profile, supported_activities

from degla_ray.loader.loader import LocalBatch
from degla_ray.storage import Storage


def profiled(batches: Iterable[LocalBatch], steps: tuple[int, int], run: Storage) -> Iterator[LocalBatch]:
    """Yield the batches, and write a trace of what happens between them into the run's folder.

    Args:
        batches: batches of a run, in the order of their steps.
        steps: numbers of the first and the last step to profile, from 1.
        run: the run's folder.
    """
    running: profile | None = None
    for batch in batches:
        step = batch.step + 1
        if step == steps[0]:
            running = profile(activities=supported_activities())
            running.start()
        yield batch
        if running is not None and step == steps[1]:
            running.stop()  # waits for the device
            _write(running, run, file_name(steps))
            running = None


def file_name(steps: tuple[int, int]) -> str:
    """Return the name of the trace's file, for Perfetto or chrome://tracing."""
    return f"profile_steps_{steps[0]}-{steps[1]}.json.gz"


def _write(finished: profile, run: Storage, name: str) -> None:
    with tempfile.TemporaryDirectory(prefix="degla-ray-") as folder:
        finished.export_chrome_trace(f"{folder}/{name}")
        run.write_bytes(Path(folder, name).read_bytes(), name)
