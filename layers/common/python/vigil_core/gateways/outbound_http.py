"""HTTP requests to addresses that users name, guarded by `domain.outbound_policy`.

The client resolves a host name once and connects to the address that the policy accepted: a second resolution could
return another address. It follows no redirect, ignores the proxy variables of the environment, and limits a response in
bytes and in time.
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
"""Returns the addresses of a host, best first. Raises OSError."""

# Its warnings about unusual headers contain the URL, whose path or query may contain a secret.
logging.getLogger("urllib3.connection").setLevel(logging.ERROR)

_READ_BYTES = 64 * 1024
_UNKNOWN_HOST_ERRORS = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


@dataclass(frozen=True, kw_only=True)
class HttpResponse:
    """A response with lower-case header names; `truncated` if the body exceeded the limit."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    truncated: bool = False


def resolve_host(host: str, port: int) -> list[str]:
    """Resolve a host name with the resolver of the system."""
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in addresses))


class OutboundHttpClient:
    """An HTTP client for outbound requests.

    Args:
        allowed: The hosts of `parse_allowed_hosts` that may be private and may be called without TLS.
        resolve: Resolves a host name.
        tls: Creates the TLS context.
        monotonic: The clock of the deadlines.
    """

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
        """Send one request, which takes at most `timeout_s` in total.

        Raises:
            TargetRefused: The outbound policy forbids the request.
            TargetUnreachable: The host could not be reached, or its response is not HTTP.
        """
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
                    # No compression: a small response could unpack into a large one.
                    headers={"User-Agent": "Vigil", "Accept-Encoding": "identity", **headers},
                    preload_content=False,
                    decode_content=False,
                )
                return _read(connection.getresponse(), max_response_bytes)
            finally:
                connection.close()

    def _addresses(self, target: OutboundTarget, timeout_s: float) -> Sequence[str]:
        """Resolve the host and check all of its addresses.

        The resolver has no timeout of its own, so it runs in a daemon thread that this method abandons at the deadline.
        """
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
            raise TargetUnreachable("The host name was not resolved in time") from None
        if isinstance(result, UnicodeError) or (isinstance(result, OSError) and result.errno in _UNKNOWN_HOST_ERRORS):
            raise TargetRefused("The host does not exist") from result
        if isinstance(result, OSError) or not result:
            raise TargetUnreachable("The host name could not be resolved")
        check_addresses(map(ip_address, result), is_allowlisted=target.is_allowlisted)
        return result

    def _connect(self, target: OutboundTarget, addresses: Sequence[str], deadline: float) -> socket.socket:
        """Connect to the first address that accepts a connection; each address gets a share of the time."""
        for remaining in range(len(addresses), 1, -1):
            address = addresses[-remaining]
            with suppress(OSError):
                return socket.create_connection((address, target.port), timeout=self._time_left(deadline) / remaining)
        return socket.create_connection((addresses[-1], target.port), timeout=self._time_left(deadline))

    def _connection(self, target: OutboundTarget, sock: socket.socket, timeout_s: float) -> HTTPConnection:
        """Build an HTTP connection over a connected socket."""
        if target.scheme == "http":
            connection = HTTPConnection(target.host, target.port, timeout=timeout_s)
            connection.sock = sock
            return connection
        if self._tls is None:
            self._tls = self._make_tls()
        secure = HTTPSConnection(target.host, target.port, timeout=timeout_s)
        # The certificate must be valid for the host name of the URL, independent of the address.
        secure.sock = self._tls.wrap_socket(sock, server_hostname=target.host)
        return secure

    def _time_left(self, deadline: float) -> float:
        time_left = deadline - self._monotonic()
        if time_left <= 0:
            raise TimeoutError
        return time_left


@contextmanager
def _enforce_deadline(sock: socket.socket, after_s: float) -> Iterator[None]:
    """Shut a connection down at its deadline, because the timeout of a socket restarts with every byte.

    Raises:
        TimeoutError: The deadline has passed, even if the shutdown looks like the end of a response.
    """
    expired = threading.Event()
    # TLS takes over the socket; its duplicate still refers to the same connection.
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
    """Convert faults of the network and of the host to TargetUnreachable with a plain reason."""
    try:
        yield
    except TimeoutError as error:
        raise TargetUnreachable("The host did not answer in time") from error
    except ssl.SSLCertVerificationError as error:
        raise TargetUnreachable(f"The certificate of {target.host} is not valid: {error.verify_message}") from error
    except ssl.SSLError as error:
        raise TargetUnreachable("The TLS handshake with the host failed") from error
    except ConnectionRefusedError as error:
        raise TargetUnreachable("The host refused the connection") from error
    except OSError as error:
        raise TargetUnreachable("The connection to the host broke, or the host is unreachable") from error
    except (HTTPError, HTTPException, ValueError) as error:
        raise TargetUnreachable("The host sent an invalid or incomplete HTTP response") from error
