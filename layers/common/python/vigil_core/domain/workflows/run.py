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
RunLogKind: TypeAlias = Literal[
    "created", "started", "paused", "resumed", "job_failed", "decided", "stalled", "cancel_requested", "timed_out",
    "retried", "completed", "failed", "cancelled",
]  # fmt: skip
DecisionAction: TypeAlias = Literal["retry", "skip", "abort"]

RUN_STATUSES: tuple[RunStatus, ...] = ("pending", "running", "paused", "completed", "failed", "cancelled")
TERMINAL_STATUSES: frozenset[RunStatus] = frozenset({"completed", "failed", "cancelled"})
JOB_FAILED = "JOB_FAILED"
ABORTED = "ABORTED"
MAX_LOG_ENTRIES = 50
MAX_DURATION = timedelta(days=360)
"""A run takes no longer, for its jobs are kept for a year."""
FIRST_CHECK = timedelta(seconds=60)
MAX_CHECK_INTERVAL = timedelta(minutes=15)


@dataclass(frozen=True, kw_only=True)
class RunLogEntry:
    """One line of a run's history."""

    version: int
    occurred_at: datetime
    kind: RunLogKind
    actor: str
    status: RunStatus
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class NewWorkflowRun:
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
class WorkflowRun:
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
    log: tuple[RunLogEntry, ...]
    registration_complete: bool = False
    """Whether all jobs of this generation are there, so that it may begin."""
    signal_count: int = 0
    """How many things have happened that its supervisor has to know of."""
    failed_job: str | None = None
    """The name of the first job that failed it."""
    cancel_requested_by: str | None = None
    deadline_passed: bool = False
    aborted: bool = False
    drained: bool = False
    has_pending_decisions: bool = False
    """Whether operators have said what the supervisor has not yet done."""
    cancelling: bool = False
    """Whether its supervisor has begun to cancel what is left."""
    paused_by_operator: bool = False
    rerun: frozenset[int] | None = None
    """What a retry runs again, while that is being prepared."""
    error: JobError | None = None
    result_ref: str | None = None
    statistics: Mapping[JobStatus, int] | None = None
    """Of an ended run: what they were at its end."""
    next_check_at: datetime | None = None
    """When the sweeper is to see whether all is well."""
    stalled_at: datetime | None = None
    """When it was last announced that nothing goes on."""
    expires_at: datetime | None = field(default=None, compare=False)

    @property
    def ended(self) -> bool:
        """Whether nothing happens to it any more, but for a retry."""
        return self.status in TERMINAL_STATUSES

    @property
    def terminating(self) -> bool:
        """Whether it is certain that what has not ended is to be cancelled."""
        failed_fast = self.failure_policy == "fail_fast" and self.failed_job is not None
        return (
            self.cancelling
            or self.cancel_requested_by is not None
            or self.deadline_passed
            or self.aborted
            or failed_fast
        )

    @property
    def accepts_starts(self) -> bool:
        """Whether its jobs may begin."""
        return self.status == "running" and not self.terminating

    @property
    def execution_name(self) -> str:
        """The name of the execution that supervises it: https://docs.aws.amazon.com/step-functions/latest/apireference/
        API_StartExecution.html keeps names for 90 days."""
        return f"{self.workflow_id}-{self.supervisor_id}"

    @property
    def supervisor_id(self) -> str:
        """What its execution calls the generation that it supervises, and itself."""
        return format_supervisor_id(self.generation, self.supervisor)


def format_supervisor_id(generation: int, supervisor: int) -> str:
    """A generation of a run and the number of the execution that supervises it, as one word."""
    return f"{generation}-{supervisor}"


def create(namespace: str, new: NewWorkflowRun, *, now: datetime, actor: str) -> WorkflowRun:
    """The first version: `pending` until all its jobs are there and its supervisor has begun."""
    entry = RunLogEntry(version=1, occurred_at=now, kind="created", actor=actor, status="pending", reason=new.schedule)
    return WorkflowRun(
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
        edges=new.graph.edge_count,
        generation=1,
        supervisor=1,
        created_at=now,
        updated_at=now,
        started_at=None,
        finished_at=None,
        deadline_at=_deadline(new.timeout_s, now),
        version=1,
        log=(entry,),
        next_check_at=now + FIRST_CHECK,
    )


def mark_registration_complete(run: WorkflowRun, *, now: datetime) -> WorkflowRun:
    """All its jobs are there."""
    return run if run.registration_complete or run.ended else _next(run, now, registration_complete=True, rerun=None)


