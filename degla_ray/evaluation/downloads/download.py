"""Download one file over HTTP: resume after interruptions, verify, and rename it into place once complete.

A broken connection loses only the bytes in transit. A later run resumes the download if the server confirms
that the file is unchanged. The price is that the whole file is read once more for its checksum (a minute for
13 GB).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import MaxRetryError, ProtocolError
from urllib3.util import Retry

from degla_ray.errors import DataError

CHUNK = 1 << 16  # bytes; the most that a broken connection loses
TIMEOUT = (10, 60)  # seconds to connect, and to wait for a byte
RETRY = Retry(total=6, backoff_factor=1, status_forcelist=(429, 500, 502, 503, 504))  # pauses 0, 2, 4 ... s

MAX_BYTES = 64 * 2**30
"""Bytes of a download whose size neither catalogue nor server states; the largest known has 13.5e9."""

OnBytes = Callable[[int, int | None], None]
"""Called with the number of bytes received and the total, or None if the total is unknown."""


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file to download.

    Attributes:
        url: its address.
        checksums: `sha256`, `md5` or `sha1` -> hexadecimal digest.
        size: bytes; None if unknown.
        room: disk space that it needs, including what is unpacked from it, as a multiple of its size.
    """

    url: str
    checksums: Mapping[str, str]
    size: int | None
    room: int


class _Broken(Exception):
    """The connection ended before the file was complete."""


def open_session() -> requests.Session:
    """Return a session that retries, with growing pauses, if a server is overloaded or unavailable."""
    session = requests.Session()
    session.headers["Accept-Encoding"] = "identity"  # so that ranges and sizes refer to the uncompressed file
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=RETRY))
    return session


def download(session: requests.Session, file: RemoteFile, target: Path, on_bytes: OnBytes) -> str:
    """Download a file to `target`, which exists only once it is complete and verified.

    Returns:
        The file's SHA-256.

    Raises:
        DataError: the server does not have the file or has a different one, or the disk is too full.
        requests.RequestException: the server cannot be reached.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    retries = RETRY
    while True:
        before = _length(part)
        try:
            _receive(session, file, part, on_bytes)
            break
        except _Broken as error:
            retries = RETRY if _length(part) > before else retries  # progress resets the retries
            try:
                retries = retries.increment("GET", file.url, error=ProtocolError(str(error)))
            except MaxRetryError:
                raise DataError(
                    file.url, f"broken connections ({error})", "the file; run again to resume"
                ) from error
            retries.sleep()
    try:
        sha256 = verify(part, file.checksums, file.size)
    except DataError:
        _discard(part)
        raise
    os.replace(part, target)
    _validator(part).unlink(missing_ok=True)
    return sha256


def verify(path: Path, expected: Mapping[str, str], size: int | None = None) -> str:
    """Return the SHA-256 of a file after checking its size and checksums.

    Raises:
        DataError: the size or a checksum is not the expected one.
    """
    if size is not None and _length(path) != size:
        raise DataError(str(path), f"{_length(path)} bytes", f"{size} bytes")
    digests = {kind: hashlib.new(kind) for kind in {"sha256", *expected}}
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            for digest in digests.values():
                digest.update(chunk)
    for kind, value in expected.items():
        if digests[kind].hexdigest() != value.lower():
            raise DataError(str(path), f"{kind} {digests[kind].hexdigest()}", f"{kind} {value}")
    return digests["sha256"].hexdigest()


def _receive(session: requests.Session, file: RemoteFile, part: Path, on_bytes: OnBytes) -> None:
    """Append the missing bytes to `part`, or all bytes if the server cannot resume."""
    url, size = file.url, file.size
    have = _length(part)
    headers = {}
    if have:
        headers["Range"] = f"bytes={have}-"
        if _validator(part).exists():
            headers["If-Range"] = _validator(part).read_text()
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        content_range = response.headers.get("Content-Range", "")
        if response.status_code == 416 and content_range == f"bytes */{have}":
            return  # an earlier run received the last byte but did not rename the file
        starts_at = re.match(rf"bytes {have}-\d+/", content_range)
        if response.status_code == 416 or (response.status_code == 206 and not starts_at):
            _discard(part)
            raise _Broken(f"the server cannot resume at byte {have}")
        if response.status_code not in (200, 206):
            raise DataError(url, f"HTTP {response.status_code} {response.reason}", "the file")
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise DataError(url, "a web page", "the file; the page may say what to do first")
        have = have if response.status_code == 206 else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else size
        if size is not None and total != size:
            raise DataError(url, f"{total} bytes", f"{size} bytes")
        free = shutil.disk_usage(part.parent).free
        if total is not None and free < (needed := file.room * total - have):
            raise DataError(str(part.parent), f"{free} bytes free", f"{needed} bytes for {url}")
        _remember_validator(part, response)
        with part.open("ab" if have else "wb") as output:
            on_bytes(have, total)
            try:
                for chunk in response.iter_content(CHUNK):
                    have += len(chunk)
                    if have > (most := MAX_BYTES if total is None else total):
                        _discard(part)
                        raise DataError(url, f"more than {most} bytes", f"at most {most}")
                    output.write(chunk)
                    on_bytes(have, total)
            except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
                raise _Broken(f"{have} of {total} bytes received") from error


def _validator(part: Path) -> Path:
    return part.with_name(f"{part.name}.validator")


def _remember_validator(part: Path, response: requests.Response) -> None:
    """Store the validator by which a later run checks that the server's file is still the same version."""
    etag = response.headers.get("ETag", "")
    strong = etag if etag.startswith('"') else ""  # a weak ETag does not guarantee identical bytes
    if validator := strong or response.headers.get("Last-Modified", ""):
        _validator(part).write_text(validator)
    else:
        _validator(part).unlink(missing_ok=True)


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _validator(part).unlink(missing_ok=True)
