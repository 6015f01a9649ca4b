"""Access to a store over the network, such as `s3://`: a request that fails is tried again.

pyarrow's own client repeats a request for about two seconds. `retried` goes on for OUTAGE_S and says once
what it waits for. A user's mistake is raised at once. A store that never answered counts as a wrong address
after FIRST_ANSWER_S, except in a Ray worker, whose driver has reached it before.
"""

from __future__ import annotations

import io
import os
import random
import re
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from degla_ray.errors import DataError
from degla_ray.masking import masked

OUTAGE_S = 600.0
"""Seconds for which a store may fail before the job ends."""
FIRST_ANSWER_S = 8.0
"""Seconds that a store has for its first answer."""
SILENT_S = 3.0
"""Seconds after which the console says what is waited for."""
LONGEST_PAUSE_S = 15.0
ANSWERED_ENV = "DEGLA_RAY_STORE_ANSWERED"
"""Set in Ray's workers: their driver has reached the store, so silence is an outage."""
_ATTEMPTS = 3  # of pyarrow's client, within one of ours
_CREDENTIALS = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|INVALID_SIGNATURE|EXPIRED_TOKEN"
    r"|INVALID_CLIENT_TOKEN_ID|MISSING_AUTHENTICATION_TOKEN|UNRECOGNIZED_CLIENT|HTTP status 40[13]"
)
_NO_BUCKET = re.compile(r"NO_SUCH_BUCKET|RESOURCE_NOT_FOUND")
_REFUSED = re.compile(r"HTTP status (301|4(?!08|29)\d\d)")
_REASON = re.compile(r"AWS Error (.*?)(: No response body|; Details| \(Request ID|$)")
_UNREACHED = re.compile(r"NETWORK_CONNECTION|curlCode")
_NO_OUTAGE = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
T = TypeVar("T")
_lock = threading.Lock()
_answered: set[str] = set()
_waited_for: dict[str, float] = {}  # stores that fail now, with the time of the first failure


class StoreError(DataError, OSError):
    """A request that a store refuses; an OSError too, because it may be about a single file."""


class StoreSilent(DataError):
    """A store that does not answer, which no single file is to blame for."""


def retried(store: str, request: Callable[[], T]) -> T:
    """Return what a request returns, trying it again while the store fails.

    Args:
        store: URI of the store's bucket, for messages.
        request: has the same effect if it is called again.

    Raises:
        StoreError: the store refuses the request.
        StoreSilent: it failed for OUTAGE_S, or did not answer at all for FIRST_ANSWER_S.
        FileNotFoundError: the file does not exist.
    """
    began, pause = time.monotonic(), 0.5
    while True:
        try:
            result = request()
        except _NO_OUTAGE:
            _answers(store)
            raise
        except StoreError:  # of a request within this one
            raise
        except OSError as error:
            reason = _reason(error)
            _raise_mistake(store, reason, error)
            if not (isinstance(error, ConnectionError) or _UNREACHED.search(reason)):
                _answered.add(store)
            if time.monotonic() + pause - began > _patience(store):
                silent = _silent(store, reason)
                _answered.discard(store)  # the next request does not wait as long
                raise silent from error
            if time.monotonic() - began > SILENT_S:
                _say_once(store, reason)
        else:
            _answers(store)
            return result
        time.sleep(pause * random.uniform(0.5, 1))  # else all workers would ask at the same moment
        pause = min(2 * pause, LONGEST_PAUSE_S)


def _reason(error: OSError) -> str:
    """Return what pyarrow's client says of a request, without what it says of itself."""
    line = " ".join(str(error).split())
    found = _REASON.search(line)
    return masked(found[1].rstrip(":") if found else line)[:160]


def _raise_mistake(store: str, reason: str, error: OSError) -> None:
    if _NO_BUCKET.search(reason):
        expected = f"a bucket that exists at {_address()}"
    elif _CREDENTIALS.search(reason):
        expected = (
            "credentials that allow it: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the "
            "machine's role"
        )
    elif _REFUSED.search(reason):
        expected = f"a store that takes it: it was sent to {_address()}, region by AWS_DEFAULT_REGION"
    else:
        return
    raise StoreError(store, f"a request that the store refuses ({reason})", expected) from error


def _patience(store: str) -> float:
    return OUTAGE_S if store in _answered or ANSWERED_ENV in os.environ else FIRST_ANSWER_S


def _silent(store: str, reason: str) -> StoreSilent:
    if _patience(store) == OUTAGE_S:
        return StoreSilent(
            store, f"no answer for {OUTAGE_S / 60:.0f} minutes ({reason})", "a store that answers"
        )
    return StoreSilent(store, f"no answer ({reason})", f"a store that answers at {_address()}")


def _address() -> str:
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return f"AWS_ENDPOINT_URL={masked(url)}" if url else "Amazon's address (or that of AWS_ENDPOINT_URL)"


