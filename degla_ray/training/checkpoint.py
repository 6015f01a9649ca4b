"""A checkpoint is everything that a run needs to go on: written whole or not at all, nothing pickled.

    checkpoint_000000120/
      student.safetensors  teacher.safetensors  optimizer.safetensors   (`exp_avg/<parameter>` ...)
      state.json           step, samples, applied steps, scaler, order, RNG, config, versions, activation
      trace.jsonl          one line a step so far
      complete.json        written last: each file's size and CRC-32

A folder without `complete.json`, or whose files have other sizes, is not a checkpoint: a killed run leaves
such folders, and so does Ray's deletion of an old one. That is why looking through the run folder is
safe here, and finds also what Ray Train's own record missed because it was killed before it looked.
Trade-off: each file is made in memory before it is written (0.6 GB for ViT-B/32's weights).
"""

from __future__ import annotations

import json
import logging
import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow.fs as pafs
import safetensors.torch
import torch
from torch import Tensor, nn

from degla_ray.errors import DataError
from degla_ray.storage import Storage
from degla_ray.training.job import TRACE

if TYPE_CHECKING:
    from degla_ray.model.teacher import Teacher

STUDENT, TEACHER, OPTIMIZER = "student.safetensors", "teacher.safetensors", "optimizer.safetensors"
STATE, COMPLETE = "state.json", "complete.json"
RAY_SNAPSHOT = "checkpoint_manager_snapshot.json"
_FOLDER = re.compile(r"checkpoint_(\d{9})")
log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Parts:
    """What a checkpoint is made of and restored into.

    Attributes:
        student: the open_clip model itself, not a wrapper.
        teacher: none where the objective needs none.
        optimizer: over the student's parameters.
        scaler: of fp16; disabled otherwise.
    """

    student: nn.Module
    teacher: Teacher | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler


def folder_name(step: int) -> str:
    return f"checkpoint_{step:09d}"


def save(run: Storage, step: int, parts: Parts, state: dict[str, Any], trace: list[str]) -> str:
    """Writes the checkpoint after `step` steps into the run's folder; returns its name.

    Args:
        run: the run's folder.
        step: steps done.
        parts: what to save.
        state: JSON: everything else.
        trace: a line of JSON a step.
    """
    name = folder_name(step)
    _delete(run, name)  # what a killed run may have left
    files = {
        STUDENT: safetensors.torch.save(_stored(parts.student.state_dict())),
        OPTIMIZER: safetensors.torch.save(_stored(_flat_optimizer(parts.student, parts.optimizer))),
        STATE: json.dumps({**state, "step": step, "scaler": parts.scaler.state_dict()}, indent=2).encode(),
        TRACE: as_bytes(trace),
    }
    if parts.teacher is not None:
        files[TEACHER] = safetensors.torch.save(_stored(parts.teacher.state_dict()))
    for file, data in files.items():
        run.write_bytes(data, name, file)
    receipt = {file: {"bytes": len(data), "crc32": zlib.crc32(data)} for file, data in files.items()}
    run.write_json(receipt, name, COMPLETE)
    return name


def complete(run: Storage) -> dict[int, str]:
    """Steps done -> folder of every whole checkpoint of a run, ascending."""
    return {
        step: name for step, name in _received(run).items() if _damaged(run, name, bytes_too=False) is None
    }


def latest(run: Storage) -> int:
    """Return the steps of the latest checkpoint that holds the very bytes written; 0 where there is none yet.

    A later one that does not is named in a warning: the run goes on from the one before.

    Raises:
        DataError: there are checkpoints, and none is what was written.
    """
    damaged = None
    for step, name in reversed(_received(run).items()):
        damaged = _damaged(run, name)
        if damaged is None:
            return step
        log.warning("%s: other bytes than were written; looks for the checkpoint before", damaged)
    if damaged is not None:
        raise DataError(
            damaged,
            "other bytes than were written, and no earlier checkpoint that is whole",
            "the file from a backup; or another name, or none of this run's folder, to start anew",
        )
    return 0


