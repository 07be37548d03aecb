"""Custom stage orders, without a table."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from vigil_core.domain.errors import InvalidTransition, ValidationFailed
from vigil_core.domain.jobs import transitions
from vigil_core.domain.jobs.job import Job, JobError, NewJob, Report
from vigil_core.domain.jobs.stages import MAX_STAGES, normalize_stages
from vigil_core.domain.waits.wait import WaitCondition, evaluate
from vigil_core.store.jobs.job_rows import job_from_row, job_to_row

NOW = datetime(2026, 1, 31, 9, 0, tzinfo=UTC)
ORDER = ("submit", "flash", "boot", "test", "complete")


def flashing(**wanted: object) -> Job:
    new = NewJob(**{"job_id": "j", "job_type": "flash", "stages": ORDER, **wanted})  # type: ignore[arg-type]
    job = transitions.start(transitions.create("team", new, now=NOW, actor="k", payload_ref=None), now=NOW, actor="k")
    return transitions.report(job, Report(stage="flash"), now=NOW, actor="k")


def stored(job: Job) -> Job:
    """Return the job as the table returns it, without nulls."""
    return job_from_row({name: value for name, value in job_to_row(job).items() if value is not None})


@pytest.mark.parametrize(
    "named",
    [
        ["flash", "boot", "test"], ["submit", "flash", "boot", "test"], ["flash", "boot", "test", "complete"],
        ["submit", "flash", "boot", "test", "complete"],
    ],
)  # fmt: skip
def test_order_always_begins_with_submit_and_ends_with_complete(named: list[str]) -> None:
    assert normalize_stages(named) == ORDER
    assert normalize_stages(normalize_stages(named)) == ORDER


@pytest.mark.parametrize("named", [["submit"], ["complete"], ["submit", "complete"]])
def test_order_may_contain_only_submit_and_complete(named: list[str]) -> None:
    assert normalize_stages(named) == ("submit", "complete")


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
def test_invalid_order_is_refused_with_its_pointer(named: list[str], pointer: str) -> None:
    with pytest.raises(ValidationFailed) as refused:
        normalize_stages(named)
    assert [problem.pointer for problem in refused.value.problems] == [pointer]


def test_order_of_maximum_length_is_accepted() -> None:
    assert len(normalize_stages([f"s{n}" for n in range(MAX_STAGES - 2)])) == MAX_STAGES


def test_reports_follow_the_stage_order_of_the_job() -> None:
    job = transitions.report(flashing(), Report(stage="test"), now=NOW, actor="k")
    with pytest.raises(InvalidTransition):
        transitions.report(job, Report(stage="boot"), now=NOW, actor="k")
    with pytest.raises(ValidationFailed, match="submit, flash, boot, test, complete"):
        transitions.report(job, Report(stage="post_run"), now=NOW, actor="k")


def test_waits_follow_the_stage_order_of_the_job() -> None:
    job = transitions.report(flashing(), Report(stage="boot"), now=NOW, actor="k")
    verdicts = {stage: evaluate(WaitCondition(stage=stage), job, fail_fast=False) for stage in (*ORDER, "download")}
    assert verdicts == {
        "submit": "met", "flash": "met", "boot": "met", "test": None, "complete": None, "download": "unmet",
    }  # fmt: skip


def test_stage_order_survives_retries_and_storage() -> None:
    failed = transitions.fail(flashing(), JobError(code="E", message="m"), now=NOW, actor="k", jitter=0)
    retried = transitions.retry(failed, now=NOW, actor="k")
    assert retried.stages == ORDER
    assert stored(retried) == retried
    bare = flashing(stages=("submit", "flash", "complete"))
    assert stored(bare).stages == ("submit", "flash", "complete")
    ends = replace(bare, stages=("submit", "complete"))
    assert stored(ends).stages == ("submit", "complete")


def test_default_stage_order_is_not_stored_in_the_row() -> None:
    usual = transitions.create("team", NewJob(job_id="j", job_type="t"), now=NOW, actor="k", payload_ref=None)
    assert job_to_row(usual)["stages"] is None
    assert job_to_row(flashing())["stages"] == ["flash", "boot", "test"]
