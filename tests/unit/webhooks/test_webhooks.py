"""Webhooks without I/O: subscribed events, signatures, retries."""

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

from vigil_core.domain.events.event import Event
from vigil_core.domain.retry_after import parse_retry_after
from vigil_core.domain.webhooks import (
    MAX_ATTEMPTS,
    RETRY_DELAYS_S,
    SECRET_OVERLAP,
    Delivery,
    DeliveryAttempt,
    Webhook,
    create_delivery,
    is_event_pattern,
    is_secret,
    new_secret,
    signature_headers,
)
from vigil_core.schemas.webhooks import WebhookBody

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
EVENT = Event(
    event_id="01980c4e-5a00-7c3b-9e21-3f6b0a1d2c4e.3",
    type="vigil.job.completed",
    namespace="team",
    subject="01980c4e-5a00-7c3b-9e21-3f6b0a1d2c4e",
    time=NOW,
    data={"status": "completed"},
    topics=(),
    audience="ending",
)
HOOK = Webhook(
    namespace="team",
    name="ci",
    url="https://hooks.example.com/",
    events=("*",),
    enabled=True,
    disabled_reason=None,
    description=None,
    secret=new_secret(b"a" * 32),
    created_at=NOW,
    updated_at=NOW,
)


def delivery(**changed: Any) -> Delivery:
    return replace(create_delivery(EVENT, "ci", None, NOW), **changed)


def answered(status: int | None, at: datetime = NOW) -> DeliveryAttempt:
    return DeliveryAttempt(at=at, duration_ms=500, status=status, error=None if status else "no answer")


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
def test_webhook_matches_the_events_of_its_patterns(patterns: list[str], wanted: bool) -> None:
    assert replace(HOOK, events=tuple(patterns)).accepts(EVENT) == wanted
    assert not replace(HOOK, events=tuple(patterns), enabled=False).accepts(EVENT)


def test_progress_event_matches_no_webhook() -> None:
    assert not HOOK.accepts(replace(EVENT, type="vigil.job.progress"))


@pytest.mark.parametrize("text", ["*", "vigil.*", "vigil.job.*", "vigil.job.cancel_requested"])
def test_valid_event_pattern_is_accepted(text: str) -> None:
    assert is_event_pattern(text)


@pytest.mark.parametrize(
    "text", ["", "job.completed", "vigil", "vigil.job", "vigil.job.c*", "*.failed", "vigil.job.*\n"]
)
def test_invalid_event_pattern_is_refused(text: str) -> None:
    assert not is_event_pattern(text)


def test_delivery_id_depends_only_on_the_event() -> None:
    one, other = create_delivery(EVENT, "ci", None, NOW), create_delivery(EVENT, "ci", None, NOW + timedelta(hours=1))
    assert (one.delivery_id, one.body) == (other.delivery_id, other.body)
    assert "." not in one.delivery_id
    later = create_delivery(replace(EVENT, time=NOW + timedelta(seconds=1)), "ci", None, NOW)
    assert later.delivery_id > one.delivery_id


# Signatures


