"""A server that speaks OpenAI's chat API on 127.0.0.1, in threads, and answers as the test specifies."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(kw_only=True)
class Reply:
    """What the server sends.

    Attributes:
        body: bytes as they are, anything else as JSON.
        trickle_s: seconds between two bytes of the body.
    """

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    trickle_s: float = 0.0


def completion(text: Any, *, finish_reason: str = "stop", **message: Any) -> Reply:
    """A reply as OpenAI's own server gives it."""
    choice = {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": text}}
    choice["message"] |= message
    usage = {"prompt_tokens": 100, "completion_tokens": 12, "total_tokens": 112}
    return Reply(body={"id": "c", "object": "chat.completion", "choices": [choice], "usage": usage})


@dataclass(kw_only=True)
class Server:
    """A running server.

    Attributes:
        url: to give as `openai.base_url`.
        requests: bodies of all chat requests so far.
        over: set when it ends, for answers that wait.
    """

    url: str
    requests: list[dict[str, Any]]
    over: threading.Event


@contextmanager
def openai_server(answer: Callable[[dict[str, Any], Server], Reply]) -> Iterator[Server]:
    """Serve `answer(request, server)` for every chat request, and list the model `small`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(Reply(body={"object": "list", "data": [{"id": "small", "object": "model"}]}))

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            request["key"] = self.headers["Authorization"].removeprefix("Bearer ")
            server.requests.append(request)
            self._send(answer(request, server))

        def _send(self, reply: Reply) -> None:
            body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            headers = {"Content-Type": "application/json", "Content-Length": str(len(body))} | reply.headers
            try:
                self.send_response(reply.status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                for i in range(len(body)) if reply.trickle_s else ():
                    self.wfile.write(body[i : i + 1])
                    if server.over.wait(reply.trickle_s):
                        return
                if not reply.trickle_s:
                    self.wfile.write(body)
            except OSError:
                pass  # the client went away

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class HTTPServer(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

    http = HTTPServer(("127.0.0.1", 0), Handler)
    server = Server(url=f"http://127.0.0.1:{http.server_address[1]}/v1", requests=[], over=threading.Event())
    threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server
    finally:
        server.over.set()
        http.shutdown()
        http.server_close()
