"""A run and every transition of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from vigil_core.domain.errors import InvalidTransition
from vigil_core.domain.jobs.job import JobError, NewJob
from vigil_core.domain.workflows import run as workflows
from vigil_core.domain.workflows.graph import Graph, Node
from vigil_core.domain.workflows.run import NewWorkflowRun, WorkflowRun

NOW = datetime(2026, 1, 31, 9, 0, tzinfo=UTC)
COUNTED: Any = {"completed": 1}


def created(**rest: Any) -> WorkflowRun:
    jobs = (NewJob(job_id="", job_type="test", name="a"),)
    graph = Graph(nodes=[Node(name="a", job_type="test")])
    return workflows.create(
        "team", NewWorkflowRun(workflow_id="r", name="test", jobs=jobs, graph=graph, **rest), now=NOW, actor="k"
    )


def running(**rest: Any) -> WorkflowRun:
    return workflows.start(workflows.mark_registration_complete(created(**rest), now=NOW), now=NOW)


def ended(run: WorkflowRun, first_failure: tuple[str, JobError | None] | None = None) -> WorkflowRun:
    return workflows.end(run, first_failure=first_failure, statistics=COUNTED, now=NOW)


def kinds(run: WorkflowRun) -> list[str]:
    return [line.kind for line in run.log]


def test_run_starts_once_its_jobs_are_registered() -> None:
    run = created()
    assert run.status == "pending"
    assert not run.accepts_starts
    assert workflows.start(run, now=NOW) == run, "its jobs are not there"
    sealed = workflows.mark_registration_complete(run, now=NOW)
    assert workflows.mark_registration_complete(sealed, now=NOW) == sealed
    begun = workflows.start(sealed, now=NOW)
    assert (begun.status, begun.started_at, begun.accepts_starts) == ("running", NOW, True)
    assert workflows.start(begun, now=NOW) == begun
    assert kinds(begun) == ["created", "started"]


def test_each_run_version_adds_one_log_line() -> None:
    run = workflows.pause(running(), now=NOW, actor="k")
    assert run.version == 4
    assert [(line.version, line.kind) for line in run.log] == [(1, "created"), (3, "started"), (4, "paused")]


@pytest.mark.parametrize(("policy", "facts"), [("fail_fast", 1), ("continue_on_failure", 0)])
def test_first_failure_is_recorded_and_signals_the_supervisor(policy: Any, facts: int) -> None:
    run = workflows.record_failure(running(failure_policy=policy), "a", awaits_decision=False, now=NOW)
    assert (run.failed_job, run.signal_count, run.status) == ("a", facts, "running")
    assert run.accepts_starts == (policy != "fail_fast"), "the write that notes it keeps others from starting"
    assert workflows.record_failure(run, "b", awaits_decision=False, now=NOW) == run


def test_failure_that_requires_a_decision_pauses_the_run() -> None:
    run = workflows.record_failure(running(failure_policy="manual"), "a", awaits_decision=True, now=NOW)
    assert (run.status, run.accepts_starts, run.terminating) == ("paused", False, False)
    second = workflows.record_failure(run, "b", awaits_decision=True, now=NOW)
    assert second.version == run.version + 1, "whoever is about to resume it has to see this"
    assert kinds(second) == ["created", "started", "paused"]
    with pytest.raises(InvalidTransition, match="2 failed jobs need a decision each"):
        workflows.resume(second, awaiting_decision=2, now=NOW, actor="k")


def test_decisions_resume_a_paused_run() -> None:
    with pytest.raises(InvalidTransition, match="awaits no decision"):
        workflows.decide(running(), "a", "skip", now=NOW, actor="k")
    paused = workflows.record_failure(running(failure_policy="manual"), "a", awaits_decision=True, now=NOW)
    said = workflows.decide(paused, "a", "skip", now=NOW, actor="k")
    assert (said.has_pending_decisions, said.signal_count, said.log[-1].reason) == (True, 1, "skip a")
    done = workflows.complete_decisions(said, aborted=False, awaiting_decision=0, failed_job=None, now=NOW)
    assert (done.status, done.has_pending_decisions, done.failed_job) == ("running", False, None)
    more = workflows.complete_decisions(said, aborted=False, awaiting_decision=1, failed_job="b", now=NOW)
    assert (more.status, more.failed_job) == ("paused", "b")
    aborted = workflows.complete_decisions(said, aborted=True, awaiting_decision=0, failed_job="a", now=NOW)
    assert (aborted.status, aborted.terminating) == ("paused", True)


def test_run_paused_by_an_operator_requires_a_resume() -> None:
    paused = workflows.pause(running(failure_policy="manual"), now=NOW, actor="k")
    with pytest.raises(InvalidTransition, match="Cannot pause"):
        workflows.pause(paused, now=NOW, actor="k")
    said = replace(paused, has_pending_decisions=True)
    assert (
        workflows.complete_decisions(said, aborted=False, awaiting_decision=0, failed_job=None, now=NOW).status
        == "paused"
    )
    resumed = workflows.resume(paused, awaiting_decision=0, now=NOW, actor="k")
    assert (resumed.status, resumed.paused_by_operator) == ("running", False)
    with pytest.raises(InvalidTransition, match="Cannot resume"):
        workflows.resume(resumed, awaiting_decision=0, now=NOW, actor="k")


def test_cancel_request_is_recorded_once_and_blocks_other_commands() -> None:
    run = workflows.request_cancel(running(), now=NOW, actor="k")
    assert (run.status, run.terminating, run.accepts_starts, run.signal_count) == ("running", True, False, 1)
    assert workflows.request_cancel(run, now=NOW, actor="other") == run
    with pytest.raises(InvalidTransition, match="running and terminating"):
        workflows.pause(run, now=NOW, actor="k")
    with pytest.raises(InvalidTransition, match="Cannot cancel"):
        workflows.request_cancel(ended(run), now=NOW, actor="k")


def test_run_timeout_counts_from_its_creation() -> None:
    run = running(timeout_s=60)
    assert run.deadline_at == NOW + timedelta(seconds=60)
    assert workflows.apply_deadline(run, now=NOW + timedelta(seconds=59)) == run
    late = workflows.apply_deadline(run, now=NOW + timedelta(seconds=60))
    assert (late.deadline_passed, late.terminating, late.signal_count) == (True, True, 1)
    assert workflows.apply_deadline(late, now=NOW + timedelta(seconds=61)) == late


def test_run_is_drained_once() -> None:
    run = workflows.drain(running(), now=NOW)
    assert (run.drained, run.signal_count) == (True, 1)
    assert workflows.drain(run, now=NOW) == run
    assert workflows.drain(ended(running()), now=NOW).signal_count == 0


BROKEN = JobError(code="BROKEN", message="it broke")


@pytest.mark.parametrize(
    ("flags", "first_failure", "status", "code"),
    [
        ({}, None, "completed", None),
        ({}, ("a", BROKEN), "failed", "JOB_FAILED"),
        ({"aborted": True}, ("a", BROKEN), "failed", "ABORTED"),
        ({"aborted": True, "deadline_passed": True}, ("a", BROKEN), "failed", "TIMED_OUT"),
        ({"cancel_requested_by": "k", "deadline_passed": True}, ("a", BROKEN), "cancelled", None),
    ],
)
def test_run_end_status_follows_its_flags_and_failures(
    flags: dict[str, Any], first_failure: Any, status: str, code: str | None
) -> None:
    run = ended(replace(running(), **flags), first_failure)
    assert (run.status, run.error and run.error.code, run.finished_at) == (status, code, NOW)
    assert run.statistics == COUNTED
    assert run.next_check_at is None
    assert kinds(run)[-1] == status


def test_run_error_names_the_failed_job() -> None:
    failed = ended(running(), ("a", BROKEN))
    assert failed.error == JobError(code="JOB_FAILED", message="Job a failed: BROKEN: it broke")
    cancelled = ended(running(), ("a", None))
    assert cancelled.error == JobError(code="JOB_FAILED", message="Job a was cancelled")


def test_retry_resets_the_run() -> None:
    stopped = workflows.begin_cancelling(workflows.request_cancel(running(timeout_s=60), now=NOW, actor="k"), now=NOW)
    over = ended(replace(workflows.drain(stopped, now=NOW), supervisor=3))
    later = NOW + timedelta(hours=1)
    with pytest.raises(InvalidTransition, match="none of its jobs has failed"):
        workflows.retry(over, frozenset(), now=later, actor="k", start=None)
    with pytest.raises(InvalidTransition, match="Cannot retry"):
        workflows.retry(running(), frozenset({0}), now=later, actor="k", start=None)
    again = workflows.retry(over, frozenset({0}), now=later, actor="k", start="a")
    assert (again.status, again.generation, again.supervisor, again.registration_complete) == ("pending", 2, 1, False)
    assert (again.execution_name, again.rerun, again.signal_count) == ("r-2-1", frozenset({0}), 0)
    assert not again.terminating
    assert again.deadline_at == later + timedelta(seconds=60)
    assert (again.error, again.finished_at, again.statistics) == (None, None, None)
    assert again.log[-1].reason == "from a"
    assert workflows.mark_registration_complete(again, now=later).rerun is None


def test_sweeper_checks_become_rarer_but_never_late() -> None:
    def next_look(run: WorkflowRun, age: timedelta) -> timedelta:
        look_at = workflows.schedule_next_check(run, now=NOW + age).next_check_at
        assert look_at is not None
        return look_at - NOW - age

    assert next_look(running(), timedelta(0)) == timedelta(seconds=60)
    assert next_look(running(), timedelta(minutes=40)) == timedelta(minutes=10)
    assert next_look(running(), timedelta(days=2)) == timedelta(minutes=15)
    assert next_look(running(timeout_s=30), timedelta(0)) == timedelta(seconds=30)
    assert next_look(running(health_check_interval_s=20), timedelta(days=2)) == timedelta(seconds=20)


def test_run_history_retains_the_last_lines() -> None:
    run = running()
    for _ in range(40):
        run = workflows.resume(workflows.pause(run, now=NOW, actor="k"), awaiting_decision=0, now=NOW, actor="k")
    assert len(run.log) == workflows.MAX_LOG_ENTRIES
    assert run.log[-1].version == run.version
