"""Transitions of a job, without a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil_core.domain.errors import InvalidTransition, ValidationFailed
from vigil_core.domain.jobs import status as lifecycle
from vigil_core.domain.jobs import transitions
from vigil_core.domain.jobs.job import Job, JobError, NewJob, Report
from vigil_core.domain.jobs.retry import RetryPolicy

NOW = datetime(2026, 1, 31, 9, 0, tzinfo=UTC)
LATER = NOW + timedelta(seconds=5)
BROKEN = JobError(code="BROKEN", message="it broke")


def pending(**wanted: Any) -> Job:
    new = NewJob(**{"job_id": "j", "job_type": "test", **wanted})
    return transitions.create("team", new, now=NOW, actor="key1", payload_ref=None)


def running(**wanted: Any) -> Job:
    return transitions.start(pending(**wanted), now=NOW, actor="key1")


CHANGES: dict[str, Callable[[Job], Job]] = {
    "start": lambda job: transitions.start(job, now=LATER, actor="k"),
    "complete": lambda job: transitions.complete(job, now=LATER, actor="k"),
    "fail": lambda job: transitions.fail(job, BROKEN, now=LATER, actor="k", jitter=0),
    "cancel": lambda job: transitions.cancel(job, now=LATER, actor="k"),
    "retry": lambda job: transitions.retry(job, now=LATER, actor="k"),
    "delete": lambda job: transitions.delete(job, now=LATER, actor="k"),
    "report": lambda job: transitions.report(job, Report(stage="boot"), now=LATER, actor="k"),
}


def in_every_status() -> dict[str, Job]:
    return {
        "pending": pending(),
        "running": running(),
        "completed": CHANGES["complete"](running()),
        "failed": CHANGES["fail"](running()),
        "cancelled": CHANGES["cancel"](pending()),
    }


@pytest.mark.parametrize(
    ("status", "allowed"),
    [
        ("pending", {"start", "cancel"}),
        ("running", {"complete", "fail", "cancel", "report"}),
        ("completed", {"delete"}),
        ("failed", {"retry", "delete"}),
        ("cancelled", {"retry", "delete"}),
    ],
)
def test_each_status_allows_only_its_changes(status: str, allowed: set[str]) -> None:
    job = in_every_status()[status]
    assert job.status == status
    for name, change in CHANGES.items():
        if name in allowed:
            assert change(job).version == job.version + 1
        else:
            with pytest.raises(InvalidTransition):
                change(job)


def test_job_without_executor_may_end_without_start() -> None:
    untracked = replace(pending(), executor="none")
    assert CHANGES["complete"](untracked).status == "completed"
    assert CHANGES["fail"](untracked).status == "failed"


def test_transition_table_covers_every_status() -> None:
    assert set(lifecycle.TRANSITIONS) == set(lifecycle.STATUSES)
    assert {status for targets in lifecycle.TRANSITIONS.values() for status in targets} <= set(lifecycle.STATUSES)


def test_end_sets_stage_health_and_finish_time() -> None:
    done, failed, gone = (
        CHANGES["complete"](running()),
        CHANGES["fail"](running()),
        CHANGES["cancel"](pending()),
    )
    assert [(job.stage, job.health) for job in (done, failed, gone)] == [
        ("complete", "success"), ("incomplete", "failed"), ("incomplete", "cancelled"),
    ]  # fmt: skip
    assert {job.finished_at for job in (done, failed, gone)} == {LATER}
    assert done.progress == 1
    assert failed.error == BROKEN


class TestReports:
    def test_report_of_an_earlier_stage_is_refused(self) -> None:
        job = transitions.report(running(), Report(stage="setup"), now=LATER, actor="k")
        with pytest.raises(InvalidTransition, match="comes after boot"):
            transitions.report(job, Report(stage="boot"), now=LATER, actor="k")
        assert transitions.report(job, Report(stage="setup"), now=LATER, actor="k") is job

    @pytest.mark.parametrize("stage", ["complete", "incomplete", "lunch"])
    def test_terminal_and_unknown_stages_are_refused(self, stage: str) -> None:
        with pytest.raises(ValidationFailed, match="/job_stage"):
            transitions.report(running(), Report(stage=stage), now=LATER, actor="k")

    def test_lower_progress_is_ignored(self) -> None:
        job = transitions.report(running(), Report(progress=Decimal("0.5")), now=LATER, actor="k")
        assert transitions.report(job, Report(progress=Decimal("0.4")), now=LATER, actor="k") is job
        assert transitions.report(
            job, Report(progress=Decimal("0.4"), message="m"), now=LATER, actor="k"
        ).progress == Decimal("0.5")

    def test_progress_and_message_alone_create_no_version(self) -> None:
        before = running()
        after = transitions.report(before, Report(progress=Decimal("0.5"), message="half"), now=LATER, actor="k")
        assert (after.version, after.live_version) == (before.version, before.live_version + 1)

    def test_pending_job_accepts_only_fields_milestones_and_message(self) -> None:
        job = transitions.report(
            pending(), Report(fields={"a": 1}, milestones=["m"], message="soon"), now=LATER, actor="k"
        )
        assert (job.fields, job.milestones, job.message) == ({"a": 1}, ("m",), "soon")
        for said in (Report(stage="boot"), Report(progress=Decimal("0.1"))):
            with pytest.raises(InvalidTransition):
                transitions.report(pending(), said, now=LATER, actor="k")

    def test_null_removes_a_field_and_repeated_milestones_are_ignored(self) -> None:
        job = transitions.report(
            running(fields={"a": 1, "b": 2}), Report(fields={"a": None}, milestones=["m"]), now=LATER, actor="k"
        )
        assert job.fields == {"b": 2}
        assert transitions.report(job, Report(milestones=["m"]), now=LATER, actor="k") is job

    def test_fields_over_the_limit_are_refused(self) -> None:
        with pytest.raises(ValidationFailed, match="/fields"):
            transitions.report(running(), Report(fields={"a": "x" * 40_000}), now=LATER, actor="k")


class TestCancel:
    def test_running_job_is_cancelled_by_request_and_enforced_after_the_grace(self) -> None:
        asked = transitions.cancel(running(), now=NOW, actor="k")
        assert (asked.status, asked.cancel_requested_at) == ("running", NOW)
        assert transitions.cancel(asked, now=LATER, actor="k") is asked
        assert transitions.apply_timers(asked, now=NOW + timedelta(seconds=59), actor="sweeper", jitter=0) is asked
        assert (
            transitions.apply_timers(asked, now=NOW + timedelta(seconds=60), actor="sweeper", jitter=0).status
            == "cancelled"
        )

    def test_failure_after_a_cancel_request_is_cancelled(self) -> None:
        asked = transitions.cancel(running(), now=NOW, actor="k")
        ended = transitions.fail(asked, BROKEN, now=LATER, actor="k", jitter=0)
        assert (ended.status, ended.health, ended.error) == ("cancelled", "cancelled", BROKEN)

    def test_completion_after_a_cancel_request_is_completed(self) -> None:
        asked = transitions.cancel(running(), now=NOW, actor="k")
        assert transitions.complete(asked, now=LATER, actor="k").status == "completed"


@given(
    max_attempts=st.integers(1, 5),
    lives=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    is_batch=st.booleans(),
)
def test_each_life_of_a_job_has_all_attempts_of_its_policy(max_attempts: int, lives: list[int], is_batch: bool) -> None:
    """Check lives that end by a cancel after some failed attempts, with a retry after each."""
    policy = RetryPolicy(max_attempts=max_attempts, initial_delay=Decimal(0))
    allowed = 1 if is_batch else max_attempts
    job = pending(retry=policy, batch_size=2 if is_batch else None)
    for failures in lives:
        first = job.attempt
        assert job.max_attempts == first + allowed - 1
        for _ in range(0 if is_batch else min(failures, allowed - 1)):
            job = transitions.start(job, now=NOW, actor="k")
            job = transitions.fail(job, BROKEN, now=NOW, actor="k", jitter=0)
            assert job.status == "pending"
        job = transitions.cancel(job, now=NOW, actor="k")
        last = job.attempt
        job = transitions.retry(job, now=NOW, actor="k")
        assert job.attempt == last + 1


def test_retry_resets_the_job_and_retains_its_fields() -> None:
    failed = transitions.fail(running(fields={"a": 1}), BROKEN, now=LATER, actor="k", jitter=0)
    again = transitions.retry(failed, now=LATER, actor="k")
    assert (again.status, again.stage, again.progress, again.attempt) == ("pending", "submit", Decimal(0), 2)
    assert (again.error, again.finished_at, again.health) == (None, None, None)
    assert again.fields == {"a": 1}


@given(st.lists(st.sampled_from(sorted(CHANGES)), max_size=30))
def test_each_change_adds_one_version_and_one_log_line(names: list[str]) -> None:
    job = pending()
    for name in names:
        if job.deleted:
            break
        try:
            job = CHANGES[name](job)
        except InvalidTransition:
            continue
    assert [line.version for line in job.log] == list(range(1, job.version + 1))
    assert (job.log[-1].status, job.log[-1].stage) == (job.status, job.stage)
    assert job.ended == (job.finished_at is not None)
