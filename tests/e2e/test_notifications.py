"""SNS messages, as a subscribed queue with a filter receives them."""

from __future__ import annotations

from typing import Any

from tests.e2e.harness import Announcements, Aws, Client, Key, eventually


def received(announcements: Announcements, count: int) -> list[Any]:
    """Return this many messages."""
    eventually(lambda: len(announcements.collect()) >= count, what=f"{count} announcements")
    return announcements.envelopes


def test_sns_announces_each_ended_job_once_and_filters_by_attributes(client: Client, aws: Aws, key: Key) -> None:
    with (
        aws.announcements(namespace=[key.namespace]) as everything,
        aws.announcements(namespace=[key.namespace], type=["vigil.job.failed"]) as failures,
        aws.announcements(namespace=[key.namespace], job_type=["boot_test"]) as boot_tests,
        aws.announcements(namespace=["somebody-else"]) as nothing,
    ):
        good, bad = client.running(job_type="boot_test"), client.running(job_type="perf_test")
        wait_id = client.wait({good: None, bad: None}, get_fields={"rows": None})["wait_id"]
        client.report(good, job_stage="boot", progress=0.5)
        client.complete(good, fields={"rows": 3})
        client.fail(bad, "OUT_OF_DISK")

        told = {envelope["type"]: envelope for envelope in received(everything, 3)}
        assert set(told) == {"vigil.job.completed", "vigil.job.failed", "vigil.wait.met"}
        met = told["vigil.wait.met"]
        assert (met["subject"], met["source"]) == (wait_id, f"/vigil/{key.namespace}")
        assert met["data"]["waited_jobs"] == {
            good: {"job_stage": "complete", "rows": "3"},
            bad: {"job_stage": "incomplete", "rows": ""},
        }
        failed = told["vigil.job.failed"]
        assert (failed["subject"], failed["data"]["why"]) == (bad, "OUT_OF_DISK")
        assert [envelope["id"] for envelope in received(failures, 1)] == [failed["id"]]
        assert [envelope["subject"] for envelope in received(boot_tests, 1)] == [good]
        assert nothing.collect() == []
        ids = [envelope["id"] for envelope in everything.collect()]
        assert len(ids) == len(set(ids)) == 3


def test_wait_with_sns_disabled_is_not_announced(client: Client, aws: Aws, key: Key) -> None:
    with aws.announcements(namespace=[key.namespace]) as announcements:
        job_id = client.running()
        quiet = client.wait({job_id: None}, notify={"sns": False})["wait_id"]
        loud = client.wait({job_id: None}, notify={"sns": True})["wait_id"]
        client.complete(job_id)
        received(announcements, 2)
        # One record of one batch ended both waits: a message of the silent wait would have arrived by now.
        assert client.get(f"/v1/waits/{quiet}")["status"] == "met"
        marker = client.job()
        client.post(f"/v1/jobs/{marker}/cancel")
        eventually(lambda: announcements.about(marker), what="the marker")
        assert {envelope["subject"] for envelope in announcements.envelopes} == {job_id, loud, marker}
