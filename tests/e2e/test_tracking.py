"""Track jobs by reference: statuses, predicates, awaited completion, scheduled jobs, claims and reclaimed jobs."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta

import pytest

from tests.e2e.harness import eventually
from vigil.client import JobFailed, Vigil, VigilError, legacy_status
from vigil_core.domain.ids import is_uuid7

pytestmark = pytest.mark.timeout(180)


def test_job_is_tracked_by_its_reference_until_completion(tracker: Vigil) -> None:
    reference = tracker.submit("boot_test", {"kernel": "6.12"}, name="aspen", priority="high", fields={"box": 7})
    assert is_uuid7(reference.job_id)
    assert (reference.job_type, reference.is_scheduled()) == ("boot_test", False)
    pending = tracker.status(reference.job_id)
    assert pending
    assert (pending.status, pending.legacy_status(), pending.is_active()) == ("pending", "PENDING", True)
    assert (pending.queue, pending.priority, pending.finished_at) == ("default", "high", None)
    tracker.start(reference.job_id)
    tracker.report(reference.job_id, stage="boot", progress=0.5, milestones=["up"], fields={"box": None, "cpus": 4})
    assert legacy_status(tracker.status_only(reference.job_id)) == "IN_PROGRESS"
    tracker.complete(reference.job_id, {"ratio": 0.1, "log": "ok"})
    ended = tracker.status(reference.job_id)
    assert ended
    assert (ended.status, ended.is_terminal(), ended.is_successful(), ended.progress) == ("completed", True, True, 1)
    assert ended.finished_at
    assert ended.created_at <= ended.finished_at
    assert (ended.document["fields"], ended.document["milestones"]) == ({"cpus": 4}, ["up"])
    assert tracker.result(reference.job_id) == {"ratio": 0.1, "log": "ok"}


def test_unknown_job_has_no_status(tracker: Vigil) -> None:
    for job_id in ("01980c4e-5a00-7c3b-9e21-3f6b0a1d2c4e", "nobody", "no body/at?all"):
        assert tracker.status(job_id) is None
        assert legacy_status(tracker.status_only(job_id)) == "NOT_FOUND"
        assert not tracker.exists(job_id)
        assert tracker.await_completion(job_id, timeout=5) is None


def test_await_completion_long_polls_until_the_job_ends(tracker: Vigil) -> None:
    job_id = tracker.submit("test").job_id
    tracker.start(job_id)
    end = threading.Timer(1, tracker.fail, [job_id, "BROKEN", "it broke"])
    end.start()
    began = time.monotonic()
    info = tracker.await_completion(job_id, timeout=60)
    end.join()
    assert info
    assert time.monotonic() - began < 20
    assert (info.is_failed(), info.error_message, info.legacy_status()) == (True, "it broke", "FAILED")
    assert tracker.error_message(job_id) == "it broke"
    assert tracker.is_complete(job_id)
    with pytest.raises(JobFailed, match="it broke"):
        tracker.result(job_id)


def test_await_completion_returns_the_last_status_after_its_timeout(tracker: Vigil) -> None:
    job_id = tracker.submit("test").job_id
    info = tracker.await_completion(job_id, timeout=1.5)
    assert info
    assert info.status == "pending"


def test_every_status_maps_to_one_of_six_legacy_statuses(tracker: Vigil) -> None:
    scheduled = tracker.submit("test", scheduled_at=datetime.now(UTC) + timedelta(hours=1)).job_id
    pending, running, completed, failed = (tracker.submit("test").job_id for _ in range(4))
    for job_id in (running, completed, failed):
        tracker.start(job_id)
    tracker.complete(completed)
    tracker.fail(failed, "BROKEN", "it broke")
    expected = {
        scheduled: ("SCHEDULED", True, False), pending: ("PENDING", True, False),
        running: ("IN_PROGRESS", True, False), completed: ("COMPLETED", False, False), failed: ("FAILED", False, True),
    }  # fmt: skip
    for job_id, (status, active, bad) in expected.items():
        info = tracker.status(job_id)
        assert info
        assert (info.legacy_status(), info.is_active(), info.is_failed()) == (status, active, bad)
        assert legacy_status(tracker.status_only(job_id)) == status
        assert (info.is_terminal(), info.is_successful()) == (not active, status == "COMPLETED")
        assert info.is_scheduled() == (status == "SCHEDULED")
        assert tracker.is_complete(job_id) == (not active)
        assert tracker.exists(job_id)
        assert tracker.error_message(job_id) == ("it broke" if bad else None)
    assert legacy_status(tracker.status_only("nobody")) == "NOT_FOUND"


def test_scheduled_job_is_granted_to_a_waiting_claim_on_time(tracker: Vigil) -> None:
    due = datetime.now(UTC) + timedelta(seconds=3)
    reference = tracker.submit("test", scheduled_at=due, queue="später heute")
    assert reference.is_scheduled()
    assert tracker.status_only(reference.job_id) == "scheduled"
    (job,) = tracker.claim("später heute", wait=15)
    assert job["job_id"] == reference.job_id
    assert timedelta(0) <= datetime.now(UTC) - due < timedelta(seconds=2.5)


def test_claimed_job_is_in_progress_and_refused_to_other_workers(tracker: Vigil) -> None:
    job_id = tracker.submit("test").job_id
    (job,) = tracker.claim("default", worker="box-1", wait=10)
    assert (job["job_id"], job["attempt"]) == (job_id, 1)
    assert legacy_status(tracker.status_only(job_id)) == "IN_PROGRESS"
    assert tracker.claim("default", worker="box-2") == []
    with pytest.raises(VigilError, match="LEASE_LOST"):
        tracker.complete(job_id)
    tracker.complete(job_id, "mine", lease_token=job["lease_token"])
    assert tracker.result(job_id) == "mine"


def test_job_of_an_expired_claim_is_completed_by_another_worker(tracker: Vigil) -> None:
    job_id = tracker.submit("test", retry={"max_attempts": 2}).job_id
    (stale,) = tracker.claim("default", worker="gone", lease=1, wait=10)
    (again,) = eventually(lambda: tracker.claim("default", worker="there", wait=2))
    assert (again["job_id"], again["attempt"]) == (job_id, 2)
    with pytest.raises(VigilError, match="LEASE_LOST"):
        tracker.complete(job_id, lease_token=stale["lease_token"])
    tracker.complete(job_id, lease_token=again["lease_token"])
    last = tracker.status(job_id)
    assert last
    assert (last.is_successful(), last.attempt) == (True, 2)
