"""Payloads and results that are too large for a row, over HTTP."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.support.api import BODIES, SOME_ID, Client
from tests.support.table import aws
from vigil_core import wiring
from vigil_core.gateways.payload_bucket import PayloadBucket, RetentionClass

MB = 1024 * 1024


def object_names() -> list[str]:
    """Return the names of all objects in the bucket."""
    return [each["Key"] for each in aws("s3").list_objects_v2(Bucket=BODIES).get("Contents", [])]


def object_tags(name: str) -> dict[str, str]:
    tag_set = aws("s3").get_object_tagging(Bucket=BODIES, Key=name)["TagSet"]
    return {each["Key"]: each["Value"] for each in tag_set}


def upload(client: Client, content: bytes, namespace: str = "demo") -> str:
    """Upload content to the location that the API returns, and return its reference."""
    offered = client.post("/v1/uploads", {"size": len(content)}).ok(201)
    aws("s3").put_object(Bucket=BODIES, Key=f"uploads/{namespace}/{offered['reference']}", Body=content)
    return str(offered["reference"])


def test_large_payload_and_result_are_in_every_response(client: Client) -> None:
    payload, result = {"text": "ä" * (MB // 2)}, ["y" * MB]
    job = client.create(payload=payload)
    assert job["payload"] == payload
    path = f"/v1/jobs/{job['job_id']}"
    assert client.post(f"{path}/start").ok()["payload"] == payload
    completed = client.post(f"{path}/complete", {"result": result}).ok()
    assert (completed["payload"], completed["result"]) == (payload, result)
    assert client.get(path).ok()["result"] == result
    assert client.get(f"{path}/result").ok()["result"] == result
    assert "payload_url" not in completed
    assert [object_tags(name) for name in object_names()] == [{"retention": "ended"}] * 2


def test_claim_response_has_urls_for_payloads_over_its_limit(client: Client) -> None:
    for _ in range(3):
        client.create(payload="x" * (2 * MB - 2))
    jobs = client.post("/v1/queues/default/claim", {"max": 10}).ok()["jobs"]
    assert [job["payload"] is not None for job in jobs] == [True, False, False]
    assert ["payload_url" in job for job in jobs] == [False, True, True]
    url = urlsplit(jobs[1]["payload_url"])
    assert f"/payloads/demo/{jobs[1]['job_id']}/P/" in url.path
    assert "X-Amz-Signature" in parse_qs(url.query)


@pytest.mark.parametrize("part", ["payload", "fallback"])
def test_more_than_2_mb_is_refused_inline(client: Client, part: str) -> None:
    reply = client.post("/v1/jobs", {"job_type": "t", part: "x" * (2 * MB - 1)})
    assert f"/{part}" in reply.problem(413, "PAYLOAD_TOO_LARGE")["message"]
    assert object_names() == []


def test_upload_url_is_signed_for_size_and_namespace(client: Client) -> None:
    offered = client.post("/v1/uploads", {"size": 3 * MB}).ok(201)
    url = urlsplit(offered["url"])
    assert url.path.endswith(f"/uploads/demo/{offered['reference']}")
    query = parse_qs(url.query)
    assert "content-length" in query["X-Amz-SignedHeaders"][0].split(";")
    assert query["X-Amz-Expires"] == ["3600"]


def test_signed_urls_use_the_regional_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    wiring.s3.cache_clear()
    try:
        bucket = PayloadBucket(wiring.s3, "bucket")
        for url in (bucket.url("key"), bucket.upload_url("key", 1)):
            assert url.startswith("https://s3.eu-central-1.amazonaws.com/bucket/key?X-Amz-Algorithm=AWS4-HMAC-SHA256&")
    finally:
        wiring.s3.cache_clear()


@pytest.mark.parametrize("retention_class", ["open", "ended", "long"])
def test_object_is_tagged_with_its_retention_class(client: Client, retention_class: RetentionClass) -> None:
    bucket = PayloadBucket(wiring.s3, BODIES)
    expected = {} if retention_class == "long" else {"retention": retention_class}
    bucket.put("one", "text", retention_class=retention_class)
    assert object_tags("one") == expected
    bucket.put("two", "text", retention_class="open")
    bucket.renew("two", retention_class=retention_class)
    assert (object_tags("two"), bucket.get("two")) == (expected, "text")
    bucket.renew("three", retention_class=retention_class, source="two")
    assert (object_tags("three"), bucket.size("three")) == (expected, 4)
    bucket.renew("absent", retention_class=retention_class)
    bucket.remove(["one", "two", "absent"])
    assert (bucket.get("one"), bucket.size("two"), object_names()) == (None, None, ["three"])


def test_upload_is_accepted_as_payload_and_as_result(client: Client) -> None:
    job = client.create(payload_ref=upload(client, b"not {json"))
    path = f"/v1/jobs/{job['job_id']}"
    assert job["payload"] is None
    assert job["payload_url"]
    client.post(f"{path}/start").ok()
    completed = client.post(f"{path}/complete", {"result_ref": upload(client, b"[1]")}).ok()
    assert (completed["payload"], completed["result"]) == (None, None)
    assert {"payload_url", "result_url"} <= completed.keys()
    answer = client.get(f"{path}/result").ok()
    assert (answer["result"], "result_url" in answer, "payload_url" in answer) == (None, True, False)


def test_repeated_creation_with_an_upload_creates_one_job(client: Client) -> None:
    body = {"job_type": "t", "payload_ref": upload(client, b"[1]")}
    first, repeated = (client.post("/v1/jobs", body, headers={"idempotency-key": "k"}).ok(202) for _ in range(2))
    assert first == repeated


def test_repeated_upload_request_with_one_key_returns_one_reference(client: Client) -> None:
    def ask(size: int = 5, *, key: str | None = None) -> Any:
        return client.post("/v1/uploads", {"size": size}, headers={"idempotency-key": key} if key else {})

    first, repeated = ask(key="k").ok(201), ask(key="k").ok(201)
    assert first["reference"] == repeated["reference"]
    assert len({ask().ok(201)["reference"], ask().ok(201)["reference"], first["reference"]}) == 3
    ask(6, key="k").problem(422, "IDEMPOTENCY_KEY_REUSED")


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"payload_ref": SOME_ID}, "/payload_ref"),
    ({"payload_ref": "absent"}, "/payload_ref"),
    ({"payload_ref": "../other"}, "/payload_ref"),
    ({"payload_ref": SOME_ID, "payload": 1}, "/payload_ref"),
]


@pytest.mark.parametrize(("part", "pointer"), WRONG)
def test_invalid_upload_reference_is_refused(client: Client, part: dict[str, Any], pointer: str) -> None:
    assert client.post("/v1/jobs", {"job_type": "t", **part}).pointers() == [pointer]
    job = client.running()
    ref = {name.replace("payload", "result"): value for name, value in part.items()}
    reply = client.post(f"/v1/jobs/{job['job_id']}/complete", ref)
    assert reply.pointers() == [pointer.replace("payload", "result")]


def test_upload_of_another_namespace_is_not_found(client: Client) -> None:
    foreign_reference = upload(Client(namespace="other"), b"[1]", namespace="other")
    assert client.post("/v1/jobs", {"job_type": "t", "payload_ref": foreign_reference}).pointers() == ["/payload_ref"]


def test_type_with_payload_schema_refuses_an_upload(client: Client) -> None:
    client.call("PUT", "/v1/job-types/checked", {"payload_schema": {"type": "object"}}).ok(201)
    reply = client.post("/v1/jobs", {"job_type": "checked", "payload_ref": upload(client, b"{}")})
    assert reply.pointers() == ["/payload_ref"]


@pytest.mark.parametrize("size", [0, -1, 100 * MB + 1, 10**30, "1", 1.5, None])
def test_invalid_upload_size_is_refused(client: Client, size: object) -> None:
    assert client.post("/v1/uploads", {"size": size}).pointers() == ["/size"]


@pytest.mark.parametrize(("scopes", "status"), [("read", 403), ("submit", 201), ("work", 201)])
def test_upload_requires_submit_or_work_scope(client: Client, scopes: str, status: int) -> None:
    assert Client(scopes=scopes).post("/v1/uploads", {"size": 1}).status == status
