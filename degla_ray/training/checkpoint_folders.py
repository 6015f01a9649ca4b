"""The checkpoints in a run's folder: which there are, which are whole, and which a resumed run keeps.

A folder without `complete.json`, or whose files have other sizes than recorded there, is not a checkpoint:
a killed run leaves such folders, and so does Ray's deletion of an old one. A listing of the run's folder is
therefore reliable. It also finds checkpoints that Ray Train was killed before recording.
What they hold is read by checkpoint.py, which imports torch; a driver and Ray Train's controller do without
for four seconds less of a core.
"""

from __future__ import annotations

import logging
import re
import zlib

import pyarrow.fs as pafs

from degla_ray.errors import DataError
from degla_ray.storage import Storage

COMPLETE = "complete.json"
RAY_SNAPSHOT = "checkpoint_manager_snapshot.json"
_FOLDER = re.compile(r"checkpoint_(\d{9})")
log = logging.getLogger(__name__)


def folder_name(step: int) -> str:
    """Return the name of the checkpoint after `step` steps."""
    return f"checkpoint_{step:09d}"


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
