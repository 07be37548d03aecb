"""A function fails permanently: no event is lost, other tenants continue, and the operator redrives the work."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.harness import Aws, Client, eventually, vigil

pytestmark = pytest.mark.timeout(240)


def test_poisoned_record_does_not_block_other_waits_and_can_be_redriven(
    aws: Aws, client: Client, directory: Path
) -> None:
    good = [client.running() for _ in range(3)]
    bad = client.running()
    waits = {job_id: client.wait({job_id: None}) for job_id in (*good, bad)}
    with aws.with_fault("matcher", "poisoned"):
        client.complete(good[0])
        client.complete(bad, fields={"note": "poison-pill"})
        client.complete(good[1])
        client.complete(good[2])
        for job_id in good:
            assert client.ended(waits[job_id], within_s=60)["status"] == "met"
        (letter,) = eventually(
            lambda: aws.admin("list_dead_letters")["batches"], within_s=90, every_s=1, what="the record in the bucket"
        )
        assert (letter["records"], letter["condition"]) == (1, "RetryAttemptsExhausted")
        assert letter["function"].endswith(":function:vigil-matcher")
        assert client.post_wait(waits[bad])["status"] == "waiting"
        again = vigil(directory, "dead-letters", "redrive")
        assert again.returncode == 1
        assert "injected-fault" in again.stdout, "it says why"
    listed = vigil(directory, "dead-letters", "list")
    assert "vigil-matcher" in listed.stdout, listed.stderr
    redriven = vigil(directory, "dead-letters", "redrive")
    assert redriven.returncode == 0, redriven.stdout + redriven.stderr
    assert client.ended(waits[bad])["waited_jobs"] == {bad: {"job_stage": "complete"}}
    assert aws.admin("list_dead_letters")["total"] == 0


def test_failed_fan_out_message_goes_to_its_dead_letter_queue_until_redrive(
    aws: Aws, client: Client, directory: Path
) -> None:
    jobs = client.jobs(1_001)
    with short_fan_out_retries(aws), aws.with_fault("fan_out", "broken"):
        answer = client.wait(dict.fromkeys(jobs), mode={"at_least": 1})
        assert answer["registering"]
        eventually(
            lambda: aws.admin("list_dead_letters")["messages"]["fan_out"] == 2, within_s=90, every_s=1, what="two pages"
        )
    client.post(f"/v1/jobs/{jobs[1_000]}/cancel")
    redriven = vigil(directory, "dead-letters", "redrive")
    assert redriven.returncode == 0, redriven.stdout + redriven.stderr
    ended = client.ended(answer, within_s=60)
    assert (ended["status"], ended["waited_jobs"]) == ("met", {jobs[1_000]: {"job_stage": "incomplete"}})
    assert aws.admin("list_dead_letters")["messages"] == {"fan_out": 0, "sweeper": 0, "webhooks": 0}


@contextmanager
def short_fan_out_retries(aws: Aws) -> Iterator[None]:
    """Shorten the retry time of the fan-out queue, which is half an hour and five receives: too long for a test."""
    url = aws.stack.fan_out_queue_url
    before = aws.queues.get_queue_attributes(QueueUrl=url, AttributeNames=["VisibilityTimeout", "RedrivePolicy"])
    redrive = {**json.loads(before["Attributes"]["RedrivePolicy"]), "maxReceiveCount": 2}
    hurried = {"VisibilityTimeout": "1", "RedrivePolicy": json.dumps(redrive)}
    aws.queues.set_queue_attributes(QueueUrl=url, Attributes=hurried)  # type: ignore[arg-type]
    try:
        yield
    finally:
        aws.queues.set_queue_attributes(QueueUrl=url, Attributes=before["Attributes"])
