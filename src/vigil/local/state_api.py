"""Two paths of the emulator for `vigil local`: its condition, and a snapshot.

If the state cannot be saved, requests that write are refused with 503.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from vigil.local.condition import SNAPSHOT_PATH, STATE_PATH
from vigil.local.origin_guard import AsgiApp, Message, Receive, Send
from vigil.local.state_store import StateStore

_API_PREFIX = "/_aws/execute-api/"
_READING_METHODS = {"GET", "HEAD", "OPTIONS"}


def serve_state(app: AsgiApp, store: StateStore, examine: Callable[[], dict[str, Any]]) -> AsgiApp:
    """Return an application that serves the two paths and passes other requests on.

    Args:
        examine: Returns the condition of the queues and timers.
    """

    async def serve(scope: Message, receive: Receive, send: Send) -> None:
        path, method = scope.get("path", ""), scope.get("method")
        if path == STATE_PATH and method == "GET":
            await _respond(send, 200, {**store.status(), **examine()})
        elif path == SNAPSHOT_PATH and method == "POST":
            await _snapshot(store, send)
        elif path.startswith(_API_PREFIX) and method and method not in _READING_METHODS and store.refusal:
            message = f"The local cloud cannot save its state: {store.refusal}"
            await _respond(send, 503, {"title": "Service Unavailable", "status": 503, "detail": message})
        else:
            await app(scope, receive, send)

    return serve


async def _snapshot(store: StateStore, send: Send) -> None:
    try:
        await asyncio.to_thread(store.snapshot)
    except OSError as error:
        await _respond(send, 503, {"failure": error.strerror or str(error)})
    else:
        await _respond(send, 200, store.status())


async def _respond(send: Send, status: int, value: Any) -> None:
    body = json.dumps(value).encode()
    kind = b"application/json" if status == 200 else b"application/problem+json"
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
