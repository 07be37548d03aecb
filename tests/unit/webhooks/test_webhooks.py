"""Webhooks by themselves: which events, what signature, when again."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil_core.api.webhooks.models import WebhookBody
from vigil_core.domain.events.event import Event
from vigil_core.domain.jobs.retry import retry_after_s
from vigil_core.domain.webhooks import (
    DELAYS_S,
    MAX_TRIES,
    SECRET_OVERLAP,
    Delivery,
    Try,
    Webhook,
    delivery_of,
    is_pattern,
    is_secret,
    new_secret,
    signed_headers,
)

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
EVENT = Event(
    event_id="01980c4e-5a00-7c3b-9e21-3f6b0a1d2c4e.3",
    type="vigil.job.completed",
    namespace="team",
    subject="01980c4e-5a00-7c3b-9e21-3f6b0a1d2c4e",
    time=NOW,
    data={"status": "completed"},
    topics=(),
    reach="ending",
)
HOOK = Webhook(
    namespace="team",
    name="ci",
    url="https://hooks.example.com/",
    events=("*",),
    enabled=True,
    disabled_because=None,
    description=None,
    secret=new_secret(b"a" * 32),
    created_at=NOW,
    updated_at=NOW,
)


def delivery(**changed: Any) -> Delivery:
    return replace(delivery_of(EVENT, "ci", None, NOW), **changed)


def answered(status: int | None, at: datetime = NOW) -> Try:
    return Try(at=at, duration_ms=500, status=status, error=None if status else "no answer")


@pytest.mark.parametrize(
    ("patterns", "wanted"),
    [
        (["*"], True),
        (["vigil.*"], True),
        (["vigil.job.*"], True),
        (["vigil.job.completed"], True),
        (["vigil.wait.*", "vigil.job.completed"], True),
        (["vigil.job.complete"], False),
        (["vigil.wait.*"], False),
        (["vigil.job.failed", "vigil.job.cancelled"], False),
    ],
)
def test_a_webhook_wants_the_events_that_it_names(patterns: list[str], wanted: bool) -> None:
    assert replace(HOOK, events=tuple(patterns)).wants(EVENT) == wanted
    assert not replace(HOOK, events=tuple(patterns), enabled=False).wants(EVENT)


def test_progress_is_for_sockets_alone() -> None:
    assert not HOOK.wants(replace(EVENT, type="vigil.job.progress"))


@pytest.mark.parametrize("text", ["*", "vigil.*", "vigil.job.*", "vigil.job.cancel_requested"])
def test_a_pattern(text: str) -> None:
    assert is_pattern(text)


@pytest.mark.parametrize(
    "text", ["", "job.completed", "vigil", "vigil.job", "vigil.job.c*", "*.failed", "vigil.job.*\n"]
)
def test_no_pattern(text: str) -> None:
    assert not is_pattern(text)


def test_the_same_event_is_the_same_delivery_whoever_makes_it() -> None:
    one, other = delivery_of(EVENT, "ci", None, NOW), delivery_of(EVENT, "ci", None, NOW + timedelta(hours=1))
    assert (one.delivery_id, one.body) == (other.delivery_id, other.body)
    assert "." not in one.delivery_id
    later = delivery_of(replace(EVENT, time=NOW + timedelta(seconds=1)), "ci", None, NOW)
    assert later.delivery_id > one.delivery_id


# Signatures


def test_the_signature_is_that_of_the_specification() -> None:
    """The example of https://www.standardwebhooks.com, whose secret is `whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw`."""
    headers = signed_headers(
        ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        datetime.fromtimestamp(1614265330, UTC),
        b'{"test": 2432232314}',
    )
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


@given(st.binary(min_size=24, max_size=64), st.text(), st.binary())
def test_whoever_has_the_secret_can_verify(key: bytes, message_id: str, body: bytes) -> None:
    secret = new_secret(key)
    assert is_secret(secret)
    headers = signed_headers([secret, new_secret(b"another " * 4)], message_id, NOW, body)
    signed = f"{message_id}.{int(NOW.timestamp())}.".encode() + body
    mac = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"].split(" ")[0] == f"v1,{mac}"
    assert len(headers["webhook-signature"].split(" ")) == 2


@pytest.mark.parametrize(
    "text",
    ["", "whsec_", "whsec_YQ==", "whsec_" + "!" * 40, base64.b64encode(b"a" * 32).decode(), new_secret(b"a" * 65)],
)
def test_what_cannot_sign(text: str) -> None:
    assert not is_secret(text)


def test_a_former_secret_signs_for_a_day() -> None:
    after = replace(HOOK, secret=new_secret(b"b" * 32)).succeeding(HOOK, NOW)
    assert after.secrets(NOW) == (after.secret, HOOK.secret)
    assert after.secrets(NOW + SECRET_OVERLAP) == (after.secret,)
    renamed = replace(after, description="x").succeeding(after, NOW + timedelta(hours=1))
    assert renamed.secrets(NOW + timedelta(hours=2)) == (after.secret, HOOK.secret)


def test_a_secret_is_not_in_what_a_log_would_show() -> None:
    after = replace(HOOK, secret=new_secret(b"b" * 32)).succeeding(HOOK, NOW)
    assert "whsec_" not in repr(after)


# Tries


