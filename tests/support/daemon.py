"""A receiver of X-Ray subsegments in place of the X-Ray daemon."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

ROOT = "1-67890abc-0123456789abcdef01234567"
PARENT = "53995c3f42cd8ad8"


class Daemon:
    """Receive subsegments. The test's invocations carry the trace header of a sampled Lambda invocation."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._monkeypatch = monkeypatch
        host, port = self._socket.getsockname()
        monkeypatch.setenv("AWS_XRAY_DAEMON_ADDRESS", f"{host}:{port}")
        self.trace()

    def trace(self, *, sampled: bool = True) -> None:
        """Set the trace header of an invocation that X-Ray samples, or of one that it does not sample."""
        header = f"Root={ROOT};Parent={PARENT};Sampled={int(sampled)};Lineage=1:a87bd80c:0"
        self._monkeypatch.setenv("_X_AMZN_TRACE_ID", header)

    def take(self) -> dict[str, Any]:
        """Return the next subsegment. Its trace and parent must be those of the invocation."""
        self._socket.settimeout(10)
        header, _, document = self._socket.recv(65_536).partition(b"\n")
        assert json.loads(header) == {"format": "json", "version": 1}
        subsegment = json.loads(document)
        assert (subsegment["type"], subsegment["trace_id"], subsegment["parent_id"]) == ("subsegment", ROOT, PARENT)
        assert len(bytes.fromhex(subsegment["id"])) == 8
        assert subsegment["start_time"] <= subsegment["end_time"]
        return dict(subsegment)

    def take_all(self) -> list[dict[str, Any]]:
        """Return all subsegments so far. A datagram to the same machine is readable as soon as it is sent."""
        subsegments: list[dict[str, Any]] = []
        while True:
            self._socket.setblocking(False)
            try:
                self._socket.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                return subsegments
            subsegments.append(self.take())

    def close(self) -> None:
        self._socket.close()
