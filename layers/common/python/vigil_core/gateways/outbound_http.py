"""Requests to addresses that users name, guarded: `domain.targets` says which may be asked.

A name is resolved once, and what was judged is what is connected to: a second resolution could give another address.
No redirect is followed, no proxy of the environment used, and an answer has a limit in bytes and in time.
"""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from ipaddress import ip_address
from queue import Empty, SimpleQueue
from typing import TypeAlias

from urllib3 import BaseHTTPResponse
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError

from vigil_core.domain.errors import TargetRefused, TargetUnreachable
from vigil_core.domain.outbound_policy import OutboundTarget, check_addresses, check_headers, parse_outbound_url

Resolve: TypeAlias = Callable[[str, int], Sequence[str]]
"""The addresses of a host, best first. Raises OSError."""

# It warns of odd headers, and names the URL, whose path or query may hold a secret.
logging.getLogger("urllib3.connection").setLevel(logging.ERROR)

_READ_BYTES = 64 * 1024
_UNKNOWN_HOST_ERRORS = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


@dataclass(frozen=True, kw_only=True)
class HttpResponse:
    """What came back. Header names are lower case. `truncated`: the body went on beyond the limit."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    truncated: bool = False


def resolve_host(host: str, port: int) -> list[str]:
    """What the system's resolver says."""
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in addresses))


class OutboundHttpClient:
    """`allowed` are the hosts, as `domain.targets.parse_allowed` makes them, that may be private and without TLS."""

    def __init__(
        self,
        allowed: Collection[str] = (),
        *,
        resolve: Resolve = resolve_host,
        tls: Callable[[], ssl.SSLContext] = ssl.create_default_context,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._allowed = frozenset(allowed)
        self._resolve = resolve
        self._make_tls = tls
        self._tls: ssl.SSLContext | None = None
        self._monotonic = monotonic

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None,
        timeout_s: float,
        max_response_bytes: int,
    ) -> HttpResponse:
        """Send one request; all of it takes at most `timeout_s`. Raises TargetRefused, TargetUnreachable."""
        check_headers(method, headers)
        target = parse_outbound_url(url, self._allowed)
        deadline = self._monotonic() + timeout_s
        addresses = self._addresses(target, timeout_s)
        with (
            _map_errors(target),
            self._connect(target, addresses, deadline) as sock,
            _enforce_deadline(sock, self._time_left(deadline)),
        ):
            connection = self._connection(target, sock, timeout_s)
            try:
                connection.request(
                    method,
                    target.path,
                    body=body,
                    # Nothing compressed: a small answer may unpack into a large one.
                    headers={"User-Agent": "Vigil", "Accept-Encoding": "identity", **headers},
                    preload_content=False,
                    decode_content=False,
                )
                return _read(connection.getresponse(), max_response_bytes)
            finally:
                connection.close()

    def _addresses(self, target: OutboundTarget, timeout_s: float) -> Sequence[str]:
        """What the host stands for, all of it permitted. A resolver that does not answer is left behind."""
        results: SimpleQueue[Sequence[str] | OSError | UnicodeError] = SimpleQueue()

        def resolve() -> None:
            try:
                results.put(self._resolve(target.host, target.port))
            except (OSError, UnicodeError) as error:
                results.put(error)

        threading.Thread(target=resolve, name="resolve", daemon=True).start()
        try:
            result = results.get(timeout=timeout_s)
        except Empty:
            raise TargetUnreachable("The name of the host was not resolved in time") from None
        if isinstance(result, UnicodeError) or (isinstance(result, OSError) and result.errno in _UNKNOWN_HOST_ERRORS):
            raise TargetRefused("There is no host of this name") from result
        if isinstance(result, OSError) or not result:
            raise TargetUnreachable("The name of the host could not be resolved")
        check_addresses(map(ip_address, result), is_allowlisted=target.is_allowlisted)
        return result

    def _connect(self, target: OutboundTarget, addresses: Sequence[str], deadline: float) -> socket.socket:
        """A connection to the first address that takes one; each has its share of the time."""
        for remaining in range(len(addresses), 1, -1):
            address = addresses[-remaining]
            with suppress(OSError):
                return socket.create_connection((address, target.port), timeout=self._time_left(deadline) / remaining)
        return socket.create_connection((addresses[-1], target.port), timeout=self._time_left(deadline))

    def _connection(self, target: OutboundTarget, sock: socket.socket, timeout_s: float) -> HTTPConnection:
        """HTTP over a socket that is connected already."""
        if target.scheme == "http":
            connection = HTTPConnection(target.host, target.port, timeout=timeout_s)
            connection.sock = sock
            return connection
        if self._tls is None:
            self._tls = self._make_tls()
        secure = HTTPSConnection(target.host, target.port, timeout=timeout_s)
        # The name of the URL is what the certificate has to be for, whatever the address.
        secure.sock = self._tls.wrap_socket(sock, server_hostname=target.host)
        return secure

    def _time_left(self, deadline: float) -> float:
        time_left = deadline - self._monotonic()
        if time_left <= 0:
            raise TimeoutError
        return time_left


@contextmanager
def _enforce_deadline(sock: socket.socket, after_s: float) -> Iterator[None]:
    """Cuts a connection when its time is up, whatever it is in the middle of: a socket's own timeout begins anew with
    every byte. Raises TimeoutError then, though it look like the end of an answer."""
    expired = threading.Event()
    # A duplicate: TLS takes the socket over, and this one still is the same connection.
    with sock.dup() as duplicate:

        def shut_down() -> None:
            expired.set()
            with suppress(OSError):
                duplicate.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(after_s, shut_down)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()
            if expired.is_set():
                raise TimeoutError


def _read(response: BaseHTTPResponse, max_bytes: int) -> HttpResponse:
    body = bytearray()
    while len(body) <= max_bytes and (
        chunk := response.read(min(_READ_BYTES, max_bytes + 1 - len(body)), decode_content=False)
    ):
        body += chunk
    return HttpResponse(
        status=response.status,
        headers={name.lower(): response.headers[name] for name in response.headers},
        body=bytes(body[:max_bytes]),
        truncated=len(body) > max_bytes,
    )


@contextmanager
def _map_errors(target: OutboundTarget) -> Iterator[None]:
    """Faults of the way and of the other side, by what a user can do about them."""
    try:
        yield
    except TimeoutError as error:
        raise TargetUnreachable("The host did not answer in time") from error
    except ssl.SSLCertVerificationError as error:
        raise TargetUnreachable(f"The certificate of {target.host} is not valid: {error.verify_message}") from error
    except ssl.SSLError as error:
        raise TargetUnreachable("The host could not be agreed with on TLS") from error
    except ConnectionRefusedError as error:
        raise TargetUnreachable("The host refused the connection") from error
    except OSError as error:
        raise TargetUnreachable("The connection to the host broke, or there is no way to it") from error
    except (HTTPError, HTTPException, ValueError) as error:
        raise TargetUnreachable("The host did not answer in HTTP, or broke off its answer") from error
