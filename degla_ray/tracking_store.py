"""Open an MLflow store: a SQLite file that several processes may create, or a server that may be down.

MLflow's own client asks an absent server eight times, which takes four minutes. Here `probe` asks once before
a job begins. While the job runs, a call is tried again for as long as `remote_store` waits for any store, and
then raises ServerSilent. No result depends on MLflow, so `or_told` prints what is not recorded and goes on.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import logging
import os
import re
import ssl
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import urlopen

from degla_ray.errors import SettingError
from degla_ray.masking import masked
from degla_ray.remote_store import StoreError, StoreSilent, retried

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Read by MLflow at import, which in a trial's process may come before a store is opened.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

FIRST_ANSWER_S = 5.0
"""Seconds that a server has to answer before a job begins."""
SETTING = "tracking.uri"
_GATEWAYS = (502, 503, 504)  # what a proxy says of a server that is down
_PASSING = (408, 429, 500, *_GATEWAYS)  # statuses that MLflow's client tries again too
_REASON = re.compile(r"\[Errno -?\d+\] ([^'\")]+)|(timed out)|too many (\d{3}) error responses")


class ServerSilent(SettingError):
    """A server that does not answer."""

    def __init__(self, uri: str, reason: str) -> None:
        expected = f"an MLflow server that answers ({reason}); tracking.enabled false goes without MLflow"
        super().__init__(SETTING, masked(uri), expected)


def is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def sqlite_path(uri: str) -> Path | None:
    """Return the absolute file path of a SQLite URI; None for any other store."""
    return (
        Path(uri.removeprefix("sqlite:///")).expanduser().absolute() if uri.startswith("sqlite:///") else None
    )


def probe(uri: str) -> None:
    """Ask a server whether it is there.

    Raises:
        ServerSilent: it does not answer within FIRST_ANSWER_S.
    """
    address = _without_password(uri)
    try:
        urlopen(f"{address.rstrip('/')}/health", timeout=FIRST_ANSWER_S).close()
    except HTTPError as error:
        if error.code in _GATEWAYS:
            raise ServerSilent(address, f"status {error.code}") from None
    except (OSError, HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        if not isinstance(reason, ssl.SSLError):  # MLflow's own settings say which certificates it takes
            raise ServerSilent(address, _short(reason)) from None


def open_store(uri: str, *, patient: bool = True) -> MlflowClient:
    """Open a store; a SQLite file and its folder are created if they do not exist.

    Args:
        uri: MLflow's tracking URI.
        patient: whether calls wait for a server that is down, and end in ServerSilent.

    Raises:
        SettingError: the store cannot be opened.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # read at each request, as the next
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    for noisy in ("mlflow", "alembic"):  # a new sqlite store logs a line for each of its ~60 migrations
        logging.getLogger(noisy).setLevel(logging.WARNING)
    path = sqlite_path(uri)
    address = _without_password(uri) if path is None else f"sqlite:///{path}"
    try:
        with contextlib.nullcontext() if path is None else _alone(path):
            opened = MlflowClient(tracking_uri=address)
    except (OSError, MlflowException) as error:
        raise SettingError(SETTING, uri, f"an MLflow store that opens ({first_line(error)})") from error
    return cast("MlflowClient", _Patient(opened, address)) if patient and is_server(uri) else opened


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one process at a time open a SQLite store: two that create its tables at once break it for good."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{path}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _without_password(uri: str) -> str:
    """Return a server's address without user and password, which MLflow then takes from the environment.

    MLflow repeats the address in its errors, which a Ray worker logs.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or parts.username is None:
        return uri
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password or "")
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


class _Patient:
    """An MlflowClient whose calls are tried again while its server does not answer."""

    def __init__(self, opened: MlflowClient, address: str) -> None:
        self._opened, self._address = opened, address

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._opened, name)

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return retried(self._address, lambda: self._asked(method, *args, **kwargs))
            except StoreSilent as error:
                raise ServerSilent(self._address, str(error.found)) from error

        return call

    def _asked(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call MLflow; raise ConnectionError if its server did not answer."""
        from mlflow.exceptions import MlflowException
        from requests import HTTPError as StatusError
        from requests import RequestException

        try:
            return method(*args, **kwargs)
        except StatusError as error:  # of an artifact's upload
            if error.response is None or error.response.status_code in _PASSING:
                raise ConnectionError(_short(error)) from error
            expected = "a server that takes it"
            raise StoreError(
                self._address, f"a request that it refuses ({_short(error)})", expected
            ) from error
        except (MlflowException, RequestException) as error:
            cause = error if isinstance(error, RequestException) else error.__cause__ or error.__context__
            if isinstance(cause, RequestException):
                raise ConnectionError(_short(cause)) from error
            raise


@contextlib.contextmanager
def or_told(what: str) -> Iterator[None]:
    """Print what a silent server did not record, instead of ending the job."""
    try:
        yield
    except ServerSilent as error:
        print(f"MLflow: {what} not recorded: {error}", flush=True)


def first_line(error: Exception) -> str:
    """Return the first line of MLflow's message, with secrets masked."""
    return masked(str(error).strip().partition("\n")[0])


def _short(error: object) -> str:
    """Return the reason of a failed connection, which urllib3 wraps several times."""
    text = " ".join(str(error).split())
    found = _REASON.search(text)
    if found is None:
        return masked(text)[:160]
    return found[1] or found[2] or f"status {found[3]}"
