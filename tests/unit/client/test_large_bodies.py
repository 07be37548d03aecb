"""The client with payloads and results that exceed a request or a response."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from vigil.client import Vigil, VigilError

LARGE = "x" * (2 * 1024 * 1024)
JOB = "01980c4e-5a00-7c3b-9e21-3f6b0a1d2c4e"
URL = "https://store.example/object?signed"


class Store:
    """An object store that fails a number of times, and an API of uploads and one job."""

    def __init__(self, failures: int = 0, content: bytes = b"") -> None:
        self.failures = failures
        self.content = content
        self.requests: list[httpx.Request] = []
        self.api_requests: list[Any] = []

    def store(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        assert str(request.url) == URL
        assert "authorization" not in request.headers, "the store refuses what has two kinds of proof"
        if self.failures:
            self.failures -= 1
            return httpx.Response(503)
        if request.method == "PUT":
            self.content = request.content
        return httpx.Response(200, content=self.content)

    def api(self, request: httpx.Request) -> httpx.Response:
        body: Any = json.loads(request.content) if request.content else None
        self.api_requests.append(body)
        if request.url.path == "/v1/uploads":
            return httpx.Response(201, json={"reference": "r1", "url": URL, **body})
        job = {"job_id": JOB, "job_type": "t", "scheduled_at": None, "payload": None, "payload_url": URL}
        return httpx.Response(200, json=job)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def client(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vigil]:
    with Vigil("http://localhost:1", "vgl_key", backoff_s=0.001, retries=2) as made:
        for name, answers in (("_http", store.api), ("_store", store.store)):
            getattr(made._transport, name).close()
            headers = {"authorization": "Bearer vgl_key"} if name == "_http" else {}
            transport = httpx.MockTransport(answers)
            base_url = "http://localhost:1" if name == "_http" else ""
            monkeypatch.setattr(
                made._transport, name, httpx.Client(transport=transport, headers=headers, base_url=base_url)
            )
        yield made


def test_large_payload_is_uploaded(client: Vigil, store: Store) -> None:
    client.submit("t", LARGE)
    (upload, created) = store.api_requests
    assert upload == {"size": len(LARGE) + 2}
    assert (created["payload_ref"], "payload" in created) == ("r1", False)
    assert json.loads(store.content) == LARGE


def test_small_payload_is_sent_inline(client: Vigil, store: Store) -> None:
    client.submit("t", LARGE[:-2])
    assert [told["payload"] == LARGE[:-2] for told in store.api_requests] == [True]
    assert store.requests == []


def test_payload_url_is_downloaded(client: Vigil, store: Store) -> None:
    store.content, store.failures = b'{"a": 1}', 2
    job = client.job(JOB)
    assert job["payload"] == {"a": 1}
    assert "payload_url" not in job
    assert len(store.requests) == 3


def test_download_that_fails_repeatedly_raises(client: Vigil, store: Store) -> None:
    store.failures = 10
    with pytest.raises(VigilError, match="HTTP 503"):
        client.job(JOB)
    assert len(store.requests) == 3


def test_downloaded_payload_that_is_not_json_raises(client: Vigil, store: Store) -> None:
    store.content = b"not {json"
    with pytest.raises(VigilError, match="not JSON"):
        client.job(JOB)
