"""Webhooks, received and verified with nothing but the specification and the secret."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.harness import Aws, Client, Key, body_of, eventually, problem
from tests.support.receiver import Receiver


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def deliveries(client: Client, name: str) -> list[Any]:
    found: list[Any] = client.get(f"/v1/webhooks/{name}/deliveries")["deliveries"]
    return found


def finished(client: Client, name: str, count: int = 1) -> list[Any]:
    """Return the deliveries once there are this many and no first attempt is pending."""

    def tried() -> list[Any] | None:
        found = deliveries(client, name)
        return found if len(found) == count and all(each["tries"] or each["error"] for each in found) else None

    return eventually(tried, what=f"{count} tried") or []


@pytest.mark.smoke
def test_webhook_receives_each_subscribed_event_once_and_signed(client: Client, receiver: Receiver) -> None:
    secret = client.put_webhook("ci", receiver, "vigil.job.completed", "vigil.wait.*")
    job, other = client.running(), client.running()
    wait_id = client.wait({job: None})["wait_id"]
    client.fail(other)
    client.complete(job)
    eventually(lambda: len(receiver.posts) >= 2, what="two messages")
    told = {post.event["type"]: post for post in receiver.posts}
    assert {event: post.event["subject"] for event, post in told.items()} == {
        "vigil.job.completed": job,
        "vigil.wait.met": wait_id,
    }
    for post in told.values():
        assert post.verifies(secret)
        assert not post.verifies("whsec_" + "A" * 43 + "=")
        assert (post.path, post.headers["content-type"]) == ("/in", "application/json")
    listed = {each["event_type"]: each for each in finished(client, "ci", 2)}
    assert {each["status"] for each in listed.values()} == {"delivered"}
    for event, post in told.items():
        assert listed[event]["delivery_id"] == post.headers["webhook-id"]
        assert listed[event]["event_id"] == post.event["id"]
        assert [tried["status"] for tried in listed[event]["tries"]] == [204]
    assert len(receiver.posts) == 2


def test_wait_notifies_the_webhook_address_in_its_options(client: Client, receiver: Receiver) -> None:
    job = client.running()
    body = {"wait_on": {job: None}, "wait_options": {"notify": {"webhook": receiver.url}}}
    refusal = problem(client.call("POST", "/v1/waits", body, prefer="wait=0"), 422, "VALIDATION_FAILED")
    assert "PUT /v1/webhooks/waits" in refusal["errors"][0]["detail"]
    secret = client.put_webhook("waits", None)
    wait = client.post("/v1/waits", body, prefer="wait=0")
    client.complete(job)
    (post,) = eventually(lambda: receiver.posts, what="the message")
    assert post.verifies(secret)
    assert (post.event["type"], post.event["subject"]) == ("vigil.wait.met", wait["wait_id"])
    assert post.event["data"]["waited_jobs"] == {job: {"job_stage": "complete"}}
    assert finished(client, "waits")[0]["status"] == "delivered"


def test_failed_delivery_is_listed_and_can_be_replayed(client: Client, receiver: Receiver) -> None:
    secret = client.put_webhook("ci", receiver, "vigil.job.completed")
    receiver.statuses.append(500)
    client.complete(client.running())
    (pending,) = finished(client, "ci")
    assert (pending["status"], [tried["status"] for tried in pending["tries"]]) == ("pending", [500])
    assert pending["next_try_at"] > pending["created_at"]
    client.post(f"/v1/webhooks/ci/deliveries/{pending['delivery_id']}/replay", status=202)
    eventually(lambda: deliveries(client, "ci")[0]["status"] == "delivered", what="delivered")
    first, second = receiver.posts
    assert first.headers["webhook-id"] == second.headers["webhook-id"] == pending["delivery_id"]
    assert first.body == second.body
    assert second.verifies(secret)


def test_410_from_the_receiver_disables_its_webhook(client: Client, receiver: Receiver) -> None:
    client.put_webhook("ci", receiver, "*")
    receiver.statuses.append(410)
    client.job()
    assert finished(client, "ci")[0]["status"] == "failed"
    disabled = client.get("/v1/webhooks/ci")
    assert (disabled["enabled"], disabled["disabled_because"]) == (
        False,
        "The receiver rejects further deliveries (410)",
    )
    assert body_of(client.call("PUT", "/v1/webhooks/ci", {"url": receiver.url, "events": ["vigil.job.*"]}))["enabled"]
    client.job()
    eventually(lambda: len(receiver.posts) == 2, what="told again")


def test_old_and_new_secret_both_sign_after_a_rotation(client: Client, receiver: Receiver) -> None:
    old = client.put_webhook("ci", receiver, "vigil.job.created")
    new = client.post("/v1/webhooks/ci/rotate-secret", {})["secret"]
    client.job()
    (post,) = eventually(lambda: receiver.posts, what="the message")
    assert post.verifies(old)
    assert post.verifies(new)


def test_private_webhook_addresses_are_refused_or_never_called(client: Client, receiver: Receiver) -> None:
    """Note: this deployment allows 127.0.0.1, but not its name."""
    port = receiver.url.rpartition(":")[2].removesuffix("/in")
    for url in (f"http://localhost:{port}/", f"https://[::1]:{port}/", "https://169.254.169.254/latest"):
        body = {"url": url, "events": ["*"]}
        refusal = problem(client.call("PUT", "/v1/webhooks/ci", body), 422, "VALIDATION_FAILED")
        assert refusal["errors"][0] == {**refusal["errors"][0], "pointer": "/url", "code": "TARGET_REFUSED"}
    # The resolved address of the name is checked at the time of the call.
    body_of(client.call("PUT", "/v1/webhooks/ci", {"url": f"https://2130706433:{port}/", "events": ["*"]}), 201)
    client.job()
    (refused,) = finished(client, "ci")
    assert [tried["status"] for tried in refused["tries"]] == [None]
    assert "an address that is not public" in refused["tries"][0]["error"]
    assert receiver.posts == []


def test_webhook_secret_is_not_logged(client: Client, aws: Aws, key: Key, receiver: Receiver) -> None:
    secret = client.put_webhook("ci", receiver, "vigil.job.created")
    client.job()
    eventually(lambda: receiver.posts, what="the message")
    finished(client, "ci")
    for function in ("api", "notifier", "webhooks"):
        group = f"/aws/lambda/{aws.stack.stack_name}-{function}"
        pages = aws.logs.get_paginator("filter_log_events").paginate(logGroupName=group)
        text = "\n".join(event["message"] for page in pages for event in page["events"])
        assert text
        assert secret.removeprefix("whsec_") not in text
