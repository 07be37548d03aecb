"""Webhooks over HTTP: their definition, their secrets, and their deliveries."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.api import SOME_ID, Client, Reply, pages
from vigil_core import wiring
from vigil_core.domain.events.event import Event
from vigil_core.domain.webhooks import DeliveryAttempt, create_delivery, is_secret, new_secret

HOOK: dict[str, Any] = {"url": "https://hooks.example.com/vigil", "events": ["vigil.job.failed", "vigil.wait.*"]}
OWN = new_secret(b"chosen by its owner, 32 bytes!..")


def put(client: Client, name: str = "ci", **body: Any) -> Reply:
    return client.call("PUT", f"/v1/webhooks/{quote(name, safe='')}", body)


def store_deliveries(count: int = 1, *, webhook: str = "ci") -> list[str]:
    """Store deliveries one second apart and return their ids, newest first."""
    ids = []
    for number in range(count):
        event = Event(
            event_id=f"{SOME_ID}.{number + 1}",
            type="vigil.job.failed",
            namespace="demo",
            subject=SOME_ID,
            time=datetime(2026, 1, 31, 9, 30, number, tzinfo=UTC),
            data={"of": "somebody"},
            topics=(),
            audience="ending",
        )
        tried = DeliveryAttempt(at=event.time, duration_ms=12, status=500, error=None)
        delivery = create_delivery(event, webhook, None, event.time).after_attempt(tried, retry_after_s=None, jitter=0)
        wiring.context().webhooks.add_delivery(delivery)
        ids.append(delivery.delivery_id)
    return ids[::-1]


def test_generated_secret_is_shown_only_at_creation(client: Client) -> None:
    created = put(client, **HOOK, description="tells CI").ok(201)
    assert is_secret(created["secret"])
    assert {**created, "created_at": 0, "updated_at": 0, "secret": 0} == {
        **HOOK, "name": "ci", "enabled": True, "disabled_because": None, "description": "tells CI", "secret": 0,
        "created_at": 0, "updated_at": 0,
    }  # fmt: skip
    hidden = {**created, "secret": None}
    assert client.get("/v1/webhooks/ci").ok() == hidden
    assert client.get("/v1/webhooks").ok() == {"webhooks": [hidden]}
    replaced = put(client, **HOOK).ok(200)
    assert replaced["secret"] is None
    assert created["secret"] not in client.get("/v1/webhooks/ci/deliveries").text
    other = put(client, "other", **HOOK).ok(201)
    assert other["secret"] != created["secret"]


def test_own_secret_is_stored_and_survives_a_put(client: Client) -> None:
    assert put(client, **HOOK, secret=OWN).ok(201)["secret"] == OWN
    stored = wiring.context().webhooks.find("demo", "ci")
    assert stored is not None
    assert stored.secret == OWN
    put(client, url="https://moved.example/", events=["*"]).ok(200)
    stored = wiring.context().webhooks.find("demo", "ci")
    assert stored is not None
    assert (stored.secret, stored.url, stored.previous_secrets) == (OWN, "https://moved.example/", ())


def test_rotation_shows_the_new_secret_and_retains_the_old_one_for_a_day(client: Client) -> None:
    first = put(client, **HOOK).ok(201)["secret"]
    second = client.post("/v1/webhooks/ci/rotate-secret", {}).ok()["secret"]
    third = client.post("/v1/webhooks/ci/rotate-secret", {"secret": OWN}).ok()["secret"]
    assert (third, len({first, second, third})) == (OWN, 3)
    stored = wiring.context().webhooks.find("demo", "ci")
    assert stored is not None
    now = datetime.now(UTC)
    assert stored.signing_secrets(now) == (third, second, first)
    assert stored.signing_secrets(now + timedelta(hours=25)) == (third,)


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        ({}, ["/url", "/events"]),
        ({"url": "https://a.example/"}, ["/events"]),
        ({"events": ["*"]}, ["/url"]),
        ({**HOOK, "url": 7}, ["/url"]),
        ({**HOOK, "url": ""}, ["/url"]),
        ({**HOOK, "url": "http://a.example/"}, ["/url"]),
        ({**HOOK, "url": "https://localhost/"}, []),
        ({**HOOK, "url": "https://127.0.0.1/"}, ["/url"]),
        ({**HOOK, "url": "https://[fd00:ec2::254]/"}, ["/url"]),
        ({**HOOK, "url": "https://user:pass@a.example/"}, ["/url"]),
        ({**HOOK, "url": "https://a.example/" + "a" * 2048}, ["/url"]),
        ({**HOOK, "events": []}, ["/events"]),
        ({**HOOK, "events": ["*"] * 51}, ["/events"]),
        ({**HOOK, "events": ["job.failed", "*", 3]}, ["/events/0", "/events/2"]),
        ({**HOOK, "enabled": "yes"}, ["/enabled"]),
        ({**HOOK, "secret": "secret"}, ["/secret"]),
        ({**HOOK, "secret": "whsec_c2hvcnQ="}, ["/secret"]),
        ({**HOOK, "colour": 1}, ["/colour"]),
        ([], [""]),
    ],
)
def test_invalid_webhook_members_are_named(client: Client, body: Any, pointers: list[str]) -> None:
    reply = client.call("PUT", "/v1/webhooks/ci", body)
    if not pointers:
        reply.ok(201)  # The outbound policy checks the addresses of a host name at each call.
    else:
        assert reply.pointers() == pointers


@pytest.mark.parametrize("name", ["x" * 129, "a\nb", "\x7f"])
def test_invalid_webhook_name_is_refused(client: Client, name: str) -> None:
    assert put(client, name, **HOOK).pointers() == ["{webhook}"]
    client.get(f"/v1/webhooks/{quote(name, safe='')}").problem(404, "WEBHOOK_NOT_FOUND")


def test_webhook_of_waits_refuses_url_and_events(client: Client) -> None:
    assert put(client, "waits", **HOOK).pointers() == ["/url", "/events"]
    created = put(client, "waits").ok(201)
    assert (created["url"], created["events"], is_secret(created["secret"])) == (None, [], True)
    job = client.running()["job_id"]
    body = {"wait_on": {job: None}, "wait_options": {"notify": {"webhook": "https://hooks.example.com/w"}}}
    wait = client.post("/v1/waits", body, headers={"prefer": "wait=0"}).ok()
    assert wait["wait_options"] == body["wait_options"]
    put(client, "waits", enabled=False).ok(200)
    assert not client.get("/v1/webhooks/waits").ok()["enabled"]


def test_wait_with_webhook_is_refused_without_the_signing_webhook(client: Client) -> None:
    body = {"wait_on": {SOME_ID: None}, "wait_options": {"notify": {"webhook": "https://hooks.example.com/w"}}}
    reply = client.post("/v1/waits", body, headers={"prefer": "wait=0"})
    assert reply.pointers() == ["/wait_options/notify/webhook"]


def test_deleted_webhook_is_not_found(client: Client) -> None:
    put(client, **HOOK).ok(201)
    client.delete("/v1/webhooks/ci").ok(204)
    client.delete("/v1/webhooks/ci").problem(404, "WEBHOOK_NOT_FOUND")
    assert client.get("/v1/webhooks").ok() == {"webhooks": []}
    for path in ("/v1/webhooks/ci", "/v1/webhooks/ci/deliveries"):
        client.get(path).problem(404, "WEBHOOK_NOT_FOUND")
    client.post("/v1/webhooks/ci/rotate-secret", {}).problem(404, "WEBHOOK_NOT_FOUND")
    client.post("/v1/webhooks/ci/deliveries/1_x_1/replay").problem(404, "WEBHOOK_NOT_FOUND")


def test_deliveries_are_listed_page_by_page(client: Client) -> None:
    put(client, **HOOK).ok(201)
    ids = store_deliveries(7)
    delivery_pages = pages(client, "/v1/webhooks/ci/deliveries", page_size=3)
    assert [len(page["deliveries"]) for page in delivery_pages] == [3, 3, 1]
    listed = [each for page in delivery_pages for each in page["deliveries"]]
    assert [each["delivery_id"] for each in listed] == ids
    assert listed[0] == {
        "delivery_id": ids[0],
        "webhook": "ci",
        "event_id": f"{SOME_ID}.7",
        "event_type": "vigil.job.failed",
        "status": "pending",
        "error": None,
        "tries": [{"at": "2026-01-31T09:30:06.000Z", "duration_ms": 12, "status": 500, "error": None}],
        "next_try_at": "2026-01-31T09:31:06.012Z",
        "created_at": "2026-01-31T09:30:06.000Z",
        "finished_at": None,
    }
    token = client.get("/v1/webhooks/ci/deliveries?page_size=3").ok()["next_page_token"]
    put(client, "other", **HOOK).ok(201)
    client.get(f"/v1/webhooks/other/deliveries?page_token={quote(token)}").problem(422, "VALIDATION_FAILED")


def test_replayed_delivery_is_due_at_once(client: Client) -> None:
    put(client, **HOOK).ok(201)
    (delivery_id,) = store_deliveries()
    path = f"/v1/webhooks/ci/deliveries/{delivery_id}/replay"
    replayed = client.post(path).ok(202)
    assert (replayed["status"], len(replayed["tries"])) == ("pending", 1)
    assert replayed["next_try_at"] > replayed["created_at"]
    assert client.post(path).ok(202)["delivery_id"] == delivery_id
    client.post("/v1/webhooks/ci/deliveries/1_x_1/replay").problem(404, "DELIVERY_NOT_FOUND")
    Client(namespace="other").post(path).problem(404, "WEBHOOK_NOT_FOUND")
