"""Recovery that takes up to a minute: it starts with the stack and is checked last, so that no test waits for it."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from tests.e2e.conftest import SlowScenario
from tests.e2e.harness import Aws, Client, eventually
from vigil.local import Stack

AUTHORIZER_CACHE_S = 60
CANCEL_GRACE = timedelta(seconds=60)
SWEEP_EVERY = timedelta(seconds=60)

pytestmark = pytest.mark.timeout(240)


def test_revoked_key_is_refused_within_the_authorizer_cache_time(stack: Stack, slow_scenario: SlowScenario) -> None:
    left_s = slow_scenario.revoked_at + AUTHORIZER_CACHE_S + 5 - time.monotonic()
    with Client(stack, slow_scenario.revoked.token) as revoked:
        eventually(
            lambda: revoked.call("GET", "/v1/jobs").status_code == 403,
            within_s=max(left_s, 1),
            every_s=1,
            what="refused",
        )


def test_sweep_of_each_minute_ends_a_job_after_the_cancel_grace(stack: Stack, slow_scenario: SlowScenario) -> None:
    """Require that the EventBridge rule invokes the sweeper: no test does."""
    with Client(stack, slow_scenario.owner.token) as client:
        job = eventually(
            lambda: (job := client.get(f"/v1/jobs/{slow_scenario.job_to_cancel}"))["finished_at"] and job,
            within_s=180,
            every_s=1,
            what="cancelled",
        )
    assert (job["status"], job["job_stage"], job["job_health"]) == ("cancelled", "incomplete", "cancelled")
    took = datetime.fromisoformat(job["finished_at"]) - datetime.fromisoformat(slow_scenario.cancel_requested_at)
    assert CANCEL_GRACE <= took < CANCEL_GRACE + SWEEP_EVERY + timedelta(seconds=15)


def test_failed_webhook_delivery_is_retried_with_the_same_id_and_body(slow_scenario: SlowScenario) -> None:
    """Require that the EventBridge rule invokes the sweeper: no test does."""
    receiver = slow_scenario.receiver
    eventually(lambda: len(receiver.posts) > 1, within_s=180, every_s=1, what="told again")
    first, second = receiver.posts[:2]
    assert (first.headers["webhook-id"], first.body) == (second.headers["webhook-id"], second.body)
    assert int(second.headers["webhook-timestamp"]) - int(first.headers["webhook-timestamp"]) >= 60


def test_sweep_expires_a_wait_whose_timer_message_was_lost(aws: Aws, client: Client) -> None:
    """Expire a wait whose delayed message is lost, by an event of the sweeper's rule that the test sends."""
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
