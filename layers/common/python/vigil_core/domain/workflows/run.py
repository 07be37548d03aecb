"""A run of a workflow, and everything that may happen to it. Each function returns the next version or raises.

What its supervisor has to know of is a fact in the run's row: it is counted, and stays. The supervisor says up to which
fact it has seen; whoever sees that there are more wakes it. So no signal is lost, whoever comes first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

from vigil_core.domain.errors import InvalidTransition
from vigil_core.domain.jobs.job import TIMED_OUT, JobError, NewJob, Priority
from vigil_core.domain.jobs.status import JobStatus
from vigil_core.domain.workflows.graph import Graph
from vigil_core.domain.workflows.run_state import FailurePolicy

RunStatus: TypeAlias = Literal["pending", "running", "paused", "completed", "failed", "cancelled"]
RunKind: TypeAlias = Literal[
    "created", "started", "paused", "resumed", "job_failed", "decided", "stalled", "cancel_requested", "timed_out",
    "retried", "completed", "failed", "cancelled",
]  # fmt: skip
DecisionAction: TypeAlias = Literal["retry", "skip", "abort"]

RUN_STATUSES: tuple[RunStatus, ...] = ("pending", "running", "paused", "completed", "failed", "cancelled")
ENDED: frozenset[RunStatus] = frozenset({"completed", "failed", "cancelled"})
JOB_FAILED = "JOB_FAILED"
ABORTED = "ABORTED"
LINES_KEPT = 50
LONGEST = timedelta(days=360)
"""A run takes no longer, for its jobs are kept for a year."""
FIRST_LOOK = timedelta(seconds=60)
LONGEST_LOOK = timedelta(minutes=15)


@dataclass(frozen=True, kw_only=True)
class RunLine:
    """One line of a run's history."""

    version: int
    at: datetime
    kind: RunKind
    by: str
    status: RunStatus
    why: str | None = None


@dataclass(frozen=True, kw_only=True)
class NewRun:
    """What a client asks for, already validated: jobs in their order, and their graph."""

    workflow_id: str
    name: str
    jobs: tuple[NewJob, ...]
    """With what their types and the run add; their payloads too."""
    graph: Graph
    description: str | None = None
    failure_policy: FailurePolicy = "fail_fast"
    priority: Priority = "normal"
    timeout_s: int | None = None
    max_concurrency: int | None = None
    health_check_interval_s: int | None = None
    output: str | None = None
    trace_id: str | None = None
    correlation_id: str | None = None
    schedule: str | None = None


@dataclass(frozen=True, kw_only=True)
class Run:
    """One version of a run. Its graph, the bodies of its jobs and how they stand are in rows of their own."""

    namespace: str
    workflow_id: str
    name: str
    description: str | None
    status: RunStatus
    failure_policy: FailurePolicy
    priority: Priority
    timeout_s: int | None
    max_concurrency: int | None
    health_check_interval_s: int | None
    output: str | None
    trace_id: str | None
    correlation_id: str | None
    total: int
    edges: int
    generation: int
    """How often it was begun: each retry begins it anew."""
    supervisor: int
    """How many executions have supervised this generation."""
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    deadline_at: datetime
    version: int
    log: tuple[RunLine, ...]
    sealed: bool = False
    """Whether all jobs of this generation are there, so that it may begin."""
    facts: int = 0
    """How many things have happened that its supervisor has to know of."""
    failed_job: str | None = None
    """The name of the first job that failed it."""
    cancel_requested_by: str | None = None
    deadline_passed: bool = False
    aborted: bool = False
    drained: bool = False
    decisions_open: bool = False
    """Whether operators have said what the supervisor has not yet done."""
    closing: bool = False
    """Whether its supervisor has begun to cancel what is left."""
    paused_by_operator: bool = False
    again: frozenset[int] | None = None
    """What a retry runs again, while that is being prepared."""
    error: JobError | None = None
    result_ref: str | None = None
    statistics: Mapping[JobStatus, int] | None = None
    """Of an ended run: what they were at its end."""
    look_at: datetime | None = None
    """When the sweeper is to see whether all is well."""
    stalled_at: datetime | None = None
    """When it was last announced that nothing goes on."""
    expires_at: datetime | None = field(default=None, compare=False)

    @property
    def ended(self) -> bool:
        """Whether nothing happens to it any more, but for a retry."""
        return self.status in ENDED

    @property
    def stopping(self) -> bool:
        """Whether it is certain that what has not ended is to be cancelled."""
        failed_fast = self.failure_policy == "fail_fast" and self.failed_job is not None
        return (
            self.closing or self.cancel_requested_by is not None or self.deadline_passed or self.aborted or failed_fast
        )

    @property
    def hands_out(self) -> bool:
        """Whether its jobs may begin."""
        return self.status == "running" and not self.stopping

    @property
    def execution(self) -> str:
        """The name of the execution that supervises it: https://docs.aws.amazon.com/step-functions/latest/apireference/
        API_StartExecution.html keeps names for 90 days."""
        return f"{self.workflow_id}-{self.supervised}"

    @property
    def supervised(self) -> str:
        """What its execution calls the generation that it supervises, and itself."""
        return supervised(self.generation, self.supervisor)


