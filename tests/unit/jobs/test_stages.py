"""Orders of stages of one's own, without a table."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from vigil_core.domain.errors import InvalidTransition, ValidationFailed
from vigil_core.domain.jobs import job as jobs
from vigil_core.domain.jobs.job import Job, JobError, NewJob, Report
from vigil_core.domain.jobs.stages import MAX_STAGES, order_of
from vigil_core.domain.waits.wait import Condition, judge
from vigil_core.store.jobs.jobs import job_from_row, job_to_row

NOW = datetime(2026, 1, 31, 9, 0, tzinfo=UTC)
ORDER = ("submit", "flash", "boot", "test", "complete")


def flashing(**wanted: object) -> Job:
    new = NewJob(**{"job_id": "j", "job_type": "flash", "stages": ORDER, **wanted})  # type: ignore[arg-type]
    job = jobs.start(jobs.create("team", new, now=NOW, by="k", payload_ref=None), now=NOW, by="k")
    return jobs.report(job, Report(stage="flash"), now=NOW, by="k")


def stored(job: Job) -> Job:
    """The job as it comes back from the table, which holds no nulls."""
    return job_from_row({name: value for name, value in job_to_row(job).items() if value is not None})


@pytest.mark.parametrize(
    "named",
    [
        ["flash", "boot", "test"], ["submit", "flash", "boot", "test"], ["flash", "boot", "test", "complete"],
        ["submit", "flash", "boot", "test", "complete"],
    ],
)  # fmt: skip
def test_submit_is_first_and_complete_last_named_or_not(named: list[str]) -> None:
    assert order_of(named) == ORDER
    assert order_of(order_of(named)) == ORDER


@pytest.mark.parametrize("named", [["submit"], ["complete"], ["submit", "complete"]])
def test_an_order_of_its_two_ends_alone(named: list[str]) -> None:
    assert order_of(named) == ("submit", "complete")


@pytest.mark.parametrize(
    ("named", "pointer"),
    [
        (["a", "incomplete"], "/stages/1"),
        (["a", "b", "a"], "/stages/2"),
        (["submit", "a", "submit"], "/stages/2"),
        (["a", "submit"], "/stages/1"),
        (["complete", "a"], "/stages/0"),
        (["complete", "submit"], "/stages/0"),
        ([f"s{n}" for n in range(MAX_STAGES - 1)], "/stages"),
    ],
)
def test_what_is_no_order(named: list[str], pointer: str) -> None:
    with pytest.raises(ValidationFailed) as refused:
        order_of(named)
    assert [problem.pointer for problem in refused.value.problems] == [pointer]


def test_the_longest_order() -> None:
    assert len(order_of([f"s{n}" for n in range(MAX_STAGES - 2)])) == MAX_STAGES


def test_reports_are_judged_by_the_job_s_own_order() -> None:
    job = jobs.report(flashing(), Report(stage="test"), now=NOW, by="k")
    with pytest.raises(InvalidTransition):
        jobs.report(job, Report(stage="boot"), now=NOW, by="k")
    with pytest.raises(ValidationFailed, match="submit, flash, boot, test, complete"):
        jobs.report(job, Report(stage="post_run"), now=NOW, by="k")


def test_waits_are_judged_by_the_job_s_own_order() -> None:
    job = jobs.report(flashing(), Report(stage="boot"), now=NOW, by="k")
    verdicts = {stage: judge(Condition(stage=stage), job, fail_fast=False) for stage in (*ORDER, "download")}
    assert verdicts == {
        "submit": "met", "flash": "met", "boot": "met", "test": None, "complete": None, "download": "unmet",
    }  # fmt: skip


def test_the_order_stays_with_the_job_through_retries_and_the_table() -> None:
    failed = jobs.fail(flashing(), JobError(code="E", message="m"), now=NOW, by="k", chance=0)
    retried = jobs.retry(failed, now=NOW, by="k")
    assert retried.stages == ORDER
    assert stored(retried) == retried
    bare = flashing(stages=("submit", "flash", "complete"))
    assert stored(bare).stages == ("submit", "flash", "complete")
    ends = replace(bare, stages=("submit", "complete"))
    assert stored(ends).stages == ("submit", "complete")


def test_the_default_order_takes_no_room_in_the_row() -> None:
    usual = jobs.create("team", NewJob(job_id="j", job_type="t"), now=NOW, by="k", payload_ref=None)
    assert job_to_row(usual)["stages"] is None
    assert job_to_row(flashing())["stages"] == ["flash", "boot", "test"]
