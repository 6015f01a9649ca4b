"""Checkpoints: everything a run needs to resume, written completely or not at all, without pickle.

    checkpoint_000000120/
      student.safetensors  teacher.safetensors  optimizer.safetensors   (`exp_avg/<parameter>` ...)
      state.json           step, optimizer_steps, samples, scaler, objective, order, config, versions, ...
      trace.jsonl          one line per step so far
      complete.json        written last: each file's size and CRC-32

checkpoint_folders.py lists them. The state is copied into the host's memory and written while training
continues. Trade-off: that takes a checkpoint's size in memory (2.4 GB for ViT-B/32), and its largest file
once more (1.2 GB).
"""

from __future__ import annotations

import contextlib
import json
import zlib
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn

from degla_ray.errors import DataError
from degla_ray.storage import DiskRefuses, Storage
from degla_ray.training import trace
from degla_ray.training.checkpoint_folders import COMPLETE, folder_name
from degla_ray.training.job import TRACE
from degla_ray.training.state import TrainState
from degla_ray.training.workers import Workers

STUDENT, TEACHER, OPTIMIZER = "student.safetensors", "teacher.safetensors", "optimizer.safetensors"
STATE = "state.json"


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A copy of a state in the host's memory, which training can no longer change.

    Attributes:
        step: steps so far.
        tensors: tensors of each safetensors file.
        texts: content of the other files.
    """

    step: int
    tensors: dict[str, dict[str, Tensor]]
    texts: dict[str, bytes]


def snapshot(state: TrainState, record: dict[str, Any]) -> Snapshot:
    """Copy a state, so that it can be written while training continues.

    Args:
        state: the state to save.
        record: JSON for `state.json` besides the state, such as the config.
    """
    tensors = {
        STUDENT: _copied(state.student.state_dict()),
        OPTIMIZER: _copied(_flat_optimizer(state.student, state.optimizer)),
    }
    if state.teacher is not None:
        tensors[TEACHER] = _copied(state.teacher.state_dict())
    if next(state.student.parameters()).is_cuda:
        torch.cuda.synchronize()
    texts = {
        STATE: json.dumps({**record, **_scalars(state)}, indent=2).encode(),
        TRACE: trace.as_bytes(state.trace),
    }
    return Snapshot(step=state.step, tensors=tensors, texts=texts)


def write(run: Storage, taken: Snapshot) -> str:
    """Write a snapshot into the run's folder as a checkpoint and return its name.

    Raises:
        DiskRefuses: the disk is full or read-only. What was written is deleted again.
    """
    name = folder_name(taken.step)
    run.delete_folder(name)  # what a killed run may have left
    try:
        _write_files(run, name, taken)
    except DiskRefuses:
        with contextlib.suppress(OSError):  # a read-only disk; `tidy` deletes it later
            run.delete_folder(name)
        raise
    return name


def _write_files(run: Storage, name: str, taken: Snapshot) -> None:
    receipt = {}
    for file in (*taken.tensors, *taken.texts):
        tensors = taken.tensors.get(file)
        data = taken.texts[file] if tensors is None else safetensors.torch.save(tensors)
        run.write_bytes(data, name, file)
        receipt[file] = {"bytes": len(data), "crc32": zlib.crc32(data)}
    run.write_json(receipt, name, COMPLETE)


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What a checkpoint holds.

    Attributes:
        record: content of state.json.
        tensors: tensors of each safetensors file.
        trace: lines of the trace.
    """

    record: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]
    trace: list[str]


def read(run: Storage, name: str) -> Saved:
    """Return what a checkpoint holds.

    Raises:
        DataError: a file is missing or its checksum does not match.
    """
    receipt = run.read_json(name, COMPLETE)
    files = [file for file in (STUDENT, OPTIMIZER, TEACHER) if file in receipt]
    return Saved(
        record=json.loads(_checked(run, name, STATE, receipt)),
        tensors={file: safetensors.torch.load(_checked(run, name, file, receipt)) for file in files},
        trace=_checked(run, name, TRACE, receipt).decode().splitlines(),
    )


