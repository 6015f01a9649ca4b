#!/usr/bin/env python
"""Measure what a checkpoint every 50 steps costs training, with a store that answers after 40 ms.

    python -m benchmarks.checkpoint_cost

Two runs from the same weights take turns of 50 steps of DeGLA with flickr-small (245 MB of state). One saves
a checkpoint with the trainer's own hook at the beginning of each turn. The time that it takes longer than the
other is lost: to copy the state, to share the cores with the thread that writes and with the store, and to
wait for that thread if it outlasts the turn. Without a GPU this is an upper bound: writing competes for the
cores on which the model is computed.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.slow_store import slow_store
from degla_ray.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from degla_ray.loader.decode import HostBatch, tower_input
from degla_ray.loader.loader import LocalBatch, local_batch
from degla_ray.loader.order import BatchOrder
from degla_ray.loader.samples import Texts
from degla_ray.model import LoadedModel, Teacher
from degla_ray.model.build import build
from degla_ray.model.packing import TextEnd
from degla_ray.storage import Storage
from degla_ray.training.hooks import Checkpoint
from degla_ray.training.interval import LogInterval
from degla_ray.training.job import Job
from degla_ray.training.optimizer import build_optimizer
from degla_ray.training.sanity import Candidates
from degla_ray.training.speed import Speed
from degla_ray.training.state import TrainState
from degla_ray.training.step import TrainStep
from degla_ray.training.usage import Usage
from degla_ray.training.workers import Workers

MODEL, BATCH, K, EVERY, DELAY_S = "flickr-small", 32, 4, 50, 0.04
SAVE = LogInterval(
    rows=[],
    speed=Speed(step_s=1.0, training_share=1.0),
    wait_share=0.0,
    wait_s=0.0,
    first_wait_s=0.0,
    usage=Usage(phase_ms={}, tokens_per_s=0.0, mfu=None),
    save=True,
    stop=False,
    leave=False,
    written=0,
    report=False,
)


@dataclass
class Turns:
    """A run and what it has done so far.

    Attributes:
        step: its training step.
        save: the hook that saves; None for the run without checkpoints.
        losses: loss of each step.
        seconds: seconds of each turn.
    """

    step: TrainStep
    save: Checkpoint | None
    losses: list[float]
    seconds: list[float]

    def take(self, batch: LocalBatch) -> None:
        started = time.perf_counter()
        if self.save is not None:
            self.save.after_step(self.step.state, SAVE)
        terms = [self.step(batch, seed=n)["loss"] for n in range(EVERY)]
        if self.save is not None:
            self.save.wait()
        self.losses += map(float, terms)
        self.seconds.append(time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--turns", type=int, default=6, help="turns of each run (default: %(default)s)")
    options = parser.parse_args()
    torch.manual_seed(0)
    loaded, batch = build(ModelConfig(name=MODEL, random_init=True)), _batch()
    with slow_store() as store:
        store.delay(DELAY_S)
        job = _job(f"{store.uri}/run", EVERY * (options.turns + 1))
        save = Checkpoint(
            Workers(rank=0, world_size=1, device=torch.device("cpu")), Storage(job.run_folder), job, None
        )
        saving, plain = _run(loaded, job, save), _run(loaded, job, None)
        for turn in range(options.turns + 1):
            for run in (saving, plain) if turn % 2 else (plain, saving):
                run.take(batch)
    if saving.losses != plain.losses:
        raise SystemExit("the losses differ")
    lost = [1 - b / a for a, b in zip(saving.seconds[1:], plain.seconds[1:], strict=True)]
    each_s = statistics.median(plain.seconds)
    print(f"the {len(plain.losses)} losses are equal; {EVERY} steps take {each_s:.1f} s without a checkpoint")
    turns = ", ".join(f"{share:.1%}" for share in lost)
    print(f"lost at checkpoints: {statistics.median(lost):.1%} of the time (turns: {turns})")


def _run(loaded: LoadedModel, job: Job, save: Checkpoint | None) -> Turns:
    student = copy.deepcopy(loaded.model).train()
    state = TrainState(
        student=student,
        teacher=Teacher(student, job.config.teacher),
        optimizer=build_optimizer(student, job.config.optimizer, device=torch.device("cpu")),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
    )
    step = TrainStep(state, job.config, loaded.preprocess_cfg, job.total_steps)
    return Turns(step=step, save=save, losses=[], seconds=[])


def _job(run_folder: str, steps: int) -> Job:
    config = TrainConfig(
        name="benchmark",
        data=DataConfig(prepared="", negatives=""),
        model=ModelConfig(name=MODEL, random_init=True),
        optimizer=OptimizerConfig(lr=1e-6, warmup_steps=0),
        global_batch_size=BATCH,
    )
    return Job(
        config=config,
        fingerprint="",
        run_folder=run_folder,
        samples=None,
        order=BatchOrder(seed=0, num_rows=BATCH, batch_size=BATCH),
        total_steps=steps,
        versions={},
        candidates=Candidates(images=BATCH, texts=BATCH * (1 + K)),
        short_side=112,
        data="",
    )


def _batch() -> LocalBatch:
    rng = np.random.default_rng(0)
    tokens = np.zeros((BATCH * (1 + K), 77), np.int32)
    tokens[:, :14] = rng.integers(1, 49000, (len(tokens), 14))
    tokens[:, 13] = 49407
    mask_BK = np.ones((BATCH, K), bool)
    images = rng.integers(0, 256, (BATCH, 112, 112, 3), dtype=np.uint8)
    text = tower_input(Texts.of(tokens, padding=0), mask_BK, TextEnd(token=None))
    return local_batch(0, HostBatch(images_BHWC=images, texts=(text,), mask_BK=mask_BK), torch.device("cpu"))


if __name__ == "__main__":
    main()
