"""The workers of a run as one of them sees them, and what they exchange besides gradients and features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor

StepTerms = dict[str, Tensor | float]
"""A worker's loss terms (tensors) and other values (numbers) of one step, by name."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """This worker among all workers.

    Attributes:
        rank: number of this worker, from 0.
        world_size: number of workers.
        device: device of this worker.
    """

    rank: int
    world_size: int
    device: torch.device

    @classmethod
    def current(cls) -> Self:
        """Return this process's place among the workers that Ray Train started."""
        context = ray.train.get_context()
        return cls(
            rank=context.get_world_rank(),
            world_size=context.get_world_size(),
            device=ray.train.torch.get_device(),
        )

    @property
    def is_first(self) -> bool:
        """Whether this is worker 0, which writes files and decides for all workers."""
        return self.rank == 0

    def broadcast(self, numbers: list[int]) -> list[int]:
        """Return worker 0's numbers on every worker."""
        if self.world_size == 1:
            return numbers
        tensor = torch.tensor(numbers, dtype=torch.int64, device=self.device)
        dist.broadcast(tensor, src=0)
        return tensor.tolist()

    def average(self, rows: list[StepTerms]) -> list[dict[str, float]]:
        """Return the rows as plain numbers, with every tensor averaged over the workers."""
        names = [name for name, value in rows[0].items() if isinstance(value, Tensor)]
        stacked = torch.stack([torch.stack([row[n] for n in names]) for row in rows]).double()  # type: ignore[misc]
        if self.world_size > 1:
            dist.all_reduce(stacked)
            stacked /= self.world_size
        return [
            {
                **dict(zip(names, values, strict=True)),
                **{k: float(v) for k, v in row.items() if k not in names},
            }
            for row, values in zip(rows, stacked.tolist(), strict=True)
        ]
