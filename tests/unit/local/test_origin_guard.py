"""Web pages cannot reach the AWS APIs of the emulator: the rule as a matrix, and its two protocols."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import pytest

from vigil.local.origin_guard import Message, OriginRule, guard

LISTEN = "172.17.0.1"
API = "/_aws/execute-api/a1b2c3d4/v1/jobs"

HOSTS = {
    "localhost:4566": "own",
    "LOCALHOST": "own",
    "127.0.0.1:4566": "own",
    "127.8.9.10:4566": "own",
    "[::1]:4566": "own",
    f"{LISTEN}:4566": "own",
    "bucket.s3.localhost:4566": "below",
    "rebind.evil.example": "foreign",
    "evil.example:4566": "foreign",
    "localhost.evil.example": "foreign",
    "127.0.0.1.evil.example": "foreign",
    "evil-localhost": "foreign",
    "192.168.1.7:4566": "foreign",
    "localhost@evil.example": "foreign",
    "localhost/evil": "foreign",
    "": "foreign",
    "[": "foreign",
}
ORIGINS = {
    None: "own",
    "http://localhost:3000": "own",
    "https://127.0.0.1": "own",
    "http://[::1]:8080": "own",
    f"http://{LISTEN}:4566": "own",
    "https://evil.example": "foreign",
    "http://localhost.evil.example": "foreign",
    "http://bucket.s3.localhost:4566": "foreign",
    "null": "foreign",
    "": "foreign",
    "file://": "foreign",
    "chrome-extension://localhost": "foreign",
    "http://localhost@evil.example": "foreign",
}
SITES = {
    None: "own",
    "same-origin": "own",
    "same-site": "own",
    "none": "own",
    "cross-site": "foreign",
    "Cross-Site": "foreign",
    "": "foreign",
}
PATHS = {
    API: "api",
    "/_aws/execute-api/a1b2c3d4/": "api",
    "/2015-03-31/functions": "aws",
    "/": "aws",
    "/_ministack/health": "aws",
    "/_aws/execute-api/": "aws",
    "/_aws/execute-api/a1b2c3d4": "aws",
    "/_aws/execute-api//v1": "aws",
    "/_aws/execute-api/a1b2c3d4/live/@connections/x": "aws",
    "/x/_aws/execute-api/a1b2c3d4/v1": "aws",
    "/_AWS/execute-api/a1b2c3d4/v1": "aws",
}


def headers_of(**values: str | None) -> list[tuple[bytes, bytes]]:
    return [
        (name.replace("_", "-").encode(), value.encode("latin-1"))
        for name, value in values.items()
        if value is not None
    ]


@pytest.mark.parametrize("path", PATHS)
def test_only_paths_of_an_api_accept_requests_of_foreign_pages(path: str) -> None:
    rule = OriginRule([LISTEN])
    for host, origin, site in itertools.product(HOSTS, ORIGINS, SITES):
        from_api_host = PATHS[path] == "api" and HOSTS[host] == "own"
        is_own = HOSTS[host] != "foreign" and ORIGINS[origin] == "own" and SITES[site] == "own"
        refusal = rule.refusal(path, headers_of(Host=host, Origin=origin, Sec_Fetch_Site=site))
        assert (refusal is None) == (from_api_host or is_own), (host, origin, site, refusal)


def test_each_of_several_values_counts() -> None:
    rule = OriginRule()
    own = (b"host", b"localhost")
    assert rule.refusal("/", [own, (b"origin", b"http://localhost"), (b"Origin", b"https://evil.example")])
    assert rule.refusal("/", [own, (b"host", b"evil.example")])
    assert rule.refusal(API, [own, own])
    assert rule.refusal("/", [])


def test_wildcard_address_allows_every_address_and_no_name() -> None:
    rule = OriginRule(["0.0.0.0"])
    assert rule.refusal("/", headers_of(host="192.168.1.7:4566")) is None
    assert rule.refusal("/", headers_of(host="evil.example"))


def exchange(scope: dict[str, Any]) -> tuple[list[Message], bool]:
    """Return what the guarded application sends, and whether the request reached the inner one."""
    sent: list[Message] = []
    reached = False

    async def inner(_scope: Message, _receive: Any, _send: Any) -> None:
        nonlocal reached
        reached = True

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(guard(inner, OriginRule())(scope, receive, send))
    return sent, reached


def test_refused_request_is_answered_with_403_and_its_reason() -> None:
    headers = headers_of(host="localhost", origin="https://evil.example")
    sent, reached = exchange({"type": "http", "path": "/", "headers": headers})
    assert not reached
    assert sent[0]["status"] == 403
    assert "Origin" in json.loads(sent[1]["body"])["message"]


@pytest.mark.parametrize(("path", "expected"), [("/", False), (API, True)])
def test_websocket_of_a_foreign_page_is_closed_before_it_is_accepted(path: str, expected: bool) -> None:
    headers = headers_of(host="localhost", origin="https://evil.example")
    sent, reached = exchange({"type": "websocket", "path": path, "headers": headers})
    assert reached is expected
    assert [message["type"] for message in sent] == ([] if expected else ["websocket.close"])


def test_lifespan_passes() -> None:
    assert exchange({"type": "lifespan"}) == ([], True)
