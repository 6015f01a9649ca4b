"""An S3 server on loopback that is late or fails, like a distant store, and counts what it sends.

    with slow_store() as store:
        Storage(f"{store.uri}/folder").upload(path)
        store.delay(0.04)

It is moto's server in a process of its own, so that its work does not hold the measuring process's GIL.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import SHUT_RDWR
from threading import Lock
from typing import Any
from unittest.mock import patch

BUCKET = "bucket"
_CONTROL = "/-control/"


@dataclass(frozen=True)
class Store:
    """The server.

    Attributes:
        url: address of the server.
    """

    url: str

    @property
    def uri(self) -> str:
        """The bucket, as pyarrow opens it while `slow_store` is open."""
        return f"s3://{BUCKET}"

    def delay(self, seconds: float) -> None:
        """Let each request take at least this long."""
        self._control(f"delay/{seconds}")

    def fail(self, requests: int, how: str = "503") -> None:
        """Let the next requests fail: with status 503, 403 or 404, or by a cut connection (`reset`)."""
        self._control(f"fail/{how}:{requests}")

    def requests(self) -> int:
        """Return the requests so far."""
        return self._control("counts")["requests"]

    def sent_bytes(self) -> int:
        """Return the bytes of the answers to GET requests so far."""
        return self._control("counts")["bytes"]

    def counts(self) -> dict[str, int]:
        """Return the requests so far, those that failed, and the bytes that were read and written."""
        return dict(self._control("counts"))

    def _control(self, name: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{_CONTROL}{name}") as response:
            return json.load(response)


@contextmanager
def slow_store() -> Iterator[Store]:
    """Start the server without a delay, and lead all S3 clients of this process and its children to it."""
    command = [sys.executable, "-m", "benchmarks.slow_store"]
    with subprocess.Popen(
        command, cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            settings = {
                "AWS_ENDPOINT_URL": url,
                "AWS_ACCESS_KEY_ID": "testing",
                "AWS_SECRET_ACCESS_KEY": "testing",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
            with patch.dict(os.environ, settings):
                urllib.request.urlopen(urllib.request.Request(f"{url}/{BUCKET}", method="PUT")).close()
                yield Store(url)
        finally:
            process.terminate()


class _Slow:
    """A WSGI application around another one."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self.app, self.delay_s = app, 0.0
        self.how, self.failing = "", 0
        self.counts, self._lock = {"requests": 0, "failed": 0, "bytes": 0, "written": 0}, Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path.startswith(_CONTROL):
            name, _, value = path.removeprefix(_CONTROL).partition("/")
            if name == "delay":
                self.delay_s = float(value)
            elif name == "fail":
                self.how, self.failing = value.split(":")[0], int(value.split(":")[1])
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(self.counts).encode()]
        time.sleep(self.delay_s)
        with self._lock:
            self.counts["requests"] += 1
            fails = self.failing > 0
            self.failing -= fails
            self.counts["failed"] += fails
        if fails:
            return self._failure(environ, start_response)
        body = list(self.app(environ, start_response))
        length = environ.get("HTTP_X_AMZ_DECODED_CONTENT_LENGTH") or environ.get("CONTENT_LENGTH")
        with self._lock:
            if environ["REQUEST_METHOD"] == "GET":
                self.counts["bytes"] += sum(map(len, body))
            elif environ["REQUEST_METHOD"] == "PUT":
                self.counts["written"] += int(length or 0)
        return body

    def _failure(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        if self.how == "reset":
            start_response("200 OK", [])
            environ["werkzeug.socket"].shutdown(SHUT_RDWR)
            return [b"lost"]
        # A gateway before the store answers in its own words, not in S3's XML.
        reason = {"503": "Service Unavailable", "403": "Forbidden", "404": "Not Found"}[self.how]
        start_response(f"{self.how} {reason}", [("Content-Type", "text/plain")])
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else reason.encode()]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = _Slow(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    print(f"http://127.0.0.1:{server.port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