def _say_once(store: str, reason: str) -> None:
    with _lock:
        if store in _waited_for:
            return
        _waited_for[store] = time.monotonic()
    until = time.strftime("%H:%M", time.localtime(time.time() + _patience(store)))
    line = f"store: {store} does not answer ({reason}); tries again until {until}"
    print(masked(line), file=sys.stderr, flush=True)


def _answers(store: str) -> None:
    _answered.add(store)
    with _lock:
        since = _waited_for.pop(store, None)
    if since is not None:
        line = f"store: {store} answers again, after {time.monotonic() - since:.0f} s"
        print(masked(line), file=sys.stderr, flush=True)


class StoreFile(io.RawIOBase):
    """A file to read; `read_at` may be called by several threads at a time."""

    def __init__(self, store: str, filesystem: pafs.FileSystem, path: str) -> None:
        super().__init__()
        self._store, self._place = store, 0
        self._file: pa.NativeFile = retried(store, lambda: filesystem.open_input_file(path))
        self._size = int(self._file.size())

    def size(self) -> int:
        return self._size

    def etag(self) -> str | None:
        """Return the store's mark of the content; None if it has none."""
        found = self._file.metadata().get("ETag")
        return None if found is None else found.decode().strip('"')

    def read_at(self, nbytes: int, offset: int) -> bytes:
        """Return `nbytes` bytes from `offset`, or what the file has of them."""
        whole = max(0, min(nbytes, self._size - offset))

        def read() -> bytes:
            data = bytes(self._file.read_at(whole, offset)) if whole else b""
            if len(data) != whole:  # a connection that was cut, or an error's text instead of the data
                raise OSError(f"{len(data)} of {whole} bytes")
            return data

        return retried(self._store, read)

    def read(self, size: int | None = -1) -> bytes:
        left = self._size - self._place
        data = self.read_at(left if size is None or size < 0 else size, self._place)
        self._place += len(data)
        return data

    def readall(self) -> bytes:
        return self.read()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        self._place = start + offset
        return self._place

    def tell(self) -> int:
        return self._place

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


class _Written(io.BytesIO):
    """Bytes that are put into the store when the file is closed."""

    def __init__(self, put: Callable[[bytes], None]) -> None:
        super().__init__()
        self._put = put

    def close(self) -> None:
        if not self.closed:
            try:
                self._put(self.getvalue())
            finally:
                super().close()


class RemoteStore(pafs.FileSystemHandler):
    """The filesystem of a URI, which retries every request; for `pyarrow.fs.PyFileSystem`."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self.plain, self.root = pafs.FileSystem.from_uri(uri)
        if isinstance(self.plain, pafs.S3FileSystem):
            # A small file is one PUT then, instead of the three requests of a multipart upload. from_uri does
            # not take these two options, and pyarrow gives the others only to pickle.
            _, (options,) = self.plain.__reduce__()
            strategy = pafs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS)
            self.plain = pafs.S3FileSystem(
                **options | {"allow_delayed_open": True, "retry_strategy": strategy}
            )
        scheme, _, rest = uri.partition("://")
        self.name = f"{scheme}://{rest.partition('/')[0].rpartition('@')[2]}"

    def __reduce__(self) -> tuple[type[RemoteStore], tuple[str]]:
        return (RemoteStore, (self._uri,))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemoteStore) and self.plain == other.plain

    __hash__ = None  # type: ignore[assignment]

    def put(self, data: bytes | pa.Buffer, path: str) -> None:
        """Write a file from one buffer: it appears whole or not at all, also after an interrupt."""

        def write() -> None:
            with self.plain.open_output_stream(path) as stream:
                stream.write(data)

        retried(self.name, write)

    def open_file(self, path: str) -> StoreFile:
        return StoreFile(self.name, self.plain, path)

    def open_input_file(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(self.open_file(path), mode="r")

    open_input_stream = open_input_file

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        return pa.PythonFile(_Written(lambda data: self.put(data, path)), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        raise NotImplementedError(f"{path}: stores cannot append")

    def get_type_name(self) -> str:
        return str(self.plain.type_name)

    def normalize_path(self, path: str) -> str:
        return str(self.plain.normalize_path(path))

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        return retried(self.name, lambda: self.plain.get_file_info(paths))

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        return retried(self.name, lambda: self.plain.get_file_info(selector))

    def create_dir(self, path: str, recursive: bool) -> None:
        retried(self.name, lambda: self.plain.create_dir(path, recursive=recursive))

    def delete_dir(self, path: str) -> None:
        retried(self.name, lambda: self.plain.delete_dir(path))

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        retried(self.name, lambda: self.plain.delete_dir_contents(path, missing_dir_ok=missing_dir_ok))

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError("a bucket is never emptied")

    def delete_file(self, path: str) -> None:
        retried(self.name, lambda: self.plain.delete_file(path))

    def move(self, source: str, target: str) -> None:
        retried(self.name, lambda: self.plain.move(source, target))

    def copy_file(self, source: str, target: str) -> None:
        retried(self.name, lambda: self.plain.copy_file(source, target))