def start(run: WorkflowRun, *, now: datetime) -> WorkflowRun:
    """Its supervisor listens: jobs may start."""
    if run.status != "pending" or not run.registration_complete:
        return run
    return _next(run, now, "started", actor="supervisor", status="running", started_at=run.started_at or now)


def record_failure(run: WorkflowRun, job: str, *, undecided: bool, now: datetime) -> WorkflowRun:
    """A job has failed it. With `undecided` it is paused until an operator decides: written even if it is paused
    already, for whoever is about to resume it must see this."""
    is_first_failure = run.failed_job is None
    changed = replace(run, failed_job=run.failed_job or job)
    if undecided:
        kind: RunLogKind | None = "paused" if run.status == "running" else None
        status: RunStatus = "paused" if run.status == "running" else run.status
        return _next(changed, now, kind, actor="matcher", reason=f"{job} failed", status=status)
    if not is_first_failure:
        return run
    return _next(
        changed,
        now,
        "job_failed",
        actor="matcher",
        reason=job,
        signal_count=run.signal_count + (run.failure_policy == "fail_fast"),
    )


def drain(run: WorkflowRun, *, now: datetime) -> WorkflowRun:
    """No job is open."""
    if run.drained or run.ended:
        return run
    return _next(run, now, drained=True, signal_count=run.signal_count + 1)


def request_cancel(run: WorkflowRun, *, now: datetime, actor: str, reason: str | None = None) -> WorkflowRun:
    """What has not ended is to be cancelled. Asking twice changes nothing."""
    if run.ended:
        raise InvalidTransition(f"Cannot cancel workflow {run.workflow_id}: it is {run.status}")
    if run.cancel_requested_by is not None:
        return run
    return _next(
        run,
        now,
        "cancel_requested",
        actor=actor,
        reason=reason,
        cancel_requested_by=actor,
        signal_count=run.signal_count + 1,
    )


def apply_deadline(run: WorkflowRun, *, now: datetime) -> WorkflowRun:
    """Its time is over."""
    if run.ended or run.deadline_passed or now < run.deadline_at:
        return run
    return _next(run, now, "timed_out", actor="sweeper", deadline_passed=True, signal_count=run.signal_count + 1)


def pause(run: WorkflowRun, *, now: datetime, actor: str) -> WorkflowRun:
    """Nothing new starts; what runs goes on."""
    if run.status != "running" or run.terminating:
        raise InvalidTransition(f"Cannot pause workflow {run.workflow_id}: it is {_describe_status(run)}")
    return _next(run, now, "paused", actor=actor, status="paused", paused_by_operator=True)


def resume(run: WorkflowRun, *, undecided: int, now: datetime, actor: str) -> WorkflowRun:
    """Go on."""
    if run.status != "paused" or run.terminating:
        raise InvalidTransition(f"Cannot resume workflow {run.workflow_id}: it is {_describe_status(run)}")
    if undecided:
        raise InvalidTransition(
            f"Cannot resume workflow {run.workflow_id}: {undecided} failed jobs need a decision each"
        )
    return _next(run, now, "resumed", actor=actor, status="running", paused_by_operator=False)


def decide(run: WorkflowRun, job: str, action: DecisionAction, *, now: datetime, actor: str) -> WorkflowRun:
    """An operator has said what becomes of a failed job; its supervisor does it."""
    if run.ended or run.terminating or run.status != "paused":
        raise InvalidTransition(f"Workflow {run.workflow_id} is {_describe_status(run)}: there is nothing to decide")
    return _next(
        run,
        now,
        "decided",
        actor=actor,
        reason=f"{action} {job}",
        has_pending_decisions=True,
        signal_count=run.signal_count + 1,
    )


def complete_decisions(
    run: WorkflowRun, *, aborted: bool, undecided: int, failed_job: str | None, now: datetime
) -> WorkflowRun:
    """The supervisor has done what operators decided. It goes on, unless they paused it or more is to be decided."""
    changed = replace(run, has_pending_decisions=False, failed_job=failed_job)
    if aborted:
        return _next(changed, now, aborted=True)
    if undecided or run.paused_by_operator or run.status != "paused":
        return _next(changed, now)
    return _next(changed, now, "resumed", actor="supervisor", reason="decided", status="running")


def begin_cancelling(run: WorkflowRun, *, now: datetime) -> WorkflowRun:
    """The supervisor begins to cancel what is left."""
    return run if run.cancelling or run.ended else _next(run, now, cancelling=True)


