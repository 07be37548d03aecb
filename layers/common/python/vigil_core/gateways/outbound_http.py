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
from vigil_core.domain.outbound_policy import (
    OutboundTarget,
    RequestInterrupted,
    SlowRequestPolicy,
    check_addresses,
    check_headers,
    parse_outbound_url,
)

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
        slow_policy: SlowRequestPolicy | None = None,
    ) -> HttpResponse:
        """Send one request, which takes at most `timeout_s` in total.

        Raises:
            TargetRefused: The outbound policy forbids the request.
            RequestInterrupted: The request was slow, and `slow_policy` did not let it continue.
            TargetUnreachable: The host could not be reached, or its response is not HTTP.
        """
        check_headers(method, headers)
        target = parse_outbound_url(url, self._allowed)
        deadline = _Deadline(self._monotonic, timeout_s, slow_policy)
        addresses = self._addresses(target, deadline)
        with (
            _map_errors(target),
            self._connect(target, addresses, deadline) as sock,
            _enforce_deadline(sock, deadline),
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

    def _addresses(self, target: OutboundTarget, deadline: _Deadline) -> Sequence[str]:
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
        result = None
        try:
            while result is None:
                with suppress(Empty):
                    result = results.get(timeout=deadline.step_s())
        except TimeoutError:
            raise TargetUnreachable("The host name was not resolved in time") from None
        if isinstance(result, UnicodeError) or (isinstance(result, OSError) and result.errno in _UNKNOWN_HOST_ERRORS):
            raise TargetRefused("The host does not exist") from result
        if isinstance(result, OSError) or not result:
            raise TargetUnreachable("The host name could not be resolved")
        check_addresses(map(ip_address, result), is_allowlisted=target.is_allowlisted)
        return result

    def _connect(self, target: OutboundTarget, addresses: Sequence[str], deadline: _Deadline) -> socket.socket:
        """Connect to the first address that accepts a connection; each address gets a share of the time."""
        for remaining in range(len(addresses), 1, -1):
            with suppress(OSError):
                return self._connect_to(addresses[-remaining], target.port, deadline, remaining)
        return self._connect_to(addresses[-1], target.port, deadline, 1)

    def _connect_to(self, address: str, port: int, deadline: _Deadline, addresses_left: int) -> socket.socket:
        while True:
            share_s = deadline.left_s() / addresses_left
            step_s = deadline.step_s()
            try:
                return socket.create_connection((address, port), timeout=min(share_s, step_s))
            except TimeoutError:
                if share_s < step_s:
                    raise
                deadline.extend()

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


class _Deadline:
    """The end of a request, and before it the time at which a slow request must be allowed to continue."""

    def __init__(self, monotonic: Callable[[], float], timeout_s: float, slow_policy: SlowRequestPolicy | None) -> None:
        self._monotonic = monotonic
        self._slow_policy = slow_policy
        started_at = monotonic()
        self._ends_at = started_at + timeout_s
        self._slow_at = None if slow_policy is None else started_at + min(slow_policy.slow_after_s, timeout_s)

    def left_s(self) -> float:
        """Return the time until the end.

        Raises:
            TimeoutError: The end has passed.
        """
        left_s = self._ends_at - self._monotonic()
        if left_s <= 0:
            raise TimeoutError
        return left_s

    def step_s(self) -> float:
        """Return the time until the request is slow, or until its end.

        Raises:
            TimeoutError: The end has passed.
            RequestInterrupted: The request is slow, and may not continue.
        """
        if self._slow_at is not None and self._monotonic() >= self._slow_at:
            self.extend()
        return self.left_s() if self._slow_at is None else max(self._slow_at - self._monotonic(), 0.001)

    def extend(self) -> None:
        """Decide after a step without an answer whether the request continues.

        Raises:
            TimeoutError: The end has passed.
            RequestInterrupted: The request is slow, and may not continue.
        """
        if self._slow_at is None or self._slow_policy is None:
            raise TimeoutError
        if not self._slow_policy.may_continue():
            raise RequestInterrupted
        self._slow_at = None


@contextmanager
def _enforce_deadline(sock: socket.socket, deadline: _Deadline) -> Iterator[None]:
    """Shut a connection down at its deadline, because the timeout of a socket restarts with every byte.

    Raises:
        TimeoutError: The deadline has passed, even if the shutdown looks like the end of a response.
        RequestInterrupted: The request was slow, and might not continue.
    """
    finished = threading.Event()
    failures: list[Exception] = []
    # TLS takes over the socket; its duplicate still refers to the same connection.
    with sock.dup() as duplicate:

        def watch() -> None:
            try:
                while not finished.wait(deadline.step_s()):
                    deadline.extend()
            except Exception as failure:  # Also an error of the policy: without this thread, no deadline is left.
                failures.append(failure)
                with suppress(OSError):
                    duplicate.shutdown(socket.SHUT_RDWR)

        watcher = threading.Thread(target=watch, name="deadline", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            finished.set()
            watcher.join()
            if failures:
                raise failures[0]


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