def load(run: Storage, name: str, parts: Parts) -> tuple[dict[str, Any], list[str]]:
    """Restores `parts` in place; returns state.json and the trace.

    Raises:
        DataError: a file does not hold what was written.
    """
    receipt = run.read_json(name, COMPLETE)
    state = json.loads(_checked(run, name, STATE, receipt))
    load_student(run, name, parts.student)
    if parts.teacher is not None:
        parts.teacher.load_state_dict(safetensors.torch.load(_checked(run, name, TEACHER, receipt)))
    _restore_optimizer(
        parts.student, parts.optimizer, safetensors.torch.load(_checked(run, name, OPTIMIZER, receipt))
    )
    parts.scaler.load_state_dict(state["scaler"])
    return state, _checked(run, name, TRACE, receipt).decode().splitlines()


def load_student(run: Storage, name: str, student: nn.Module) -> None:
    """Restores the student's weights only; it has the adapters that the run's student has.

    Raises:
        DataError: the file does not hold what was written.
    """
    receipt = run.read_json(name, COMPLETE)
    student.load_state_dict(safetensors.torch.load(_checked(run, name, STUDENT, receipt)), strict=True)


def tidy(run: Storage) -> int | None:
    """Makes a run's folder fit to go on after a kill; returns the steps of its latest whole checkpoint.

    Deletes half-written and half-deleted checkpoints, later ones whose bytes changed, whole ones that nobody
    refers to but the latest, and Ray Train's record where it is broken or names a checkpoint that is gone
    (Ray writes it in place, and refuses to start from such a one).
    """
    step = latest(run)
    whole = {s: name for s, name in complete(run).items() if s <= step}
    names = set(whole.values())
    recorded = _recorded(run)
    if recorded is not None and not recorded <= names:
        log.warning("%s: Ray Train's record does not fit the checkpoints that are there; made anew", run.uri)
        recorded = None
    if recorded is None and run.exists(RAY_SNAPSHOT):
        run.delete_file(RAY_SNAPSHOT)
    keep = (recorded or set()) | ({whole[max(whole)]} if whole else set())
    for name in _folders(run):
        if _FOLDER.fullmatch(name) and name not in keep:
            _delete(run, name)
    return max(whole) if whole else None


def as_bytes(trace: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in trace).encode()


def _folders(run: Storage) -> list[str]:
    selector = pafs.FileSelector(run.path(), allow_not_found=True)
    return [i.base_name for i in run.filesystem.get_file_info(selector) if i.type == pafs.FileType.Directory]


def _size(run: Storage, *parts: str) -> int | None:
    return run.filesystem.get_file_info(run.path(*parts)).size


def _received(run: Storage) -> dict[int, str]:
    """Steps done -> folder of every checkpoint that was finished once, ascending."""
    names = [name for name in _folders(run) if _FOLDER.fullmatch(name) and run.exists(name, COMPLETE)]
    return {int(name.rpartition("_")[2]): name for name in sorted(names)}


def _damaged(run: Storage, name: str, bytes_too: bool = True) -> str | None:
    """The first file of a finished checkpoint that is not what was written; None where all are.

    Args:
        run: the run's folder.
        name: of the checkpoint.
        bytes_too: read the files; else their sizes are compared only.
    """
    try:
        receipt = {f: (e["bytes"], e["crc32"]) for f, e in run.read_json(name, COMPLETE).items()}
    except (DataError, AttributeError, KeyError, TypeError, UnicodeDecodeError):
        return run.path(name, COMPLETE)
    for file, (size, crc32) in receipt.items():
        if _size(run, name, file) != size or (bytes_too and zlib.crc32(run.read_bytes(name, file)) != crc32):
            return run.path(name, file)
    return None


def _delete(run: Storage, name: str) -> None:
    if run.exists(name):
        run.filesystem.delete_dir(run.path(name))


def _recorded(run: Storage) -> set[str] | None:
    """Names of the checkpoints that Ray Train's record holds; None where it cannot be read."""
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
        raise DataError(run.path(name), f"no {file}", "a checkpoint made with the same settings")
    data = run.read_bytes(name, file)
    if zlib.crc32(data) != receipt[file]["crc32"]:
        raise DataError(run.path(name, file), "other bytes than were written", "a whole file")
    return data


def _stored(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    # a copy each: safetensors refuses tensors that share memory
    return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}


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
    """Parameter names in the order in which the optimizer numbers them."""
    name = {id(parameter): name for name, parameter in student.named_parameters()}
    return [name[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
