"""What takes up to a minute: it begins when the stack starts and is looked at last, so that nobody waits for it."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from tests.e2e.conftest import SlowBusiness
from tests.e2e.harness import Aws, Client, eventually
from vigil.local import Stack

AUTHORIZER_CACHE_S = 60
CANCEL_GRACE = timedelta(seconds=60)
SWEEP_EVERY = timedelta(seconds=60)

pytestmark = pytest.mark.timeout(240)


def test_a_revoked_key_is_refused_within_the_authorizers_cache_time(stack: Stack, slow_business: SlowBusiness) -> None:
    left_s = slow_business.revoked_at + AUTHORIZER_CACHE_S + 5 - time.monotonic()
    with Client(stack, slow_business.revoked.token) as revoked:
        eventually(
            lambda: revoked.call("GET", "/v1/jobs").status_code == 403,
            within_s=max(left_s, 1),
            every_s=1,
            what="refused",
        )


def test_the_minutes_sweep_ends_what_was_asked_to_cancel(stack: Stack, slow_business: SlowBusiness) -> None:
    """Nobody invokes the sweeper here: its rule does."""
    with Client(stack, slow_business.owner.token) as client:
        job = eventually(
            lambda: (job := client.get(f"/v1/jobs/{slow_business.asked_to_cancel}"))["finished_at"] and job,
            within_s=180,
            every_s=1,
            what="cancelled",
        )
    assert (job["status"], job["job_stage"], job["job_health"]) == ("cancelled", "incomplete", "cancelled")
    took = datetime.fromisoformat(job["finished_at"]) - datetime.fromisoformat(slow_business.asked_at)
    assert CANCEL_GRACE <= took < CANCEL_GRACE + SWEEP_EVERY + timedelta(seconds=15)


def test_a_message_that_a_webhook_did_not_take_comes_again(slow_business: SlowBusiness) -> None:
    """Nobody invokes the sweeper here either."""
    receiver = slow_business.receiver
    eventually(lambda: len(receiver.posts) > 1, within_s=180, every_s=1, what="told again")
    first, second = receiver.posts[:2]
    assert (first.headers["webhook-id"], first.body) == (second.headers["webhook-id"], second.body)
    assert int(second.headers["webhook-timestamp"]) - int(first.headers["webhook-timestamp"]) >= 60


def test_the_sweep_finds_what_a_lost_message_left_behind(aws: Aws, client: Client) -> None:
    """The message that would have ended this wait is lost. The event of the sweeper's rule, sent by hand, ends it."""
    function = aws.function_names["sweeper"]
    (mapping,) = aws.functions.list_event_source_mappings(FunctionName=function)["EventSourceMappings"]
    aws.functions.update_event_source_mapping(UUID=mapping["UUID"], Enabled=False)
    try:
        answer = client.wait({client.running(): None}, expires_in=1)
        aws.queues.purge_queue(QueueUrl=aws.stack.sweeper_queue_url)
    finally:
        aws.functions.update_event_source_mapping(UUID=mapping["UUID"], Enabled=True)
    over = datetime.fromisoformat(answer["expires_at"])
    eventually(lambda: datetime.now(UTC) > over)
    assert client.post_wait(answer)["status"] == "waiting"
    aws.invoke("sweeper", {"source": "aws.events", "detail-type": "Scheduled Event", "detail": {}})
    assert client.ended(answer)["status"] == "expired"
