"""The outbound HTTP client against local servers with real sockets, real TLS, and host names that a test resolves."""

from __future__ import annotations

import datetime as dt
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from vigil_core.domain.errors import TargetRefused, TargetUnreachable
from vigil_core.domain.outbound_policy import RequestInterrupted, SlowRequestPolicy
from vigil_core.gateways.outbound_http import HttpResponse, OutboundHttpClient

Serve = Callable[[socket.socket, bytes], None]


class Server:
    """Server that accepts one connection at a time and passes it to `serve`, with the head and body of the request."""

    def __init__(self, serve: Serve, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[bytes] = []
        self._serve = serve
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                return
            try:
                with self._tls.wrap_socket(accepted, server_side=True) if self._tls else accepted as connection:
                    self._handle(connection)
            except OSError:
                continue

    def _handle(self, connection: socket.socket) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            if not (part := connection.recv(65536)):
                return
            request += part
        head, _, body = request.partition(b"\r\n\r\n")
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                while len(body) < int(line.partition(b":")[2]):
                    body += connection.recv(65536)
        self.requests.append(head + b"\r\n\r\n" + body)
        self._serve(connection, request)


@contextmanager
def serving(serve: Serve, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    server = Server(serve, tls)
    try:
        yield server
    finally:
        server.close()


def responding_with(text: bytes) -> Serve:
    return lambda connection, _: connection.sendall(text)


OK = responding_with(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-One: 1\r\nX-One: 2\r\n\r\nok")


def ask(
    outgoing: OutboundHttpClient, url: str, *, method: str = "POST", timeout_s: float = 5, max_answer_bytes: int = 1000
) -> HttpResponse:
    return outgoing.request(
        method, url, headers={"X-Told": "yes"}, body=b"hello", timeout_s=timeout_s, max_response_bytes=max_answer_bytes
    )


def resolve_to_localhost(*names: str) -> Callable[[str, int], Sequence[str]]:
    return lambda host, _: ["127.0.0.1"] if host in names else []


def test_request_to_an_allowed_host_returns_its_response() -> None:
    with serving(OK) as server:
        answer = ask(OutboundHttpClient({f"localhost:{server.port}"}), f"http://localhost:{server.port}/in?a=b")
    assert answer == HttpResponse(status=200, headers={"content-length": "2", "x-one": "1, 2"}, body=b"ok")
    (request,) = server.requests
    head, _, body = request.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /in?a=b HTTP/1.1\r\n")
    assert f"Host: localhost:{server.port}".encode() in head
    assert b"X-Told: yes" in head
    assert b"Accept-Encoding: identity" in head
    assert body == b"hello"


def test_private_host_is_refused_without_a_request() -> None:
    with serving(OK) as server:
        for host in ("localhost", "127.0.0.1", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]"):
            with pytest.raises(TargetRefused):
                ask(OutboundHttpClient(), f"https://{host}:{server.port}/")
    assert server.requests == []


def test_host_with_one_private_address_is_refused() -> None:
    http_client = OutboundHttpClient(resolve=lambda *_: ["1.1.1.1", "169.254.169.254"])
    with pytest.raises(TargetRefused, match="not public"):
        ask(http_client, "https://two-faced.example/")


def test_host_is_resolved_once_and_only_those_addresses_are_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that a host is resolved once. With DNS rebinding, a second lookup returns a private address."""
    lookups = iter([["1.1.1.1", "1.0.0.1"]])
    tried: list[tuple[str, int]] = []

    def refuse(address: tuple[str, int], timeout: float) -> socket.socket:
        tried.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(TargetUnreachable, match="refused"):
        ask(OutboundHttpClient(resolve=lambda *_: next(lookups)), "https://rebinding.example:444/")
    assert tried == [("1.1.1.1", 444), ("1.0.0.1", 444)]


def test_next_address_is_tried_after_a_refused_connection() -> None:
    with serving(OK) as server:
        outgoing = OutboundHttpClient({"two.example"}, resolve=lambda *_: ["127.0.0.2", "127.0.0.1"])
        assert ask(outgoing, f"http://two.example:{server.port}/").body == b"ok"


def test_redirect_is_returned_and_not_followed() -> None:
    with serving(
        responding_with(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\nContent-Length: 0\r\n\r\n")
    ) as server:
        answer = ask(OutboundHttpClient({"localhost"}), f"http://localhost:{server.port}/")
    assert (answer.status, answer.headers["location"]) == (302, "http://127.0.0.1/")
    assert len(server.requests) == 1


def test_proxy_variables_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(responding_with(b"HTTP/1.1 500 Proxy\r\nContent-Length: 0\r\n\r\n")) as proxy, serving(OK) as server:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert ask(OutboundHttpClient({"localhost"}), f"http://localhost:{server.port}/").status == 200
    assert proxy.requests == []


@pytest.mark.parametrize(
    ("size", "received_size", "truncated"), [(999, 999, False), (1000, 1000, False), (1001, 1000, True)]
)
def test_response_body_is_truncated_at_its_limit(size: int, received_size: int, truncated: bool) -> None:
    with serving(responding_with(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)) as server:
        answer = ask(OutboundHttpClient({"localhost"}), f"http://localhost:{server.port}/")
    assert (len(answer.body), answer.truncated) == (received_size, truncated)


def test_endless_response_is_truncated_at_its_limit() -> None:
    def pour(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b"x" * 65536)

    with serving(pour) as server:
        assert ask(OutboundHttpClient({"localhost"}), f"http://localhost:{server.port}/").truncated


def drip_response(beginning: bytes) -> Serve:
    """Send bytes often enough that the socket timeout never applies."""

    def serve(connection: socket.socket, _: bytes) -> None:
        connection.sendall(beginning)
        while True:
            time.sleep(0.05)
            connection.sendall(b"x")

    return serve


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nX-Header: ",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n",
    ],
)
def test_slow_response_fails_at_the_total_timeout(beginning: bytes) -> None:
    with serving(drip_response(beginning)) as server:
        started_at = time.monotonic()
        with pytest.raises(TargetUnreachable, match="in time"):
            ask(OutboundHttpClient({"localhost"}), f"http://localhost:{server.port}/", timeout_s=0.4)
        assert time.monotonic() - started_at < 3


def test_slow_tls_handshake_fails_at_the_timeout() -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        connection, _ = listener.accept()
        with connection:
            try:
                connection.sendall(b"\x16\x03\x03\x20\x00")
                while True:
                    time.sleep(0.05)
                    connection.sendall(b"\x00")
            except OSError:
                return

    threading.Thread(target=run, daemon=True).start()
    with listener, pytest.raises(TargetUnreachable):
        ask(OutboundHttpClient({"localhost"}), f"https://localhost:{listener.getsockname()[1]}/", timeout_s=0.4)


def test_slow_resolver_fails_at_the_timeout() -> None:
    never = threading.Event()

    def wait(host: str, port: int) -> list[str]:
        never.wait(5)
        return []

    with pytest.raises(TargetUnreachable, match="not resolved in time"):
        ask(OutboundHttpClient(resolve=wait), "https://slow.example/", timeout_s=0.2)
    never.set()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (socket.gaierror(socket.EAI_NONAME, "unknown"), TargetRefused),
        (socket.gaierror(socket.EAI_AGAIN, "later"), TargetUnreachable),
        (UnicodeError("label too long"), TargetRefused),
    ],
)
def test_unresolvable_host_is_refused_or_unreachable(error: Exception, kind: type[Exception]) -> None:
    def fail(host: str, port: int) -> list[str]:
        raise error

    with pytest.raises(kind):
        ask(OutboundHttpClient(resolve=fail), "https://nowhere.example/")


def test_closed_port_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(TargetUnreachable, match="refused"):
        ask(OutboundHttpClient({"localhost"}), f"http://localhost:{port}/")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000,
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
    ],
)
def test_invalid_http_response_is_unreachable(text: bytes) -> None:
    with serving(responding_with(text)) as server, pytest.raises(TargetUnreachable):
        ask(OutboundHttpClient({"localhost"}), f"http://localhost:{server.port}/")


def test_malformed_headers_do_not_log_the_url(caplog: pytest.LogCaptureFixture) -> None:
    """Check that urllib3's warning is not logged: its URL may contain a secret in the path."""
    with serving(responding_with(b"HTTP/1.1 200 OK\r\nno colon here\r\nContent-Length: 0\r\n\r\n")) as server:
        ask(OutboundHttpClient({"localhost"}), f"http://localhost:{server.port}/hooks/s3cret")
    assert "s3cret" not in caplog.text


# TLS
@pytest.fixture(scope="module")
def tls(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], tuple[ssl.SSLContext, Callable[[], ssl.SSLContext]]]:
    """Return a factory of TLS contexts for a name or address.

    It makes a server context with a certificate for the name, and a client context that trusts this certificate.
    """
    directory = tmp_path_factory.mktemp("tls")

    def make(name: str) -> tuple[ssl.SSLContext, Callable[[], ssl.SSLContext]]:
        key_file, certificate_file = _certificate(directory, name)
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(certificate_file, key_file)
        return server, lambda: ssl.create_default_context(cafile=str(certificate_file))

    return make


def _certificate(directory: Path, name: str) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test")])
    now = dt.datetime.now(dt.UTC)
    try:
        named: x509.GeneralName = x509.IPAddress(ip_address(name))
    except ValueError:
        named = x509.DNSName(name)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([named]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    key_file, certificate_file = directory / f"{name}.key", directory / f"{name}.pem"
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return key_file, certificate_file


Tls = Callable[[str], tuple[ssl.SSLContext, Callable[[], ssl.SSLContext]]]


@pytest.mark.parametrize("name", ["hooks.example", "127.0.0.1"])
def test_certificate_for_the_host_of_the_url_is_accepted(name: str, tls: Tls) -> None:
    its_side, our_side = tls(name)
    asked_for: list[str | None] = []
    its_side.sni_callback = lambda _, server_name, __: asked_for.append(server_name)
    with serving(OK, its_side) as server:
        outgoing = OutboundHttpClient({name}, resolve=resolve_to_localhost(name), tls=our_side)
        assert ask(outgoing, f"https://{name}:{server.port}/").body == b"ok"
        assert asked_for == [name if name == "hooks.example" else None]


def test_certificate_for_another_host_is_refused(tls: Tls) -> None:
    its_side, our_side = tls("other.example")
    with serving(OK, its_side) as server:
        outgoing = OutboundHttpClient({"hooks.example"}, resolve=resolve_to_localhost("hooks.example"), tls=our_side)
        with pytest.raises(TargetUnreachable, match=r"certificate of hooks\.example"):
            ask(outgoing, f"https://hooks.example:{server.port}/")
    assert server.requests == []


def test_certificate_of_an_unknown_authority_is_refused(tls: Tls) -> None:
    its_side, _ = tls("hooks.example")
    with serving(OK, its_side) as server:
        outgoing = OutboundHttpClient({"hooks.example"}, resolve=resolve_to_localhost("hooks.example"))
        with pytest.raises(TargetUnreachable, match=r"certificate of hooks\.example"):
            ask(outgoing, f"https://hooks.example:{server.port}/")
    assert server.requests == []


def test_https_request_to_a_host_without_tls_is_unreachable(tls: Tls) -> None:
    with serving(OK) as server, pytest.raises(TargetUnreachable):
        ask(OutboundHttpClient({"localhost"}), f"https://localhost:{server.port}/", timeout_s=1)


class TestSlowRequestPolicy:
    @pytest.mark.parametrize("may_continue", [True, False])
    def test_slow_request_continues_only_if_it_may(self, may_continue: bool) -> None:
        questions: list[float] = []

        def decide() -> bool:
            questions.append(time.monotonic())
            return may_continue

        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(5)

            def answer() -> None:
                connection, _ = server.accept()
                with connection, suppress(OSError):
                    connection.recv(65_536)
                    time.sleep(0.5)
                    connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

            thread = threading.Thread(target=answer)
            thread.start()
            client = OutboundHttpClient({"127.0.0.1"})
            port, began = server.getsockname()[1], time.monotonic()

            def request() -> int:
                return client.request(
                    "POST",
                    f"http://127.0.0.1:{port}/",
                    headers={},
                    body=b"{}",
                    timeout_s=5,
                    max_response_bytes=100,
                    slow_policy=SlowRequestPolicy(slow_after_s=0.1, may_continue=decide),
                ).status

            if may_continue:
                assert request() == 204
            else:
                with pytest.raises(RequestInterrupted):
                    request()
                assert time.monotonic() - began < 0.45
            thread.join()
        assert len(questions) == 1

    def test_error_of_the_policy_ends_the_request(self) -> None:
        def decide() -> bool:
            raise RuntimeError("throttled")

        with socket.create_server(("127.0.0.1", 0)) as server:
            url = f"http://127.0.0.1:{server.getsockname()[1]}/"
            policy = SlowRequestPolicy(slow_after_s=0.1, may_continue=decide)
            began = time.monotonic()
            with pytest.raises((RuntimeError, TargetUnreachable)):
                OutboundHttpClient({"127.0.0.1"}).request(
                    "GET", url, headers={}, body=None, timeout_s=5, max_response_bytes=100, slow_policy=policy
                )
            assert time.monotonic() - began < 4
