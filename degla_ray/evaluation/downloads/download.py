"""One file over HTTP: resumed where it broke off, verified, and in its place only when it is whole.

A broken connection costs the bytes that were on the wire; a later run goes on where this one stopped, if the
server says that the file is still the same. The price: a whole file is read once more for its checksum
(a minute for 13 GB).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import MaxRetryError, ProtocolError
from urllib3.util import Retry

from degla_ray.errors import DataError

CHUNK = 1 << 16  # bytes; as many may be lost where a connection breaks
TIMEOUT = (10, 60)  # seconds to connect, and without a byte
RETRY = Retry(total=6, backoff_factor=1, status_forcelist=(429, 500, 502, 503, 504))  # pauses 0, 2, 4 ... s

OnBytes = Callable[[int, int | None], None]
"""Told the bytes that are there and, where it is known, how many there will be."""


class _Broken(Exception):
    """The connection ended before the file did."""


def open_session() -> requests.Session:
    """A session that asks again, after growing pauses, where a server cannot answer."""
    session = requests.Session()
    session.headers["Accept-Encoding"] = "identity"  # ranges and sizes are of the file, not of its gzip
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=RETRY))
    return session


def download(
    session: requests.Session,
    url: str,
    target: Path,
    on_bytes: OnBytes,
    *,
    expected: Mapping[str, str],
    size: int | None,
    room: int,
) -> str:
    """Fetches `url` to `target`, which is only there once it is whole and right.

    Args:
        expected: `sha256`, `md5` or `sha1` -> hexadecimal digest.
        size: in bytes, where it is known.
        room: how many times its size the file needs on the disk, with what is unpacked of it.

    Returns:
        The file's SHA-256.

    Raises:
        DataError: the server has no such file or another one, or the disk has no room for it.
        requests.RequestException: the server cannot be reached.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    retries = RETRY
    while True:
        before = _length(part)
        try:
            _receive(session, url, part, size=size, room=room, on_bytes=on_bytes)
            break
        except _Broken as error:
            retries = RETRY if _length(part) > before else retries  # a step ahead is a fresh start
            try:
                retries = retries.increment("GET", url, error=ProtocolError(str(error)))
            except MaxRetryError:
                raise DataError(
                    url, f"broken connections ({error})", "the file; run again to go on"
                ) from error
            retries.sleep()
    try:
        sha256 = verify(part, expected, size)
    except DataError:
        _discard(part)
        raise
    os.replace(part, target)
    _validator(part).unlink(missing_ok=True)
    return sha256


def verify(path: Path, expected: Mapping[str, str], size: int | None = None) -> str:
    """The SHA-256 of a file.

    Raises:
        DataError: its size or one of its checksums is not the expected one.
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


def _receive(
    session: requests.Session, url: str, part: Path, *, size: int | None, room: int, on_bytes: OnBytes
) -> None:
    have = _length(part)
    headers = {}
    if have:
        headers["Range"] = f"bytes={have}-"
        if _validator(part).exists():
            headers["If-Range"] = _validator(part).read_text()
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        content_range = response.headers.get("Content-Range", "")
        if response.status_code == 416 and content_range == f"bytes */{have}":
            return  # an earlier run ended between the last byte and the new name
        starts_at = re.match(rf"bytes {have}-\d+/", content_range)
        if response.status_code == 416 or (response.status_code == 206 and not starts_at):
            _discard(part)
            raise _Broken(f"the server cannot go on at byte {have}")
        if response.status_code not in (200, 206):
            raise DataError(url, f"HTTP {response.status_code} {response.reason}", "the file")
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise DataError(url, "a web page", "the file: the page may say what has to be done first")
        have = have if response.status_code == 206 else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else size
        if size is not None and total != size:
            raise DataError(url, f"{total} bytes", f"{size} bytes")
        free = shutil.disk_usage(part.parent).free
        if total is not None and free < (needed := room * total - have):
            raise DataError(str(part.parent), f"{free} bytes free", f"{needed} bytes for {url}")
        _remember_validator(part, response)
        with part.open("ab" if have else "wb") as file:
            on_bytes(have, total)
            try:
                for chunk in response.iter_content(CHUNK):
                    file.write(chunk)
                    have += len(chunk)
                    on_bytes(have, total)
            except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
                raise _Broken(f"{have} of {total} bytes came") from error


def _validator(part: Path) -> Path:
    return part.with_name(f"{part.name}.validator")


def _remember_validator(part: Path, response: requests.Response) -> None:
    """Keeps what tells a later run's server which version of the file the first bytes are of."""
    etag = response.headers.get("ETag", "")
    strong = etag if etag.startswith('"') else ""  # a weak one says nothing of bytes
    if validator := strong or response.headers.get("Last-Modified", ""):
        _validator(part).write_text(validator)
    else:
        _validator(part).unlink(missing_ok=True)


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _validator(part).unlink(missing_ok=True)
