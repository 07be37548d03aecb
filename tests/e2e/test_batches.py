"""Batches on the deployed stack: workers run the items, and a client waits for the batch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.harness import Client, eventually

pytestmark = pytest.mark.timeout(180)

ITEMS = 25
BAD = 7


def work(client: Client, queue: str, batch_id: str) -> Iterator[int]:
    """Claim and finish items until their batch has ended; return the numbers in their payloads."""
    deadline = time.monotonic() + 90
    while client.get(f"/v1/jobs/{batch_id}")["finished_at"] is None:
        assert time.monotonic() < deadline, "the batch does not end"
        for job in client.post(f"/v1/queues/{queue}/claim", {"max": 10}, prefer="wait=1")["jobs"]:
            number = job["payload"]["n"]
            token = {"lease_token": job["lease_token"]}
            if number == BAD:
                client.fail(job["job_id"], **token)
            elif client.post(f"/v1/jobs/{job['job_id']}/heartbeat", token)["cancel_requested"]:
                client.fail(job["job_id"], "STOPPED", **token)
            else:
                client.complete(job["job_id"], result={"doubled": 2 * number}, **token)
            yield number


def ended(client: Client, batch_id: str) -> Any:
    """Return the batch once it has ended."""
    return eventually(lambda: (job := client.get(f"/v1/jobs/{batch_id}"))["finished_at"] and job, within_s=60)


@pytest.mark.parametrize(
    ("mode", "status"), [("continue", "failed"), ("collect", "completed"), ("fail_fast", "failed")]
)
def test_workers_run_batch_items_and_a_wait_ends_with_the_batch(client: Client, mode: str, status: str) -> None:
    payloads = [{"n": number} for number in range(ITEMS)]
    batch_id = client.job(queue=mode, batch=payloads, on_item_failure=mode, name="nightly", tags=["night"])
    waiting = client.wait({batch_id: None})
    done = list(work(client, mode, batch_id))
    assert client.ended(waiting, within_s=60)["waited_jobs"] == {
        batch_id: {"job_stage": "complete" if status == "completed" else "incomplete"}
    }
    batch = ended(client, batch_id)
    assert (batch["status"], batch["name"], batch["batch_id"]) == (status, "nightly", None)
    entries = batch["result"]
    assert [entry["index"] for entry in entries] == list(range(ITEMS))
    assert (entries[BAD]["status"], entries[BAD]["error"]["code"]) == ("failed", "BROKEN")
    for entry in entries[:BAD] + entries[BAD + 1 :]:
        doubled = {"doubled": 2 * entry["index"]}
        assert (entry["status"], entry["result"]) in {"cancelled": [("cancelled", None)]}.get(
            entry["status"], [("completed", doubled)]
        )
    if mode == "fail_fast":
        assert BAD in done
    else:
        assert sorted(done) == list(range(ITEMS)), "each item once"
        assert [entry["status"] for entry in entries].count("completed") == ITEMS - 1
    item = client.get(f"/v1/jobs/{entries[3]['job_id']}")
    assert (item["batch_id"], item["payload"], item["tags"]) == (batch_id, {"n": 3}, ["night"])
    listed = client.get(f"/v1/jobs?batch_id={batch_id}")["jobs"]
    assert {job["job_id"] for job in listed} == {entry["job_id"] for entry in entries}


def test_fail_fast_batch_cancels_items_that_have_not_started(client: Client) -> None:
    batch_id = client.job(queue="fast", batch=[{"n": n} for n in range(ITEMS)], on_item_failure="fail_fast")
    (job,) = client.post("/v1/queues/fast/claim", {"max": 1}, prefer="wait=10")["jobs"]
    client.fail(job["job_id"], lease_token=job["lease_token"])
    batch = ended(client, batch_id)
    error = batch["error"]
    assert (error["code"], error["message"]) == ("ITEMS_FAILED", "25 of 25 items did not complete")
    assert [entry["status"] for entry in batch["result"]].count("cancelled") == ITEMS - 1
    assert client.post("/v1/queues/fast/claim", {}, prefer="wait=0")["jobs"] == []
    again = client.post(f"/v1/jobs/{batch_id}/retry")
    assert (again["status"], again["attempt"], again["result"]) == ("pending", 2, None)
    (job,) = client.post("/v1/queues/fast/claim", {"max": 1}, prefer="wait=10")["jobs"]
    assert job["batch_id"] == batch_id
    assert client.post(f"/v1/jobs/{batch_id}/cancel", status=202)["cancel_requested"]
    client.fail(job["job_id"], lease_token=job["lease_token"])
    assert ended(client, batch_id)["status"] == "cancelled"
