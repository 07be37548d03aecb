"""Payloads and results that exceed a row, from creation to the response of a wait."""

from __future__ import annotations

import json

import httpx

from tests.e2e.harness import Aws, Client, Key, eventually, problem
from vigil.client import Vigil
from vigil.local import Stack

MB = 1024 * 1024


def objects(aws: Aws, key: Key) -> list[str]:
    """Return the objects of a namespace."""
    listed = aws.buckets.list_objects_v2(Bucket=aws.bodies_bucket, Prefix=f"payloads/{key.namespace}/")
    return [each["Key"] for each in listed.get("Contents", [])]


def retention_classes(aws: Aws, key: Key) -> list[str]:
    """Return the retention tag of each object."""
    found = [aws.buckets.get_object_tagging(Bucket=aws.bodies_bucket, Key=name)["TagSet"] for name in objects(aws, key)]
    return [tag["Value"] for tags in found for tag in tags]


def test_one_megabyte_payload_and_result_pass_through_queue_and_wait(aws: Aws, client: Client, key: Key) -> None:
    payload, result = {"text": "p" * MB}, {"text": "r" * MB}
    job_id = client.job(queue="large", payload=payload)
    waiting = client.wait({job_id: {"job_health": "success"}}, get_fields={"result": None})
    (claimed,) = client.post("/v1/queues/large/claim", {}, prefer="wait=10")["jobs"]
    assert claimed["payload"] == payload
    assert retention_classes(aws, key) == ["open"]
    client.complete(job_id, result=result, lease_token=claimed["lease_token"])
    met = client.ended(waiting)
    assert met["status"] == "met"
    assert met["waited_jobs"][job_id]["result"].startswith('{"text":"rrr')
    job = client.get(f"/v1/jobs/{job_id}")
    assert (job["payload"], job["result"]) == (payload, result)
    assert retention_classes(aws, key) == ["ended", "ended"]
    assert client.call("DELETE", f"/v1/jobs/{job_id}").status_code == 204
    eventually(lambda: not objects(aws, key), what="removed with the job")


def test_payload_over_the_request_limit_is_uploaded_and_downloaded_by_url(aws: Aws, client: Client) -> None:
    content = json.dumps({"text": "u" * (3 * MB)}).encode()
    problem(client.call("POST", "/v1/jobs", {"job_type": "t", "payload": "x" * (2 * MB)}), 413, "PAYLOAD_TOO_LARGE")
    offered = client.post("/v1/uploads", {"size": len(content)}, status=201)
    with httpx.Client(trust_env=False, timeout=30) as store:
        assert store.put(offered["url"], content=content[:-1]).status_code == 403, "another size"
        assert store.put(offered["url"], content=content).status_code == 200
        assert store.get(offered["url"]).status_code == 403, "only to put it there"
        job = client.post("/v1/jobs", {"job_type": "t", "payload_ref": offered["reference"]}, status=202)
        assert job["payload"] is None
        assert store.get(client.get(f"/v1/jobs/{job['job_id']}")["payload_url"]).content == content
        assert store.get(job["payload_url"].partition("?")[0]).status_code == 403, "the bucket is closed"


def test_client_transfers_payloads_and_results_of_any_size(stack: Stack, key: Key) -> None:
    payload, result = {"text": "p" * (5 * MB)}, ["r" * (4 * MB)]
    with Vigil(stack.api_url, key.token) as vigil:
        job_id = vigil.submit("t", payload, queue="any").job_id
        (claimed,) = vigil.claim("any", wait=10)
        assert claimed["payload"] == payload
        vigil.complete(job_id, result, lease_token=claimed["lease_token"])
        assert vigil.result(job_id) == result
        assert vigil.job(job_id)["payload"] == payload
