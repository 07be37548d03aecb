"""The life of a job, without a table."""

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
from vigil_core.domain.jobs import job as jobs
from vigil_core.domain.jobs import status as lifecycle
from vigil_core.domain.jobs.job import Job, JobError, NewJob, Report

NOW = datetime(2026, 1, 31, 9, 0, tzinfo=UTC)
LATER = NOW + timedelta(seconds=5)
BROKEN = JobError(code="BROKEN", message="it broke")


def pending(**wanted: Any) -> Job:
    new = NewJob(**{"job_id": "j", "job_type": "test", **wanted})
    return jobs.create("team", new, now=NOW, by="key1", payload_ref=None)


def running(**wanted: Any) -> Job:
    return jobs.start(pending(**wanted), now=NOW, by="key1")


CHANGES: dict[str, Callable[[Job], Job]] = {
    "start": lambda job: jobs.start(job, now=LATER, by="k"),
    "complete": lambda job: jobs.complete(job, now=LATER, by="k"),
    "fail": lambda job: jobs.fail(job, BROKEN, now=LATER, by="k", chance=0),
    "cancel": lambda job: jobs.cancel(job, now=LATER, by="k"),
    "retry": lambda job: jobs.retry(job, now=LATER, by="k"),
    "delete": lambda job: jobs.delete(job, now=LATER, by="k"),
    "report": lambda job: jobs.report(job, Report(stage="boot"), now=LATER, by="k"),
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
def test_what_each_status_allows(status: str, allowed: set[str]) -> None:
    job = in_every_status()[status]
    assert job.status == status
    for name, change in CHANGES.items():
        if name in allowed:
            assert change(job).version == job.version + 1
        else:
            with pytest.raises(InvalidTransition):
                change(job)


def test_executor_none_may_end_without_having_started() -> None:
    untracked = replace(pending(), executor="none")
    assert CHANGES["complete"](untracked).status == "completed"
    assert CHANGES["fail"](untracked).status == "failed"


def test_every_status_is_in_the_table() -> None:
    assert set(lifecycle.ALLOWED) == set(lifecycle.STATUSES)
    assert {status for targets in lifecycle.ALLOWED.values() for status in targets} <= set(lifecycle.STATUSES)


def test_endings_set_stage_health_and_time() -> None:
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
    def test_a_stage_never_goes_back(self) -> None:
        job = jobs.report(running(), Report(stage="setup"), now=LATER, by="k")
        with pytest.raises(InvalidTransition, match="comes after boot"):
            jobs.report(job, Report(stage="boot"), now=LATER, by="k")
        assert jobs.report(job, Report(stage="setup"), now=LATER, by="k") is job

    @pytest.mark.parametrize("stage", ["complete", "incomplete", "lunch"])
    def test_stages_that_cannot_be_reported(self, stage: str) -> None:
        with pytest.raises(ValidationFailed, match="/job_stage"):
            jobs.report(running(), Report(stage=stage), now=LATER, by="k")

    def test_a_lower_progress_is_ignored(self) -> None:
        job = jobs.report(running(), Report(progress=Decimal("0.5")), now=LATER, by="k")
        assert jobs.report(job, Report(progress=Decimal("0.4")), now=LATER, by="k") is job
        assert jobs.report(job, Report(progress=Decimal("0.4"), message="m"), now=LATER, by="k").progress == Decimal(
            "0.5"
        )

    def test_progress_and_message_alone_make_no_version(self) -> None:
        before = running()
        after = jobs.report(before, Report(progress=Decimal("0.5"), message="half"), now=LATER, by="k")
        assert (after.version, after.live_version) == (before.version, before.live_version + 1)

    def test_before_it_runs_a_job_takes_fields_milestones_and_message(self) -> None:
        job = jobs.report(pending(), Report(fields={"a": 1}, milestones=["m"], message="soon"), now=LATER, by="k")
        assert (job.fields, job.milestones, job.message) == ({"a": 1}, ("m",), "soon")
        for said in (Report(stage="boot"), Report(progress=Decimal("0.1"))):
            with pytest.raises(InvalidTransition):
                jobs.report(pending(), said, now=LATER, by="k")

    def test_null_removes_a_field_and_milestones_are_a_set(self) -> None:
        job = jobs.report(
            running(fields={"a": 1, "b": 2}), Report(fields={"a": None}, milestones=["m"]), now=LATER, by="k"
        )
        assert job.fields == {"b": 2}
        assert jobs.report(job, Report(milestones=["m"]), now=LATER, by="k") is job

    def test_fields_have_a_limit(self) -> None:
        with pytest.raises(ValidationFailed, match="/fields"):
            jobs.report(running(), Report(fields={"a": "x" * 40_000}), now=LATER, by="k")


class TestCancel:
    def test_a_running_job_is_asked_then_forced(self) -> None:
        asked = jobs.cancel(running(), now=NOW, by="k")
        assert (asked.status, asked.cancel_requested_at) == ("running", NOW)
        assert jobs.cancel(asked, now=LATER, by="k") is asked
        assert jobs.on_time(asked, now=NOW + timedelta(seconds=59), by="sweeper", chance=0) is asked
        assert jobs.on_time(asked, now=NOW + timedelta(seconds=60), by="sweeper", chance=0).status == "cancelled"

    def test_one_that_fails_after_it_was_asked_is_cancelled(self) -> None:
        asked = jobs.cancel(running(), now=NOW, by="k")
        ended = jobs.fail(asked, BROKEN, now=LATER, by="k", chance=0)
        assert (ended.status, ended.health, ended.error) == ("cancelled", "cancelled", BROKEN)

    def test_one_that_completes_all_the_same_is_completed(self) -> None:
        asked = jobs.cancel(running(), now=NOW, by="k")
        assert jobs.complete(asked, now=LATER, by="k").status == "completed"


def test_retry_begins_anew_and_keeps_what_was_learnt() -> None:
    failed = jobs.fail(running(fields={"a": 1}), BROKEN, now=LATER, by="k", chance=0)
    again = jobs.retry(failed, now=LATER, by="k")
    assert (again.status, again.stage, again.progress, again.attempt) == ("pending", "submit", Decimal(0), 2)
    assert (again.error, again.finished_at, again.health) == (None, None, None)
    assert again.fields == {"a": 1}


@given(st.lists(st.sampled_from(sorted(CHANGES)), max_size=30))
def test_versions_count_changes_and_the_log_tells_each(names: list[str]) -> None:
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