def test_signature_equals_the_example_of_the_specification() -> None:
    """The example of https://www.standardwebhooks.com, whose secret is `whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw`."""
    headers = signature_headers(
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
def test_signature_is_verified_with_the_secret(key: bytes, message_id: str, body: bytes) -> None:
    secret = new_secret(key)
    assert is_secret(secret)
    headers = signature_headers([secret, new_secret(b"another " * 4)], message_id, NOW, body)
    signed = f"{message_id}.{int(NOW.timestamp())}.".encode() + body
    mac = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"].split(" ")[0] == f"v1,{mac}"
    assert len(headers["webhook-signature"].split(" ")) == 2


@pytest.mark.parametrize(
    "text",
    ["", "whsec_", "whsec_YQ==", "whsec_" + "!" * 40, base64.b64encode(b"a" * 32).decode(), new_secret(b"a" * 65)],
)
def test_invalid_secret_is_refused(text: str) -> None:
    assert not is_secret(text)


def test_former_secret_signs_for_a_day() -> None:
    after = replace(HOOK, secret=new_secret(b"b" * 32)).as_next_version(HOOK, NOW)
    assert after.signing_secrets(NOW) == (after.secret, HOOK.secret)
    assert after.signing_secrets(NOW + SECRET_OVERLAP) == (after.secret,)
    renamed = replace(after, description="x").as_next_version(after, NOW + timedelta(hours=1))
    assert renamed.signing_secrets(NOW + timedelta(hours=2)) == (after.secret, HOOK.secret)


def test_repr_of_a_webhook_hides_its_secrets() -> None:
    after = replace(HOOK, secret=new_secret(b"b" * 32)).as_next_version(HOOK, NOW)
    assert "whsec_" not in repr(after)


# Attempts


def test_2xx_response_completes_the_delivery() -> None:
    for status in (200, 201, 204, 299):
        done = delivery(error="x").after_attempt(answered(status), retry_after_s=None, jitter=0)
        assert (done.status, done.next_attempt_at, done.error, len(done.attempts)) == ("delivered", None, None, 1)
        assert done.finished_at == NOW + timedelta(milliseconds=500)


def test_410_response_ends_the_delivery() -> None:
    done = delivery().after_attempt(answered(410), retry_after_s=None, jitter=0)
    assert (done.status, done.next_attempt_at) == ("failed", None)


@pytest.mark.parametrize("status", [None, 199, 300, 301, 400, 404, 429, 500, 503])
def test_other_responses_are_retried_until_no_attempts_are_left(status: int | None) -> None:
    at, now = delivery(), NOW
    waited = []
    for number in range(1, MAX_ATTEMPTS + 1):
        assert at.status == "pending"
        at = at.after_attempt(answered(status, now), retry_after_s=None, jitter=0)
        assert at.failed_attempts == number
        if at.next_attempt_at is not None:
            waited.append((at.next_attempt_at - now).total_seconds() - 0.5)
            now = at.next_attempt_at
    assert (at.status, at.next_attempt_at, len(at.attempts)) == ("failed", None, MAX_ATTEMPTS)
    assert waited == list(RETRY_DELAYS_S)
    assert NOW + timedelta(days=3) < now < NOW + timedelta(days=4)


def test_retry_delay_has_jitter() -> None:
    early = delivery().after_attempt(answered(500), retry_after_s=None, jitter=0).next_attempt_at
    late = delivery().after_attempt(answered(500), retry_after_s=None, jitter=1).next_attempt_at
    assert early is not None
    assert late == early + timedelta(seconds=RETRY_DELAYS_S[0] * 0.1)


@pytest.mark.parametrize(("wished", "granted"), [(5, 60), (120, 120), (10**8, 86_400)])
def test_retry_after_of_the_receiver_is_applied_within_limits(wished: int, granted: int) -> None:
    put_off = delivery().after_attempt(answered(503), retry_after_s=wished, jitter=0)
    assert put_off.next_attempt_at == NOW + timedelta(seconds=granted, milliseconds=500)


def test_replay_resets_the_delivery() -> None:
    failed = delivery(status="failed", failed_attempts=MAX_ATTEMPTS, error="x", next_attempt_at=None, finished_at=NOW)
    again = replace(failed, attempts=(answered(500),)).replayed(NOW)
    assert (again.status, again.failed_attempts, again.error, again.finished_at) == ("pending", 0, None, None)
    assert (again.next_attempt_at, len(again.attempts)) == (NOW, 1)


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
def test_retry_after_header_is_parsed(header: str | None, seconds: int | None) -> None:
    assert parse_retry_after(header, NOW) == seconds


@given(st.text())
def test_retry_after_is_never_negative(header: str) -> None:
    said = parse_retry_after(header, NOW)
    assert said is None or said >= 0


def test_receiver_of_the_docs_page_verifies_signatures() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs/webhooks.md").read_text()
    known: dict[str, Any] = {}
    exec(page.partition("```python\n")[2].partition("```")[0], known)
    verified = known["verified"]
    secret, body = new_secret(b"a" * 32), b'{"id": "1"}'
    headers = signature_headers([new_secret(b"b" * 32), secret], "m_1", NOW, body)
    now = NOW.timestamp()
    assert verified(headers, body, secret, now=now)
    assert verified(headers, body, secret, now=now + 299)
    assert not verified(headers, body, secret, now=now + 301)
    assert not verified(headers, body + b" ", secret, now=now)
    assert not verified({**headers, "webhook-id": "m_2"}, body, secret, now=now)
    assert not verified(headers, body, new_secret(b"c" * 32), now=now)
    assert not verified(headers, body, secret), "it is long past"


def test_docs_page_lists_the_retry_delays() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs/webhooks.md").read_text()
    assert (
        f"A delivery is tried {MAX_ATTEMPTS} times: at once, then 1 and 5 minutes, ½, 2, 5, 10, 14, 20 and 24 hours"
        in page
    )
    assert [60, 300, *(hours * 3600 for hours in (0.5, 2, 5, 10, 14, 20, 24))] == list(RETRY_DELAYS_S)


def _pattern_of(name: str) -> str:
    """Return the pattern of a member, as the OpenAPI document states it."""
    body = WebhookBody.model_json_schema()["properties"]
    (array,) = (kind for kind in body["events"]["anyOf"] if kind["type"] == "array")
    (secret,) = (kind for kind in body["secret"]["anyOf"] if kind["type"] == "string")
    return str({"events": array["items"], "secret": secret}[name]["pattern"])


@given(st.from_regex(_pattern_of("secret"), fullmatch=True))
def test_secret_valid_by_the_openapi_pattern_is_accepted(text: str) -> None:
    assert is_secret(text.strip("\n"))


@given(st.binary(min_size=1, max_size=80))
def test_every_secret_satisfies_the_openapi_pattern(key: bytes) -> None:
    assert is_secret(new_secret(key)) == bool(re.fullmatch(_pattern_of("secret").strip("^$"), new_secret(key)))


@given(st.from_regex(_pattern_of("events"), fullmatch=True, alphabet=st.characters(codec="ascii")))
def test_event_pattern_valid_by_the_openapi_document_is_accepted(text: str) -> None:
    assert is_event_pattern(text.strip("\n"))