def mark_stalled(run: WorkflowRun, reason: str, *, now: datetime) -> WorkflowRun:
    """Nothing has gone on for as long as its jobs are to be checked for."""
    return _next(run, now, "stalled", actor="sweeper", reason=reason, stalled_at=now)


def schedule_next_check(run: WorkflowRun, *, now: datetime) -> WorkflowRun:
    """When the sweeper is to look next: less and less often, but never later than something is due."""
    age = now - (run.started_at or run.created_at)
    interval = min(max(FIRST_CHECK, age / 4), MAX_CHECK_INTERVAL)
    if run.health_check_interval_s is not None:
        interval = min(interval, timedelta(seconds=run.health_check_interval_s))
    return _next(
        run, now, next_check_at=min(now + interval, run.deadline_at) if not run.deadline_passed else now + interval
    )


def next_supervisor_generation(run: WorkflowRun, *, now: datetime) -> WorkflowRun:
    """The execution that supervised it is no more, or has done enough: the next one takes over."""
    return _next(run, now, supervisor=run.supervisor + 1)


def end(
    run: WorkflowRun,
    *,
    first_failure: tuple[str, JobError | None] | None,
    statistics: Mapping[JobStatus, int],
    now: datetime,
) -> WorkflowRun:
    """How a run ends whose jobs have all ended. `first_failure`: the first job that failed it, and its error."""
    ended = replace(run, statistics=statistics, next_check_at=None, finished_at=now)
    if run.cancel_requested_by is not None:
        return _next(ended, now, "cancelled", actor="supervisor", status="cancelled")
    error: JobError | None = None
    if run.deadline_passed:
        error = JobError(
            code=TIMED_OUT, message=f"The run took longer than {run.timeout_s or MAX_DURATION.days * 86_400} s"
        )
    elif run.aborted:
        error = JobError(code=ABORTED, message="An operator decided to abort it")
    elif first_failure is not None:
        failed_job_name, failed_job_error = first_failure
        reason = (
            "was cancelled"
            if failed_job_error is None
            else f"failed: {failed_job_error.code}: {failed_job_error.message}"
        )
        error = JobError(code=JOB_FAILED, message=f"Job {failed_job_name} {reason}"[:1024])
    if error is None:
        return _next(ended, now, "completed", actor="supervisor", status="completed", error=None)
    return _next(ended, now, "failed", actor="supervisor", reason=error.code, status="failed", error=error)


def with_result(run: WorkflowRun, result_ref: str | None) -> WorkflowRun:
    """A run that is about to be stored as ended, pointing to what it came to."""
    return replace(run, result_ref=result_ref)


def retry(run: WorkflowRun, rerun: frozenset[int], *, now: datetime, actor: str, start: str | None) -> WorkflowRun:
    """Begin anew, with what is to run again; what has succeeded is kept."""
    if not run.ended:
        raise InvalidTransition(f"Cannot retry workflow {run.workflow_id}: it is {run.status}")
    if not rerun:
        raise InvalidTransition(f"Cannot retry workflow {run.workflow_id}: no job of it has failed")
    return _next(
        run, now, "retried", actor=actor, reason=None if start is None else f"from {start}",
        status="pending", generation=run.generation + 1, supervisor=1, registration_complete=False, rerun=rerun,
        signal_count=0,
        failed_job=None, cancel_requested_by=None, deadline_passed=False, aborted=False, drained=False,
        has_pending_decisions=False, cancelling=False, paused_by_operator=False, error=None, result_ref=None,
        statistics=None, finished_at=None, stalled_at=None, started_at=None, deadline_at=_deadline(run.timeout_s, now),
        next_check_at=now + FIRST_CHECK,
    )  # fmt: skip


def _describe_status(run: WorkflowRun) -> str:
    return f"{run.status}, and stopping" if run.terminating and not run.ended else run.status


def _deadline(timeout_s: int | None, now: datetime) -> datetime:
    return now + (MAX_DURATION if timeout_s is None else min(timedelta(seconds=timeout_s), MAX_DURATION))


def _next(
    run: WorkflowRun,
    now: datetime,
    kind: RunLogKind | None = None,
    *,
    actor: str = "",
    reason: str | None = None,
    **changes: object,
) -> WorkflowRun:
    changed = replace(run, version=run.version + 1, updated_at=now, **changes)  # type: ignore[arg-type]
    if kind is None:
        return changed
    entry = RunLogEntry(
        version=changed.version, occurred_at=now, kind=kind, actor=actor, status=changed.status, reason=reason
    )
    return replace(changed, log=(*run.log, entry)[-MAX_LOG_ENTRIES:])
