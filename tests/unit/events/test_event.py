"""An event is a function of one version of an entity, and its id names that version."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import get_args

import pytest

from vigil_core.domain.events.event import job_event, parse_event_id, progress_of_report, wait_event
from vigil_core.domain.jobs import transitions
from vigil_core.domain.jobs.job import Job, JobError, JobLogKind, NewJob, Report
from vigil_core.domain.waits.wait import Wait, WaitOptions, WaitStatus
from vigil_core.domain.workflows.run import RunLogKind

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
JOB = "019bf000-0000-7000-8000-000000000001"


def job_with_history() -> Job:
    """Return a job with a long history, all of it in the version."""
    job = transitions.create("demo", NewJob(job_id=JOB, job_type="build"), now=NOON, actor="key", payload_ref=None)
    job = transitions.start(job, now=NOON, actor="key")
    job = transitions.report(job, Report(stage="boot", progress=Decimal("0.5")), now=NOON, actor="key")
    job = transitions.fail(job, JobError(code="BROKEN", message="secret"), now=NOON, actor="key", jitter=0)
    job = transitions.retry(job, now=NOON, actor="key")
    job = transitions.start(job, now=NOON, actor="key")
    job = transitions.complete(job, now=NOON + timedelta(seconds=1), actor="key", health="degraded")
    return transitions.delete(job, now=NOON, actor="key")


def test_event_of_a_version_is_the_same_from_any_later_version() -> None:
    last = job_with_history()
    versions = [replace(last, log=last.log[:end], status=last.log[end - 1].status) for end in range(1, 9)]
    for version, before, line in zip(versions, (None, *last.log), last.log, strict=False):
        assert job_event(version, line, before) == job_event(last, line, before)


def test_job_events_have_the_expected_types_reasons_and_health() -> None:
    last = job_with_history()
    told = [job_event(last, line, before) for before, line in zip((None, *last.log), last.log, strict=False)]
    assert [(event.type.removeprefix("vigil.job."), event.audience, event.data["job_health"]) for event in told] == [
        ("created", "change", None),
        ("started", "change", None),
        ("updated", "change", None),
        ("failed", "ending", "failed"),
        ("retried", "change", None),
        ("started", "change", None),
        ("completed", "ending", "degraded"),
        ("deleted", "change", None),
    ]
    assert told[0].data["from"] is None
    assert told[4].data["from"] == {"status": "failed", "job_stage": "incomplete"}
    assert told[3].data["why"] == "BROKEN"
    assert "secret" not in str([event.data for event in told])


def test_completion_without_health_is_a_success() -> None:
    job = transitions.create("demo", NewJob(job_id=JOB, job_type="build"), now=NOON, actor="key", payload_ref=None)
    done = transitions.complete(transitions.start(job, now=NOON, actor="key"), now=NOON, actor="key")
    assert done.log[-1].reason is None
    assert job_event(done, done.log[-1], done.log[-2]).data["job_health"] == "success"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (Report(stage="boot"), False),
        (Report(fields={"progress_bar": 1}), False),
        (Report(stage="boot", progress=Decimal("0.5")), True),
        (Report(stage="boot", message="hello"), True),
    ],
)
def test_progress_event_exists_when_a_report_changes_progress(said: Report, told: bool) -> None:
    job = transitions.create("demo", NewJob(job_id=JOB, job_type="build"), now=NOON, actor="key", payload_ref=None)
    job = transitions.report(transitions.start(job, now=NOON, actor="key"), said, now=NOON, actor="key")
    assert (progress_of_report(job) is not None) is told


def test_open_wait_has_no_event() -> None:
    wait = Wait(
        namespace="demo", wait_id=JOB, status="waiting", options=WaitOptions(needed=1), raw_options="{}", total=1,
        created_by="key", created_at=NOON, expires_at=NOON,
    )  # fmt: skip
    with pytest.raises(ValueError, match="has not ended"):
        wait_event(wait, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{JOB}.7", (JOB, 7)),
        (f"{JOB}.7.12", (JOB, 7)),
        (JOB, None),
        (f"{JOB}.", None),
        (f"{JOB}.-1", None),
        (f"{JOB}.1.2.3", None),
        (f"{JOB}.{'1' * 11}", None),
        (f"x{JOB}.1", None),
        (f"{JOB}.1\n", None),
        ("", None),
    ],
)
def test_event_id_is_parsed_or_refused(text: str, expected: tuple[str, int] | None) -> None:
    assert parse_event_id(text) == expected


DOCUMENT = (Path(__file__).parents[3] / "docs" / "events.md").read_text()


@pytest.mark.parametrize("kind", get_args(JobLogKind))
def test_every_job_event_is_documented(kind: str) -> None:
    assert f"`vigil.job.{kind}`" in DOCUMENT


@pytest.mark.parametrize("status", sorted(set(get_args(WaitStatus)) - {"waiting"}))
def test_every_wait_event_is_documented(status: str) -> None:
    assert f"`vigil.wait.{status}`" in DOCUMENT


@pytest.mark.parametrize("kind", get_args(RunLogKind))
def test_every_workflow_event_is_documented(kind: str) -> None:
    assert f"`vigil.workflow.{kind}`" in DOCUMENT


def test_every_event_field_is_documented() -> None:
    job = job_with_history()
    names = job_event(job, job.log[-1], job.log[-2]).data
    assert [name for name in names if f"`{name}`" not in DOCUMENT] == []