def supervised(generation: int, supervisor: int) -> str:
    """A generation of a run and the number of the execution that supervises it, as one word."""
    return f"{generation}-{supervisor}"


def create(namespace: str, new: NewRun, *, now: datetime, by: str) -> Run:
    """The first version: `pending` until all its jobs are there and its supervisor has begun."""
    line = RunLine(version=1, at=now, kind="created", by=by, status="pending", why=new.schedule)
    return Run(
        namespace=namespace,
        workflow_id=new.workflow_id,
        name=new.name,
        description=new.description,
        status="pending",
        failure_policy=new.failure_policy,
        priority=new.priority,
        timeout_s=new.timeout_s,
        max_concurrency=new.max_concurrency,
        health_check_interval_s=new.health_check_interval_s,
        output=new.output,
        trace_id=new.trace_id,
        correlation_id=new.correlation_id,
        total=len(new.graph.nodes),
        edges=new.graph.edges,
        generation=1,
        supervisor=1,
        created_at=now,
        updated_at=now,
        started_at=None,
        finished_at=None,
        deadline_at=_deadline(new.timeout_s, now),
        version=1,
        log=(line,),
        look_at=now + FIRST_LOOK,
    )


def seal(run: Run, *, now: datetime) -> Run:
    """All its jobs are there."""
    return run if run.sealed or run.ended else _next(run, now, sealed=True, again=None)


def begin(run: Run, *, now: datetime) -> Run:
    """Its supervisor listens: jobs may start."""
    if run.status != "pending" or not run.sealed:
        return run
    return _next(run, now, "started", by="supervisor", status="running", started_at=run.started_at or now)


def note_failure(run: Run, job: str, *, undecided: bool, now: datetime) -> Run:
    """A job has failed it. With `undecided` it is paused until an operator decides: written even if it is paused
    already, for whoever is about to resume it must see this."""
    first = run.failed_job is None
    changed = replace(run, failed_job=run.failed_job or job)
    if undecided:
        kind: RunKind | None = "paused" if run.status == "running" else None
        status: RunStatus = "paused" if run.status == "running" else run.status
        return _next(changed, now, kind, by="matcher", why=f"{job} failed", status=status)
    if not first:
        return run
    return _next(
        changed, now, "job_failed", by="matcher", why=job, facts=run.facts + (run.failure_policy == "fail_fast")
    )


def drain(run: Run, *, now: datetime) -> Run:
    """No job is open."""
    if run.drained or run.ended:
        return run
    return _next(run, now, drained=True, facts=run.facts + 1)


def request_cancel(run: Run, *, now: datetime, by: str, why: str | None = None) -> Run:
    """What has not ended is to be cancelled. Asking twice changes nothing."""
    if run.ended:
        raise InvalidTransition(f"Cannot cancel workflow {run.workflow_id}: it is {run.status}")
    if run.cancel_requested_by is not None:
        return run
    return _next(run, now, "cancel_requested", by=by, why=why, cancel_requested_by=by, facts=run.facts + 1)


def pass_deadline(run: Run, *, now: datetime) -> Run:
    """Its time is over."""
    if run.ended or run.deadline_passed or now < run.deadline_at:
        return run
    return _next(run, now, "timed_out", by="sweeper", deadline_passed=True, facts=run.facts + 1)


def pause(run: Run, *, now: datetime, by: str) -> Run:
    """Nothing new starts; what runs goes on."""
    if run.status != "running" or run.stopping:
        raise InvalidTransition(f"Cannot pause workflow {run.workflow_id}: it is {_standing(run)}")
    return _next(run, now, "paused", by=by, status="paused", paused_by_operator=True)


def resume(run: Run, *, undecided: int, now: datetime, by: str) -> Run:
    """Go on."""
    if run.status != "paused" or run.stopping:
        raise InvalidTransition(f"Cannot resume workflow {run.workflow_id}: it is {_standing(run)}")
    if undecided:
        raise InvalidTransition(
            f"Cannot resume workflow {run.workflow_id}: {undecided} failed jobs need a decision each"
        )
    return _next(run, now, "resumed", by=by, status="running", paused_by_operator=False)


def decide(run: Run, job: str, action: DecisionAction, *, now: datetime, by: str) -> Run:
    """An operator has said what becomes of a failed job; its supervisor does it."""
    if run.ended or run.stopping or run.status != "paused":
        raise InvalidTransition(f"Workflow {run.workflow_id} is {_standing(run)}: there is nothing to decide")
    return _next(run, now, "decided", by=by, why=f"{action} {job}", decisions_open=True, facts=run.facts + 1)