def test_2xx_delivers() -> None:
    for status in (200, 201, 204, 299):
        done = delivery(error="x").after(answered(status), retry_after_s=None, chance=0)
        assert (done.status, done.next_at, done.error, len(done.tries)) == ("delivered", None, None, 1)
        assert done.finished_at == NOW + timedelta(milliseconds=500)


def test_410_ends_it() -> None:
    done = delivery().after(answered(410), retry_after_s=None, chance=0)
    assert (done.status, done.next_at) == ("failed", None)


@pytest.mark.parametrize("status", [None, 199, 300, 301, 400, 404, 429, 500, 503])
def test_anything_else_is_tried_again_until_there_are_no_tries_left(status: int | None) -> None:
    at, now = delivery(), NOW
    waited = []
    for number in range(1, MAX_TRIES + 1):
        assert at.status == "pending"
        at = at.after(answered(status, now), retry_after_s=None, chance=0)
        assert at.failed_tries == number
        if at.next_at is not None:
            waited.append((at.next_at - now).total_seconds() - 0.5)
            now = at.next_at
    assert (at.status, at.next_at, len(at.tries)) == ("failed", None, MAX_TRIES)
    assert waited == list(DELAYS_S)
    assert NOW + timedelta(days=3) < now < NOW + timedelta(days=4)


def test_the_delay_is_spread() -> None:
    early = delivery().after(answered(500), retry_after_s=None, chance=0).next_at
    late = delivery().after(answered(500), retry_after_s=None, chance=1).next_at
    assert early is not None
    assert late == early + timedelta(seconds=DELAYS_S[0] * 0.1)


@pytest.mark.parametrize(("wished", "granted"), [(5, 60), (120, 120), (10**8, 86_400)])
def test_a_receiver_may_ask_for_more_time(wished: int, granted: int) -> None:
    put_off = delivery().after(answered(503), retry_after_s=wished, chance=0)
    assert put_off.next_at == NOW + timedelta(seconds=granted, milliseconds=500)


def test_a_replay_begins_anew() -> None:
    failed = delivery(status="failed", failed_tries=MAX_TRIES, error="x", next_at=None, finished_at=NOW)
    again = replace(failed, tries=(answered(500),)).replayed(NOW)
    assert (again.status, again.failed_tries, again.error, again.finished_at) == ("pending", 0, None, None)
    assert (again.next_at, len(again.tries)) == (NOW, 1)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("120", 120),
        (" 0 ", 0),
        ("Sat, 31 Jan 2026 09:30:59 GMT", 59),
        ("Sat, 31 Jan 2026 09:00:00 GMT", 0),
        ("Sat, 99 Jan 2026 09:30:10 GMT", None),
        ("soon", None),
        ("-5", None),
        ("", None),
        ("1.5", None),
        ("9" * 30, None),
        ("Sat, 31 Jan 9999999 09:30:59 GMT", None),
    ],
)
def test_what_retry_after_asks_for(header: str | None, seconds: int | None) -> None:
    assert retry_after_s(header, NOW) == seconds


@given(st.text())
def test_no_retry_after_can_do_harm(header: str) -> None:
    said = retry_after_s(header, NOW)
    assert said is None or said >= 0


def test_the_receiver_on_the_page_verifies() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs/webhooks.md").read_text()
    known: dict[str, Any] = {}
    exec(page.partition("```python\n")[2].partition("```")[0], known)
    verified = known["verified"]
    secret, body = new_secret(b"a" * 32), b'{"id": "1"}'
    headers = signed_headers([new_secret(b"b" * 32), secret], "m_1", NOW, body)
    now = NOW.timestamp()
    assert verified(headers, body, secret, now=now)
    assert verified(headers, body, secret, now=now + 299)
    assert not verified(headers, body, secret, now=now + 301)
    assert not verified(headers, body + b" ", secret, now=now)
    assert not verified({**headers, "webhook-id": "m_2"}, body, secret, now=now)
    assert not verified(headers, body, new_secret(b"c" * 32), now=now)
    assert not verified(headers, body, secret), "it is long past"


def test_the_page_says_when_it_is_tried() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs/webhooks.md").read_text()
    assert (
        f"A delivery is tried {MAX_TRIES} times: at once, then 1 and 5 minutes, ½, 2, 5, 10, 14, 20 and 24 hours"
        in page
    )
    assert [60, 300, *(hours * 3600 for hours in (0.5, 2, 5, 10, 14, 20, 24))] == list(DELAYS_S)


def _pattern_of(name: str) -> str:
    """As the OpenAPI document has it."""
    body = WebhookBody.model_json_schema()["properties"]
    (array,) = (kind for kind in body["events"]["anyOf"] if kind["type"] == "array")
    (secret,) = (kind for kind in body["secret"]["anyOf"] if kind["type"] == "string")
    return str({"events": array["items"], "secret": secret}[name]["pattern"])


@given(st.from_regex(_pattern_of("secret"), fullmatch=True))
def test_what_the_document_takes_for_a_secret_is_one(text: str) -> None:
    assert is_secret(text.strip("\n"))


@given(st.binary(min_size=1, max_size=80))
def test_every_secret_is_one_by_the_document(key: bytes) -> None:
    assert is_secret(new_secret(key)) == bool(re.fullmatch(_pattern_of("secret").strip("^$"), new_secret(key)))


@given(st.from_regex(_pattern_of("events"), fullmatch=True, alphabet=st.characters(codec="ascii")))
def test_what_the_document_takes_for_a_pattern_is_one(text: str) -> None:
    assert is_pattern(text.strip("\n"))
