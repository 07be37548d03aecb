"""Keep web pages away from the emulator's AWS APIs, which check no credentials.

A web page may send requests to a port of the machine that displays it. The browser names the page in `Origin` and
`Sec-Fetch-Site`. If the page's own name resolves to the loopback address (DNS rebinding), `Host` contains that name.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Coroutine, Iterable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Coroutine[Any, Any, Message]]
Send = Callable[[Message], Coroutine[Any, Any, None]]
AsgiApp = Callable[[Message, Receive, Send], Coroutine[Any, Any, None]]

# The paths of an API of API Gateway. A shorter path reaches another service of the emulator.
_API_PATH = re.compile(r"/_aws/execute-api/[A-Za-z0-9]+/")
# The management API of WebSocket connections is an AWS API below the same path.
_MANAGEMENT_SEGMENT = "@connections"
_OWN_SITES = {"same-origin", "same-site", "none"}
_WILDCARDS = {"0.0.0.0", "::"}


def _hostname(authority: str) -> str | None:
    """Return the name or address of `host:port` in lower case, or None if it is invalid."""
    try:
        name = urlsplit(f"//{authority}").hostname
    except ValueError:
        return None
    # A path, a query or credentials do not belong into an authority.
    return name if name and not set(authority) & set("/?#@\\ ") else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class OriginRule:
    """The rule that decides which requests the emulator refuses.

    Args:
        addresses: The addresses that the emulator listens on in addition to the loopback address.
    """

    def __init__(self, addresses: Iterable[str] = ()) -> None:
        self._addresses = {address.lower() for address in addresses}

    def refusal(self, path: str, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
        """Return the reason to refuse a request, or None."""
        values: dict[str, list[str]] = {"host": [], "origin": [], "sec-fetch-site": []}
        for name, value in headers:
            if (known := values.get(name.decode("latin-1").lower())) is not None:
                known.append(value.decode("latin-1").strip())
        if len(values["host"]) != 1 or not self._allows_host(values["host"][0]):
            return "the Host header does not name the local cloud"
        if _is_api_path(path) and self._is_exact(values["host"][0]):
            return None
        if not all(map(self._allows_origin, values["origin"])):
            return "the Origin is another site"
        if not all(site.lower() in _OWN_SITES for site in values["sec-fetch-site"]):
            return "Sec-Fetch-Site names another site"
        return None

    def _allows_host(self, authority: str) -> bool:
        name = _hostname(authority)
        # Browsers resolve names below `localhost` to the loopback address, so no foreign page can own one.
        return name is not None and (self._allows(name) or name.endswith(".localhost"))

    def _is_exact(self, authority: str) -> bool:
        """Return whether the emulator routes by path. It routes names below `localhost` by name, for example to S3."""
        name = _hostname(authority)
        return name is not None and self._allows(name)

    def _allows_origin(self, origin: str) -> bool:
        scheme, separator, authority = origin.partition("://")
        name = _hostname(authority)
        return scheme.lower() in {"http", "https"} and bool(separator) and name is not None and self._allows(name)

    def _allows(self, name: str) -> bool:
        if name == "localhost" or name in self._addresses:
            return True
        if not _is_address(name):
            return False
        # A page that was loaded from an address is no rebound name: rebinding needs a name.
        return ipaddress.ip_address(name).is_loopback or bool(self._addresses & _WILDCARDS)


def _is_api_path(path: str) -> bool:
    return _API_PATH.match(path) is not None and _MANAGEMENT_SEGMENT not in path.split("/")


def guard(app: AsgiApp, rule: OriginRule) -> AsgiApp:
    """Return an application that refuses requests of web pages with 403 before they reach `app`."""

    async def refusing_app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"}:
            await app(scope, receive, send)
            return
        reason = rule.refusal(scope["path"], scope["headers"])
        if reason is None:
            await app(scope, receive, send)
        elif scope["type"] == "websocket":
            # A server answers the upgrade with 403 if the application closes the socket before it accepts it.
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            await _refuse(send, reason)

    return refusing_app


async def _refuse(send: Send, reason: str) -> None:
    body = json.dumps({"message": f"Forbidden: {reason}. See docs/local.md."}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": body})
