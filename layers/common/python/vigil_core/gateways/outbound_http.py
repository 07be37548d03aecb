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
from vigil_core.domain.outbound_policy import Target, check_addresses, check_headers, parse_target

Resolve: TypeAlias = Callable[[str, int], Sequence[str]]
"""The addresses of a host, best first. Raises OSError."""

# It warns of odd headers, and names the URL, whose path or query may hold a secret.
logging.getLogger("urllib3.connection").setLevel(logging.ERROR)

_CHUNK = 64 * 1024
_UNKNOWN_NAME = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back. Header names are lower case. `truncated`: the body went on beyond the limit."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    truncated: bool = False


def system_addresses(host: str, port: int) -> list[str]:
    """What the system's resolver says."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class Outgoing:
    """`allowed` are the hosts, as `domain.targets.parse_allowed` makes them, that may be private and without TLS."""

    def __init__(
        self,
        allowed: Collection[str] = (),
        *,
        resolve: Resolve = system_addresses,
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
        max_answer_bytes: int,
    ) -> Answer:
        """Send one request; all of it takes at most `timeout_s`. Raises TargetRefused, TargetUnreachable."""
        check_headers(method, headers)
        target = parse_target(url, self._allowed)
        ends = self._monotonic() + timeout_s
        addresses = self._addresses(target, timeout_s)
        with _told_apart(target), self._connect(target, addresses, ends) as plain, _cut(plain, self._left(ends)):
            connection = self._connection(target, plain, timeout_s)
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
                return _read(connection.getresponse(), max_answer_bytes)
            finally:
                connection.close()

    def _addresses(self, target: Target, timeout_s: float) -> Sequence[str]:
        """What the host stands for, all of it permitted. A resolver that does not answer is left behind."""
        answer: SimpleQueue[Sequence[str] | OSError | UnicodeError] = SimpleQueue()

        def look() -> None:
            try:
                answer.put(self._resolve(target.host, target.port))
            except (OSError, UnicodeError) as error:
                answer.put(error)

        threading.Thread(target=look, name="resolve", daemon=True).start()
        try:
            found = answer.get(timeout=timeout_s)
        except Empty:
            raise TargetUnreachable("The name of the host was not resolved in time") from None
        if isinstance(found, UnicodeError) or (isinstance(found, OSError) and found.errno in _UNKNOWN_NAME):
            raise TargetRefused("There is no host of this name") from found
        if isinstance(found, OSError) or not found:
            raise TargetUnreachable("The name of the host could not be resolved")
        check_addresses(map(ip_address, found), exempt=target.exempt)
        return found

    def _connect(self, target: Target, addresses: Sequence[str], ends: float) -> socket.socket:
        """A connection to the first address that takes one; each has its share of the time."""
        for left in range(len(addresses), 1, -1):
            address = addresses[-left]
            with suppress(OSError):
                return socket.create_connection((address, target.port), timeout=self._left(ends) / left)
        return socket.create_connection((addresses[-1], target.port), timeout=self._left(ends))

    def _connection(self, target: Target, plain: socket.socket, timeout_s: float) -> HTTPConnection:
        """HTTP over a socket that is connected already."""
        if target.scheme == "http":
            connection = HTTPConnection(target.host, target.port, timeout=timeout_s)
            connection.sock = plain
            return connection
        if self._tls is None:
            self._tls = self._make_tls()
        secure = HTTPSConnection(target.host, target.port, timeout=timeout_s)
        # The name of the URL is what the certificate has to be for, whatever the address.
        secure.sock = self._tls.wrap_socket(plain, server_hostname=target.host)
        return secure

    def _left(self, ends: float) -> float:
        left = ends - self._monotonic()
        if left <= 0:
            raise TimeoutError
        return left


@contextmanager
def _cut(plain: socket.socket, after_s: float) -> Iterator[None]:
    """Cuts a connection when its time is up, whatever it is in the middle of: a socket's own timeout begins anew with
    every byte. Raises TimeoutError then, though it look like the end of an answer."""
    cut = threading.Event()
    # A duplicate: TLS takes the socket over, and this one still is the same connection.
    with plain.dup() as watched:

        def cut_off() -> None:
            cut.set()
            with suppress(OSError):
                watched.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(after_s, cut_off)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()
            if cut.is_set():
                raise TimeoutError


def _read(response: BaseHTTPResponse, most: int) -> Answer:
    body = bytearray()
    while len(body) <= most and (chunk := response.read(min(_CHUNK, most + 1 - len(body)), decode_content=False)):
        body += chunk
    return Answer(
        status=response.status,
        headers={name.lower(): response.headers[name] for name in response.headers},
        body=bytes(body[:most]),
        truncated=len(body) > most,
    )


@contextmanager
def _told_apart(target: Target) -> Iterator[None]:
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