def decisions_done(run: Run, *, aborted: bool, undecided: int, failed_job: str | None, now: datetime) -> Run:
    """The supervisor has done what operators decided. It goes on, unless they paused it or more is to be decided."""
    changed = replace(run, decisions_open=False, failed_job=failed_job)
    if aborted:
        return _next(changed, now, aborted=True)
    if undecided or run.paused_by_operator or run.status != "paused":
        return _next(changed, now)
    return _next(changed, now, "resumed", by="supervisor", why="decided", status="running")


def close(run: Run, *, now: datetime) -> Run:
    """The supervisor begins to cancel what is left."""
    return run if run.closing or run.ended else _next(run, now, closing=True)


def stall(run: Run, why: str, *, now: datetime) -> Run:
    """Nothing has gone on for as long as its jobs are to be checked for."""
    return _next(run, now, "stalled", by="sweeper", why=why, stalled_at=now)


def look_again(run: Run, *, now: datetime) -> Run:
    """When the sweeper is to look next: less and less often, but never later than something is due."""
    age = now - (run.started_at or run.created_at)
    pause_for = min(max(FIRST_LOOK, age / 4), LONGEST_LOOK)
    if run.health_check_interval_s is not None:
        pause_for = min(pause_for, timedelta(seconds=run.health_check_interval_s))
    return _next(
        run, now, look_at=min(now + pause_for, run.deadline_at) if not run.deadline_passed else now + pause_for
    )


def succeed_supervisor(run: Run, *, now: datetime) -> Run:
    """The execution that supervised it is no more, or has done enough: the next one takes over."""
    return _next(run, now, supervisor=run.supervisor + 1)


def end(
    run: Run,
    *,
    first_failure: tuple[str, JobError | None] | None,
    statistics: Mapping[JobStatus, int],
    now: datetime,
) -> Run:
    """How a run ends whose jobs have all ended. `first_failure`: the first job that failed it, and its error."""
    ended = replace(run, statistics=statistics, look_at=None, finished_at=now)
    if run.cancel_requested_by is not None:
        return _next(ended, now, "cancelled", by="supervisor", status="cancelled")
    error: JobError | None = None
    if run.deadline_passed:
        error = JobError(code=TIMED_OUT, message=f"The run took longer than {run.timeout_s or LONGEST.days * 86_400} s")
    elif run.aborted:
        error = JobError(code=ABORTED, message="An operator decided to abort it")
    elif first_failure is not None:
        name, why = first_failure
        reason = "was cancelled" if why is None else f"failed: {why.code}: {why.message}"
        error = JobError(code=JOB_FAILED, message=f"Job {name} {reason}"[:1024])
    if error is None:
        return _next(ended, now, "completed", by="supervisor", status="completed", error=None)
    return _next(ended, now, "failed", by="supervisor", why=error.code, status="failed", error=error)


def with_result(run: Run, result_ref: str | None) -> Run:
    """A run that is about to be stored as ended, pointing to what it came to."""
    return replace(run, result_ref=result_ref)


def retry(run: Run, again: frozenset[int], *, now: datetime, by: str, start: str | None) -> Run:
    """Begin anew, with what is to run again; what has succeeded is kept."""
    if not run.ended:
        raise InvalidTransition(f"Cannot retry workflow {run.workflow_id}: it is {run.status}")
    if not again:
        raise InvalidTransition(f"Cannot retry workflow {run.workflow_id}: no job of it has failed")
    return _next(
        run, now, "retried", by=by, why=None if start is None else f"from {start}",
        status="pending", generation=run.generation + 1, supervisor=1, sealed=False, again=again, facts=0,
        failed_job=None, cancel_requested_by=None, deadline_passed=False, aborted=False, drained=False,
        decisions_open=False, closing=False, paused_by_operator=False, error=None, result_ref=None, statistics=None,
        finished_at=None, stalled_at=None, started_at=None, deadline_at=_deadline(run.timeout_s, now),
        look_at=now + FIRST_LOOK,
    )  # fmt: skip


def _standing(run: Run) -> str:
    return f"{run.status}, and stopping" if run.stopping and not run.ended else run.status


def _deadline(timeout_s: int | None, now: datetime) -> datetime:
    return now + (LONGEST if timeout_s is None else min(timedelta(seconds=timeout_s), LONGEST))


def _next(
    run: Run, now: datetime, kind: RunKind | None = None, *, by: str = "", why: str | None = None, **changes: object
) -> Run:
    changed = replace(run, version=run.version + 1, updated_at=now, **changes)  # type: ignore[arg-type]
    if kind is None:
        return changed
    line = RunLine(version=changed.version, at=now, kind=kind, by=by, status=changed.status, why=why)
    return replace(changed, log=(*run.log, line)[-LINES_KEPT:])
