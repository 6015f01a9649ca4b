"""Extract what a downloaded file contains: an archive's members, or a list from a source file.

A folder is unpacked next to its destination and renamed once complete. Unpacking needs additional disk space
for all members, because the archive is deleted only afterwards. Only plain files are unpacked, and at most
MAX_RATIO times the archive's size: images shrink by a few percent, annotations to a tenth, a bomb to a
thousandth.
"""

from __future__ import annotations

import ast
import json
import lzma
import os
import re
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Literal, TypeVar

from degla_ray.errors import DataError

T = TypeVar("T")

CHUNK = 1 << 20  # bytes
MAX_RATIO = 100
"""Bytes that an archive may unpack to, as a multiple of its own."""
_HEADER = 512
"""Bytes counted for each member besides its content, so that empty ones count too."""


def unpack_archive(archive: Path, kind: Literal["zip", "tar"], target: Path, strip: str) -> None:
    """Unpack the members below the folder `strip` of an archive into the folder `target`.

    Raises:
        DataError: another or a broken format, a member that would be written outside `target`, more than
            MAX_RATIO times the archive's bytes, or no member below `strip`.
    """
    unpacking = target.with_name(f"{target.name}.unpacking")
    shutil.rmtree(unpacking, ignore_errors=True)
    unpacking.mkdir(parents=True)
    try:
        count = (
            _unpack_zip(archive, unpacking, strip)
            if kind == "zip"
            else _unpack_tar(archive, unpacking, strip)
        )
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError) as error:
        raise DataError(str(archive), str(error), f"a {kind} archive with members inside it") from error
    if not count:
        raise DataError(str(archive), f"no file below {strip!r}", "another `strip`, or another archive")
    os.replace(unpacking, target)


def _unpack_zip(archive: Path, folder: Path, strip: str) -> int:
    with zipfile.ZipFile(archive) as opened:
        listed = _bounded(archive, opened.infolist(), lambda member: member.file_size)
        members = [(member, _inner(archive, member.filename, strip)) for member in listed]
        files = [(member, inner) for member, inner in members if inner and not member.is_dir()]
        for member, inner in files:
            path = folder / inner
            path.parent.mkdir(parents=True, exist_ok=True)
            with opened.open(member) as source, path.open("wb") as file:
                shutil.copyfileobj(source, file, CHUNK)
    return len(files)


def _unpack_tar(archive: Path, folder: Path, strip: str) -> int:
    with tarfile.open(archive) as opened:
        listed = _bounded(archive, opened, lambda member: member.size)
        members = [(member, _inner(archive, member.name, strip)) for member in listed]
        files = [member.replace(name=inner) for member, inner in members if inner and member.isfile()]
        opened.extractall(folder, files, filter="data")
    return len(files)


def _bounded(archive: Path, members: Iterable[T], size: Callable[[T], int]) -> list[T]:
    """Return an archive's members, of which the reader unpacks no more bytes than they state.

    Raises:
        DataError: they state more than MAX_RATIO times the archive's bytes; none is unpacked.
    """
    bound, total = MAX_RATIO * archive.stat().st_size, 0
    found = []
    for member in members:
        total += size(member) + _HEADER
        if total > bound:
            expected = f"at most {bound} bytes, {MAX_RATIO} times the archive's own"
            raise DataError(str(archive), f"members of {total} bytes or more", expected)
        found.append(member)
    return found


def _inner(archive: Path, name: str, strip: str) -> str:
    """Return a member's path relative to `strip`; an empty string if it is not below `strip`."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or re.match("[A-Za-z]:", name):
        raise DataError(str(archive), f"the member {name!r}", "members inside the archive's own folder")
    return str(path.relative_to(strip)) if path.is_relative_to(strip) and path != PurePosixPath(strip) else ""


def python_list(source: Path, variable: str) -> list[object]:
    """Return the list that a Python file or notebook assigns to `variable`; the code is parsed, not run.

    Raises:
        DataError: no such list.
    """
    for part in _code(source):
        try:
            tree = ast.parse(part)
        except SyntaxError:
            continue  # a notebook cell with a shell command
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and any(
                isinstance(name, ast.Name) and name.id == variable for name in node.targets
            ):
                try:
                    value = ast.literal_eval(node.value)
                except ValueError:
                    continue
                if isinstance(value, list):
                    return value
    raise DataError(str(source), f"no list `{variable}`", f"`{variable} = [...]` with values written out")


def _code(source: Path) -> list[str]:
    """Return the text of a Python file, or of each code cell of a notebook."""
    try:
        text = source.read_text(encoding="utf-8")
        if not text.lstrip().startswith("{"):
            return [text]
        return ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(str(source), error, "a Python file or a Jupyter notebook") from error
