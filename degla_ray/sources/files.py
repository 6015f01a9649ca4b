"""The files of a source that keeps pictures inside them (Parquet, tar), by name, folder or pattern.

Only the last part of a path may hold `*`, `?` or `[...]`; `{000..009}` may stand anywhere and names each
of the ten. On any filesystem that pyarrow opens.
"""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from degla_ray.errors import SettingError
from degla_ray.shards import Storage

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_WILD = re.compile(r"[*?\[]")


def find_files(patterns: Mapping[str, Sequence[str]], setting: str, suffix: str) -> dict[str, list[str]]:
    """URIs of each split's files: as the patterns stand, and sorted within one.

    Args:
        patterns: names, folders and patterns of each split.
        setting: what they are called on the command line.
        suffix: of the files that are taken from a folder, e.g. ".tar".

    Raises:
        SettingError: there are none, one is not there, or a file is named twice; names `setting`.
    """
    if not patterns:
        raise SettingError(setting, {}, f"files of each split, e.g. {{train: [train-*{suffix}]}}")
    found: dict[str, list[str]] = {}
    seen: set[str] = set()
    for split, names in patterns.items():
        found[split] = []
        for uri in (uri for name in names for uri in _find(name, f"{setting}.{split}", suffix)):
            if uri in seen:
                raise SettingError(f"{setting}.{split}", uri, "each file once")
            seen.add(uri)
            found[split].append(uri)
        if not found[split]:
            raise SettingError(f"{setting}.{split}", list(names), "at least one file")
    return found


def open_file(uri: str) -> pa.NativeFile:
    """A file for reading at any place.

    Raises:
        OSError: it cannot be opened.
    """
    folder, slash, name = uri.rpartition("/")
    storage = _folder(folder + slash)
    return storage.filesystem.open_input_file(storage.path(name))


@functools.lru_cache(maxsize=16)  # an S3 client takes longer to make than a picture to read
def _folder(uri: str) -> Storage:
    return Storage(uri)


def _find(name: str, setting: str, suffix: str) -> Iterator[str]:
    if match := _RANGE.search(name):
        first, last = int(match[1]), int(match[2])
        if first > last:
            raise SettingError(setting, name, "a range from the smaller to the larger number")
        for number in range(first, last + 1):
            digits = f"{number:0{len(match[1])}d}"
            yield from _find(f"{name[: match.start()]}{digits}{name[match.end() :]}", setting, suffix)
        return
    folder, slash, last_part = name.rpartition("/")
    if _WILD.search(folder):
        raise SettingError(setting, name, "a pattern in the last part of the path only")
    if _WILD.search(last_part):
        storage = Storage(folder + slash if slash else ".")
        below = [each for each in storage.names() if fnmatch.fnmatchcase(each, last_part)]
    else:
        storage = Storage(name)
        if storage.is_file():
            yield storage.uri
            return
        below = [each for each in storage.names_below() if each.lower().endswith(suffix)]
    if not below:
        raise SettingError(
            setting, name, f"an existing file, a folder of {suffix} files or a pattern of some"
        )
    for each in below:
        yield f"{storage.uri.rstrip('/')}/{each}"
