"""An HTTP server with scripted replies that records its requests."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class RecordedRequest:
    """One request with its arrival in monotonic time. Header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    at: float


@dataclass(frozen=True)
class Reply:
    """One reply. It is sent after `after_s` seconds, and if `blocked` only after a call of `release`."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    after_s: float = 0
    blocked: bool = False


class HttpTarget:
    """Server that answers each path with its replies in order, and repeats the last one. Other paths get 404."""

    def __init__(self) -> None:
        self.url = ""
        self.recorded: list[RecordedRequest] = []
        self._replies: dict[str, list[Reply]] = {}
        self._released = threading.Event()

    def replies(self, path: str, *replies: Reply) -> None:
        """Set the replies for a path. The query string of a request is ignored."""
        self._replies[path] = list(replies)

    def release(self) -> None:
        """Send all blocked replies."""
        self._released.set()

    def requests(self, path: str) -> list[RecordedRequest]:
        """Return the recorded requests for a path."""
        return [request for request in self.recorded if request.path.partition("?")[0] == path]

    def _reply(self, path: str) -> Reply:
        left = self._replies.get(path.partition("?")[0], [Reply(404)])
        return left.pop(0) if len(left) > 1 else left[0]

    @contextmanager
    def serving(self) -> Iterator[HttpTarget]:
        """Serve on a free port of 127.0.0.1 inside the block."""
        target = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                target.recorded.append(RecordedRequest(self.command, self.path, headers, body, time.monotonic()))
                reply = target._reply(self.path)
                if reply.blocked:
                    target._released.wait(60)
                time.sleep(reply.after_s)
                content = b"" if reply.body is None else json.dumps(reply.body).encode()
                self.send_response(reply.status)
                response_headers = {
                    "content-type": "application/json",
                    "content-length": str(len(content)),
                    **reply.headers,
                }
                for name, value in response_headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _answer

            def handle(self) -> None:
                with suppress(ConnectionError):  # The client may have closed the connection.
                    super().handle()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        self.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield self
        finally:
            self.release()
            server.shutdown()
            thread.join()
            server.server_close()
