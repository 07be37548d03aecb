"""A local receiver of webhooks, and the signature check of the Standard Webhooks specification."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOLERANCE_S = 300


@dataclass(frozen=True)
class Post:
    """One request that the receiver got."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def event(self) -> Any:
        return json.loads(self.body)

    def verifies(self, secret: str) -> bool:
        """Check the signature by the specification.

        https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
        """
        key = base64.b64decode(secret.removeprefix("whsec_"))
        timestamp = self.headers["webhook-timestamp"]
        if abs(time.time() - int(timestamp)) > TOLERANCE_S:
            return False
        signed = f"{self.headers['webhook-id']}.{timestamp}.".encode() + self.body
        expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        signatures = [part.partition(",") for part in self.headers["webhook-signature"].split(" ")]
        return any(version == "v1" and hmac.compare_digest(mac, expected) for version, _, mac in signatures)


class Receiver:
    """Receiver that answers with the given statuses in order, and then with 204."""

    def __init__(self, *statuses: int) -> None:
        self.posts: list[Post] = []
        self.statuses = list(statuses)
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                receiver.posts.append(Post(self.path, headers, body))
                self.send_response(receiver.statuses.pop(0) if receiver.statuses else 204)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/in"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
