"""A run and everything that may happen to it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from vigil_core.domain.errors import InvalidTransition
from vigil_core.domain.jobs.job import JobError, NewJob
from vigil_core.domain.workflows import run as workflows
from vigil_core.domain.workflows.graph import Graph, Node
from vigil_core.domain.workflows.run import NewRun, Run

NOW = datetime(2026, 1, 31, 9, 0, tzinfo=UTC)
COUNTED: Any = {"completed": 1}


def created(**rest: Any) -> Run:
    jobs = (NewJob(job_id="", job_type="test", name="a"),)
    graph = Graph(nodes=[Node(name="a", job_type="test")])
    return workflows.create(
        "team", NewRun(workflow_id="r", name="test", jobs=jobs, graph=graph, **rest), now=NOW, by="k"
    )


def running(**rest: Any) -> Run:
    return workflows.begin(workflows.seal(created(**rest), now=NOW), now=NOW)


def ended(run: Run, first_failure: tuple[str, JobError | None] | None = None) -> Run:
    return workflows.end(run, first_failure=first_failure, statistics=COUNTED, now=NOW)


def kinds(run: Run) -> list[str]:
    return [line.kind for line in run.log]


def test_it_begins_once_its_jobs_are_there() -> None:
    run = created()
    assert run.status == "pending"
    assert not run.hands_out
    assert workflows.begin(run, now=NOW) == run, "its jobs are not there"
    sealed = workflows.seal(run, now=NOW)
    assert workflows.seal(sealed, now=NOW) == sealed
    begun = workflows.begin(sealed, now=NOW)
    assert (begun.status, begun.started_at, begun.hands_out) == ("running", NOW, True)
    assert workflows.begin(begun, now=NOW) == begun
    assert kinds(begun) == ["created", "started"]


def test_each_version_is_one_higher_and_tells_its_own_line() -> None:
    run = workflows.pause(running(), now=NOW, by="k")
    assert run.version == 4
    assert [(line.version, line.kind) for line in run.log] == [(1, "created"), (3, "started"), (4, "paused")]


@pytest.mark.parametrize(("policy", "facts"), [("fail_fast", 1), ("continue_on_failure", 0)])
def test_the_first_failure_is_noted_and_wakes_who_has_to_act(policy: Any, facts: int) -> None:
    run = workflows.note_failure(running(failure_policy=policy), "a", undecided=False, now=NOW)
    assert (run.failed_job, run.facts, run.status) == ("a", facts, "running")
    assert run.hands_out == (policy != "fail_fast"), "the write that notes it keeps others from starting"
    assert workflows.note_failure(run, "b", undecided=False, now=NOW) == run


def test_a_failure_to_be_decided_pauses_it() -> None:
    run = workflows.note_failure(running(failure_policy="manual"), "a", undecided=True, now=NOW)
    assert (run.status, run.hands_out, run.stopping) == ("paused", False, False)
    second = workflows.note_failure(run, "b", undecided=True, now=NOW)
    assert second.version == run.version + 1, "whoever is about to resume it has to see this"
    assert kinds(second) == ["created", "started", "paused"]
    with pytest.raises(InvalidTransition, match="2 failed jobs need a decision each"):
        workflows.resume(second, undecided=2, now=NOW, by="k")


def test_decisions_are_made_while_it_is_paused_and_then_it_goes_on() -> None:
    with pytest.raises(InvalidTransition, match="nothing to decide"):
        workflows.decide(running(), "a", "skip", now=NOW, by="k")
    paused = workflows.note_failure(running(failure_policy="manual"), "a", undecided=True, now=NOW)
    said = workflows.decide(paused, "a", "skip", now=NOW, by="k")
    assert (said.decisions_open, said.facts, said.log[-1].why) == (True, 1, "skip a")
    done = workflows.decisions_done(said, aborted=False, undecided=0, failed_job=None, now=NOW)
    assert (done.status, done.decisions_open, done.failed_job) == ("running", False, None)
    more = workflows.decisions_done(said, aborted=False, undecided=1, failed_job="b", now=NOW)
    assert (more.status, more.failed_job) == ("paused", "b")
    aborted = workflows.decisions_done(said, aborted=True, undecided=0, failed_job="a", now=NOW)
    assert (aborted.status, aborted.stopping) == ("paused", True)


def test_who_paused_it_resumes_it() -> None:
    paused = workflows.pause(running(failure_policy="manual"), now=NOW, by="k")
    with pytest.raises(InvalidTransition, match="Cannot pause"):
        workflows.pause(paused, now=NOW, by="k")
    said = replace(paused, decisions_open=True)
    assert workflows.decisions_done(said, aborted=False, undecided=0, failed_job=None, now=NOW).status == "paused"
    resumed = workflows.resume(paused, undecided=0, now=NOW, by="k")
    assert (resumed.status, resumed.paused_by_operator) == ("running", False)
    with pytest.raises(InvalidTransition, match="Cannot resume"):
        workflows.resume(resumed, undecided=0, now=NOW, by="k")


def test_a_cancel_is_asked_for_once_and_bars_all_else() -> None:
    run = workflows.request_cancel(running(), now=NOW, by="k")
    assert (run.status, run.stopping, run.hands_out, run.facts) == ("running", True, False, 1)
    assert workflows.request_cancel(run, now=NOW, by="other") == run
    with pytest.raises(InvalidTransition, match="running, and stopping"):
        workflows.pause(run, now=NOW, by="k")
    with pytest.raises(InvalidTransition, match="Cannot cancel"):
        workflows.request_cancel(ended(run), now=NOW, by="k")


def test_its_time_counts_from_its_creation() -> None:
    run = running(timeout_s=60)
    assert run.deadline_at == NOW + timedelta(seconds=60)
    assert workflows.pass_deadline(run, now=NOW + timedelta(seconds=59)) == run
    late = workflows.pass_deadline(run, now=NOW + timedelta(seconds=60))
    assert (late.deadline_passed, late.stopping, late.facts) == (True, True, 1)
    assert workflows.pass_deadline(late, now=NOW + timedelta(seconds=61)) == late


def test_it_is_drained_once() -> None:
    run = workflows.drain(running(), now=NOW)
    assert (run.drained, run.facts) == (True, 1)
    assert workflows.drain(run, now=NOW) == run
    assert workflows.drain(ended(running()), now=NOW).facts == 0


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
def test_how_it_ends(flags: dict[str, Any], first_failure: Any, status: str, code: str | None) -> None:
    run = ended(replace(running(), **flags), first_failure)
    assert (run.status, run.error and run.error.code, run.finished_at) == (status, code, NOW)
    assert run.statistics == COUNTED
    assert run.look_at is None
    assert kinds(run)[-1] == status


def test_the_error_names_the_job_that_failed() -> None:
    failed = ended(running(), ("a", BROKEN))
    assert failed.error == JobError(code="JOB_FAILED", message="Job a failed: BROKEN: it broke")
    cancelled = ended(running(), ("a", None))
    assert cancelled.error == JobError(code="JOB_FAILED", message="Job a was cancelled")


def test_a_retry_begins_it_anew() -> None:
    stopped = workflows.close(workflows.request_cancel(running(timeout_s=60), now=NOW, by="k"), now=NOW)
    over = ended(replace(workflows.drain(stopped, now=NOW), supervisor=3))
    later = NOW + timedelta(hours=1)
    with pytest.raises(InvalidTransition, match="no job of it has failed"):
        workflows.retry(over, frozenset(), now=later, by="k", start=None)
    with pytest.raises(InvalidTransition, match="Cannot retry"):
        workflows.retry(running(), frozenset({0}), now=later, by="k", start=None)
    again = workflows.retry(over, frozenset({0}), now=later, by="k", start="a")
    assert (again.status, again.generation, again.supervisor, again.sealed) == ("pending", 2, 1, False)
    assert (again.execution, again.again, again.facts) == ("r-2-1", frozenset({0}), 0)
    assert not again.stopping
    assert again.deadline_at == later + timedelta(seconds=60)
    assert (again.error, again.finished_at, again.statistics) == (None, None, None)
    assert again.log[-1].why == "from a"
    assert workflows.seal(again, now=later).again is None


def test_the_sweeper_looks_less_and_less_often_but_never_too_late() -> None:
    def next_look(run: Run, age: timedelta) -> timedelta:
        look_at = workflows.look_again(run, now=NOW + age).look_at
        assert look_at is not None
        return look_at - NOW - age

    assert next_look(running(), timedelta(0)) == timedelta(seconds=60)
    assert next_look(running(), timedelta(minutes=40)) == timedelta(minutes=10)
    assert next_look(running(), timedelta(days=2)) == timedelta(minutes=15)
    assert next_look(running(timeout_s=30), timedelta(0)) == timedelta(seconds=30)
    assert next_look(running(health_check_interval_s=20), timedelta(days=2)) == timedelta(seconds=20)


def test_its_history_keeps_the_last_lines() -> None:
    run = running()
    for _ in range(40):
        run = workflows.resume(workflows.pause(run, now=NOW, by="k"), undecided=0, now=NOW, by="k")
    assert len(run.log) == workflows.LINES_KEPT
    assert run.log[-1].version == run.version
