"""Checkpoints: everything a run needs to resume, written completely or not at all, without pickle.

    checkpoint_000000120/
      student.safetensors  teacher.safetensors  optimizer.safetensors   (`exp_avg/<parameter>` ...)
      state.json           step, optimizer_steps, samples, scaler, objective, order, config, versions, ...
      trace.jsonl          one line per step so far
      complete.json        written last: each file's size and CRC-32

A folder without `complete.json`, or whose files have other sizes than recorded there, is not a checkpoint:
a killed run leaves such folders, and so does Ray's deletion of an old one. A listing of the run's folder is
therefore reliable. It also finds checkpoints that Ray Train was killed before recording.
The state is copied into the host's memory and written while training continues. Trade-off: that takes a
checkpoint's size in memory (2.4 GB for ViT-B/32), and its largest file once more (1.2 GB).
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import zlib
from dataclasses import dataclass
from typing import Any

import pyarrow.fs as pafs
import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn

from degla_ray.errors import DataError
from degla_ray.storage import DiskRefuses, Storage
from degla_ray.training import trace
from degla_ray.training.job import TRACE
from degla_ray.training.state import TrainState
from degla_ray.training.workers import Workers

STUDENT, TEACHER, OPTIMIZER = "student.safetensors", "teacher.safetensors", "optimizer.safetensors"
STATE, COMPLETE = "state.json", "complete.json"
RAY_SNAPSHOT = "checkpoint_manager_snapshot.json"
_FOLDER = re.compile(r"checkpoint_(\d{9})")
log = logging.getLogger(__name__)


def folder_name(step: int) -> str:
    """Return the name of the checkpoint after `step` steps."""
    return f"checkpoint_{step:09d}"


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


def complete(run: Storage) -> dict[int, str]:
    """Return the complete checkpoints of a run as {step: folder}, ascending."""
    return {step: name for step, name in _received(run).items() if _damaged(run, name, read=False) is None}


def latest(run: Storage) -> int:
    """Return the step of the latest checkpoint whose checksums match; 0 if there is no checkpoint yet.

    A warning names each later, damaged checkpoint; the run resumes from the one before it.

    Raises:
        DataError: all existing checkpoints are damaged.
    """
    damaged = None
    for step, name in reversed(_received(run).items()):
        damaged = _damaged(run, name)
        if damaged is None:
            return step
        log.warning("%s: the checksum does not match; looking for an earlier checkpoint", damaged)
    if damaged is not None:
        raise DataError(
            damaged,
            "a checksum that does not match, and no earlier intact checkpoint",
            "the file from a backup; to start over, use another name or delete the run's folder",
        )
    return 0


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


def tidy(run: Storage) -> int | None:
    """Clean up a run's folder so that it can resume after a kill; return the step of its latest checkpoint.

    Deletes incomplete checkpoints, damaged ones later than the one to resume from, and complete ones that
    Ray Train's record does not name (except the latest). Also deletes that record if it is broken or names
    a missing checkpoint: Ray writes it in place, and refuses to start from such a record.
    """
    step = latest(run)
    whole = {s: name for s, name in complete(run).items() if s <= step}
    names = set(whole.values())
    recorded = _recorded(run)
    if recorded is not None and not recorded <= names:
        log.warning("%s: Ray Train's record does not match the checkpoints; it is rewritten", run.uri)
        recorded = None
    if recorded is None and run.exists(RAY_SNAPSHOT):
        run.delete_file(RAY_SNAPSHOT)
    keep = (recorded or set()) | ({whole[max(whole)]} if whole else set())
    for name in _folders(run):
        if _FOLDER.fullmatch(name) and name not in keep:
            run.delete_folder(name)
    return max(whole) if whole else None


def _folders(run: Storage) -> list[str]:
    selector = pafs.FileSelector(run.path(), allow_not_found=True)
    return [i.base_name for i in run.filesystem.get_file_info(selector) if i.type == pafs.FileType.Directory]


def _size(run: Storage, *parts: str) -> int | None:
    return run.filesystem.get_file_info(run.path(*parts)).size


def _received(run: Storage) -> dict[int, str]:
    """Return the checkpoints that have a `complete.json` as {step: folder}, ascending."""
    names = [name for name in _folders(run) if _FOLDER.fullmatch(name) and run.exists(name, COMPLETE)]
    return {int(name.rpartition("_")[2]): name for name in sorted(names)}


def _damaged(run: Storage, name: str, read: bool = True) -> str | None:
    """Return the path of the first damaged file of a finished checkpoint; None if all are intact.

    Args:
        run: the run's folder.
        name: name of the checkpoint.
        read: whether to read the files and compare checksums too, not only sizes.
    """
    try:
        receipt = {f: (e["bytes"], e["crc32"]) for f, e in run.read_json(name, COMPLETE).items()}
    except (DataError, AttributeError, KeyError, TypeError, UnicodeDecodeError):
        return run.path(name, COMPLETE)
    for file, (size, crc32) in receipt.items():
        if _size(run, name, file) != size or (read and zlib.crc32(run.read_bytes(name, file)) != crc32):
            return run.path(name, file)
    return None


def _recorded(run: Storage) -> set[str] | None:
    """Return the names of the checkpoints in Ray Train's record; None if it cannot be read."""
    if not run.exists(RAY_SNAPSHOT):
        return set()
    try:
        record = run.read_json(RAY_SNAPSHOT)
        results = [*record["checkpoint_results"], record["latest_checkpoint_result"]]
        return {r["checkpoint_dir_name"] for r in results if r is not None}
    except (DataError, KeyError, TypeError, UnicodeDecodeError):
        return None


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