def restore(state: TrainState, saved: Saved) -> None:
    """Restore `state` in place."""
    state.student.load_state_dict(saved.tensors[STUDENT], strict=True)
    if state.teacher is not None:
        state.teacher.load_state_dict(saved.tensors[TEACHER])
    _restore_optimizer(state.student, state.optimizer, saved.tensors[OPTIMIZER])
    state.trace = saved.trace
    state.step, state.optimizer_steps = saved.record["step"], saved.record["optimizer_steps"]
    state.scaler.load_state_dict(saved.record["scaler"])
    device = next(state.student.parameters()).device
    objective_state = saved.record["objective_state"]
    state.objective_state = {k: torch.tensor(v, device=device) for k, v in objective_state.items()}


def load(run: Storage, name: str, state: TrainState, workers: Workers) -> dict[str, Any]:
    """Restore `state` in place on every worker and return state.json; only worker 0 reads the files.

    The others get what it read from it, on their device, one tensor after the other.

    Raises:
        DataError: a file is missing or its checksum does not match.
    """
    saved = read(run, name) if workers.is_first else None
    if workers.world_size > 1:
        saved = _from_first(saved, workers)
    assert saved is not None
    restore(state, saved)
    return saved.record


def _from_first(saved: Saved | None, workers: Workers) -> Saved:
    """Return on every worker what worker 0 read."""
    shapes = saved and {
        file: {name: (t.shape, t.dtype) for name, t in tensors.items()}
        for file, tensors in saved.tensors.items()
    }
    content: list[Any] = [saved and (saved.record, saved.trace, shapes)]
    dist.broadcast_object_list(content, src=0, device=workers.device)
    record, lines, of_files = content[0]
    tensors: dict[str, dict[str, Tensor]] = {}
    for file, of_file in of_files.items():
        tensors[file] = {}
        for name, (shape, dtype) in of_file.items():
            own = saved.tensors[file][name] if saved else torch.empty(shape, dtype=dtype)
            tensors[file][name] = own.to(workers.device)
            dist.broadcast(tensors[file][name], src=0)
    return Saved(record=record, tensors=tensors, trace=lines)


def load_student(run: Storage, name: str, student: nn.Module) -> None:
    """Restore only the student's weights; `student` must have the same adapters as the run's student.

    Raises:
        DataError: the file is missing or its checksum does not match.
    """
    receipt = run.read_json(name, COMPLETE)
    student.load_state_dict(safetensors.torch.load(_checked(run, name, STUDENT, receipt)), strict=True)


def _checked(run: Storage, name: str, file: str, receipt: dict[str, Any]) -> bytes:
    if file not in receipt:
        raise DataError(run.path(name), f"no {file}", "a checkpoint of a run with the same settings")
    data = run.read_bytes(name, file)
    if zlib.crc32(data) != receipt[file]["crc32"]:
        raise DataError(run.path(name, file), "a checksum that does not match", "an intact file")
    return data


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return copies in the host's memory; from a GPU they arrive later, in the order of its stream."""
    return {name: _host_copy(tensor.detach()) for name, tensor in tensors.items()}


def _host_copy(tensor: Tensor) -> Tensor:
    if not tensor.is_cuda:
        return tensor.to("cpu", copy=True).contiguous()
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


def _scalars(state: TrainState) -> dict[str, Any]:
    return {
        "step": state.step,
        "optimizer_steps": state.optimizer_steps,
        "scaler": state.scaler.state_dict(),
        "objective_state": {name: value.tolist() for name, value in state.objective_state.items()},
    }


def _flat_optimizer(student: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names = _names(student, optimizer)
    return {
        f"{key}/{names[number]}": torch.as_tensor(value)
        for number, entries in optimizer.state_dict()["state"].items()
        for key, value in entries.items()
    }


def _restore_optimizer(student: nn.Module, optimizer: torch.optim.Optimizer, flat: dict[str, Tensor]) -> None:
    number = {name: i for i, name in enumerate(_names(student, optimizer))}
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in flat.items():
        kind, _, name = key.partition("/")
        state.setdefault(number[name], {})[kind] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _names(student: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Return the parameter names in the order in which the optimizer numbers them."""
    name = {id(parameter): name for name, parameter in student.named_parameters()}
    return [name[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
