"""Find the files of a source that stores images inside them (Parquet, tar), by name, folder or pattern.

Only the last part of a path may contain `*`, `?` or `[...]`; `{000..009}` may appear anywhere and expands to
ten names. An existing file or folder with the literal name takes precedence, so names may contain these
characters. Works on any filesystem that pyarrow opens.
"""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa

from degla_ray.errors import DataError, SettingError
from degla_ray.storage import Storage

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_NAMED = 3  # maximum number of files named in a message
_WILD = re.compile(r"[*?\[]")


class Found(NamedTuple):
    """URIs of each split's files, and of other files in the given folders, which are skipped."""

    files: dict[str, list[str]]
    others: list[str]


def find_files(patterns: Mapping[str, Sequence[str]], setting: str, suffix: str) -> Found:
    """Find each split's files, in the order of its patterns and sorted within each pattern.

    Args:
        patterns: names, folders and patterns of each split.
        setting: dotted name of the setting, for messages.
        suffix: suffix of the files taken from a folder, e.g. ".tar".

    Raises:
        SettingError: no files are given, a file does not exist, or a file is named twice; names `setting`.
    """
    if not patterns:
        raise SettingError(setting, {}, f"files of each split, e.g. {{train: [train-*{suffix}]}}")
    found: dict[str, list[str]] = {}
    others: list[str] = []
    seen: set[str] = set()
    for split, names in patterns.items():
        found[split] = []
        for uri in (uri for name in names for uri in _find(name, f"{setting}.{split}", suffix, others)):
            if uri in seen:
                raise SettingError(f"{setting}.{split}", uri, "each file once")
            seen.add(uri)
            found[split].append(uri)
        if not found[split]:
            raise SettingError(f"{setting}.{split}", list(names), "at least one file")
    return Found(files=found, others=sorted(set(others) - seen))


def open_file(uri: str) -> pa.NativeFile:
    """Open a file for random-access reading.

    Raises:
        OSError: it cannot be opened.
    """
    folder, slash, name = uri.rpartition("/")
    storage = _folder(folder + slash)
    return storage.filesystem.open_input_file(storage.path(name))


def some(names: Sequence[str]) -> str:
    """Return the first of `names` and the number of further ones, for a message."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(repr(name) for name in names[:_NAMED]) + more


@functools.lru_cache(maxsize=16)  # creating an S3 client takes longer than reading an image
def _folder(uri: str) -> Storage:
    return Storage(uri)


def _find(name: str, setting: str, suffix: str, others: list[str]) -> Iterator[str]:
    """Yield the files that one name matches; append the skipped files of a folder to `others`."""
    storage = _named(name)
    if storage is not None and storage.is_file():
        yield storage.uri
    elif storage is not None and storage.is_folder():
        below = [f"{storage.uri.rstrip('/')}/{each}" for each in storage.names_below()]
        taken = [uri for uri in below if uri.lower().endswith(suffix)]
        others += [uri for uri in below if not uri.lower().endswith(suffix)]
        if not taken:
            found = f"{name}, a folder of {len(below)} other files"
            raise SettingError(setting, found, f"a folder with {suffix} files in it")
        yield from taken
    elif match := _RANGE.search(name):
        first, last = int(match[1]), int(match[2])
        if first > last:
            raise SettingError(setting, name, "a range from the smaller to the larger number")
        for number in range(first, last + 1):
            digits = f"{number:0{len(match[1])}d}"
            each = f"{name[: match.start()]}{digits}{name[match.end() :]}"
            yield from _find(each, setting, suffix, others)
    else:
        yield from _matching(name, setting, suffix)


def _named(name: str) -> Storage | None:
    """Return the storage at this literal name, or None if the name can only be a pattern."""
    try:
        return Storage(name)
    except DataError:
        if _WILD.search(name):  # not allowed in a remote store's URI
            return None
        raise


def _matching(name: str, setting: str, suffix: str) -> Iterator[str]:
    folder, slash, last_part = name.rpartition("/")
    storage = _named(folder + slash if slash else ".")
    if storage is None or (_WILD.search(folder) and not storage.is_folder()):
        raise SettingError(setting, name, "a pattern in the last part of the path only")
    below = [each for each in storage.names() if fnmatch.fnmatchcase(each, last_part)]
    if not below or not _WILD.search(last_part):
        raise SettingError(
            setting, name, f"an existing file, a folder of {suffix} files or a pattern of some"
        )
    for each in below:
        yield f"{storage.uri.rstrip('/')}/{each}"
