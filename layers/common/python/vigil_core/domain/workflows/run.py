"""A workflow run and its transitions. Each function returns the next version of the run, or raises.

A signal is a fact that the supervisor must handle. Signals are stored and counted in the run's row, so that none is
lost:

1. A transition that is a signal sets its attribute and increments `signal_count`.
2. The supervisor stores its token and the count that it has seen in the same row, then waits.
3. Whichever write is last, the stream shows both counts together. The matcher wakes the supervisor if they differ.
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

TERMINAL_STATUSES: frozenset[RunStatus] = frozenset({"completed", "failed", "cancelled"})
JOB_FAILED = "JOB_FAILED"
ABORTED = "ABORTED"
MAX_LOG_ENTRIES = 50
MAX_DURATION = timedelta(days=360)
"""The longest duration of a run. Its jobs are stored for a year."""
FIRST_CHECK = timedelta(seconds=60)
"""The time from the creation of a run to the first check by the sweeper."""
CANCEL_CHECK = timedelta(seconds=15)
"""The time from the request to cancel a run to the check whether its supervisor has begun to do so."""
MAX_CHECK_INTERVAL = timedelta(minutes=15)
"""The longest time between two checks by the sweeper."""


@dataclass(frozen=True, kw_only=True)
class RunLogEntry:
    """One line of the history of a run."""

    version: int
    occurred_at: datetime
    kind: RunLogKind
    actor: str
    status: RunStatus
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class NewWorkflowRun:
    """A validated request for a run: its jobs in their order, and their graph."""

    workflow_id: str
    name: str
    jobs: tuple[NewJob, ...]
    """The jobs with their payloads and with the defaults of their types and of the run."""
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
    """One version of a run. Its graph, job definitions and node states are in rows of their own."""

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
    """The number of the run's life: 1, and one more for each retry."""
    supervisor: int
    """The number of the supervisor within this generation: 1, and one more for each successor."""
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    deadline_at: datetime
    version: int
    log: tuple[RunLogEntry, ...]
    registration_complete: bool = False
    """Whether all jobs of this generation exist, so that the run may start."""
    signal_count: int = 0
    """The number of signals for the supervisor."""
    failed_job: str | None = None
    """The name of the first job that failed the run."""
    cancel_requested_by: str | None = None
    deadline_passed: bool = False
    aborted: bool = False
    drained: bool = False
    has_pending_decisions: bool = False
    """Whether operators have made decisions that the supervisor has not applied."""
    cancelling: bool = False
    """Whether the supervisor has begun to cancel the remaining jobs."""
    paused_by_operator: bool = False
    rerun: frozenset[int] | None = None
    """The indexes of the jobs that a retry runs again, until they are prepared."""
    error: JobError | None = None
    result_ref: str | None = None
    statistics: Mapping[JobStatus, int] | None = None
    """The number of jobs for each status at the end of the run. None while the run is open."""
    next_check_at: datetime | None = None
    """The time of the next check by the sweeper."""
    stalled_at: datetime | None = None
    """The time of the last event about a stall of the run."""
    expires_at: datetime | None = field(default=None, compare=False)

    @property
    def ended(self) -> bool:
        """Whether the run has ended. Only a retry changes an ended run."""
        return self.status in TERMINAL_STATUSES

    @property
    def terminating(self) -> bool:
        """Whether the run is certain to end by cancelling its open jobs."""
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
        """Whether jobs of the run may start."""
        return self.status == "running" and not self.terminating

    @property
    def accepts_transitions(self) -> bool:
        """Whether waiting jobs of the run may be released or skipped. Released jobs of a paused run are parked."""
        return self.status != "pending" and not self.ended and not self.terminating

    @property
    def execution_name(self) -> str:
        """The name of the Step Functions execution that supervises the run.

        Step Functions keeps a name for 90 days:
        https://docs.aws.amazon.com/step-functions/latest/apireference/API_StartExecution.html
        """
        return f"{self.workflow_id}-{self.supervisor_id}"

    @property
    def supervisor_id(self) -> str:
        """The id of the current supervisor: the generation and the number of the supervisor."""
        return format_supervisor_id(self.generation, self.supervisor)


def format_supervisor_id(generation: int, supervisor: int) -> str:
    """Return the id of a supervisor: its run's generation and its own number, joined by a hyphen."""
    return f"{generation}-{supervisor}"


def create(namespace: str, new: NewWorkflowRun, *, now: datetime, actor: str) -> WorkflowRun:
    """Return the first version: `pending` until all jobs exist and the supervisor has started."""
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
    """Mark the registration of the jobs as complete."""
    return run if run.registration_complete or run.ended else _next(run, now, registration_complete=True, rerun=None)


def start(run: WorkflowRun, *, now: datetime) -> WorkflowRun:
    """Set a pending run to `running`. Its supervisor has started, so jobs may start."""
    if run.status != "pending" or not run.registration_complete:
        return run
    return _next(run, now, "started", actor="supervisor", status="running", started_at=run.started_at or now)


def record_failure(run: WorkflowRun, job: str, *, awaits_decision: bool, now: datetime) -> WorkflowRun:
    """Record that a job has failed the run.

    With `awaits_decision`, the run is paused until an operator decides. This writes a version even if the run is paused
    already: a concurrent resume then fails, reads again, and sees that a decision is open.
    """
    is_first_failure = run.failed_job is None
    changed = replace(run, failed_job=run.failed_job or job)
    if awaits_decision:
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


def abort(run: WorkflowRun, error: JobError, *, now: datetime) -> WorkflowRun:
    """Let the run end with an error, because it cannot continue. This is a signal. A terminating run is unchanged."""
    if run.ended or run.terminating:
        return run
    return _next(run, now, aborted=True, error=error, signal_count=run.signal_count + 1)


def drain(run: WorkflowRun, *, now: datetime) -> WorkflowRun:
    """Mark the run as drained: no job is open. This is a signal."""
    if run.drained or run.ended:
        return run
    return _next(run, now, drained=True, signal_count=run.signal_count + 1)


def request_cancel(run: WorkflowRun, *, now: datetime, actor: str, reason: str | None = None) -> WorkflowRun:
    """Request the cancellation of the run. This is a signal, and a second request changes nothing."""
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
        next_check_at=min(now + CANCEL_CHECK, run.next_check_at or now + CANCEL_CHECK),
        signal_count=run.signal_count + 1,
    )


def apply_deadline(run: WorkflowRun, *, now: datetime) -> WorkflowRun:
    """Record that the deadline has passed, if it has. This is a signal."""
    if run.ended or run.deadline_passed or now < run.deadline_at:
        return run
    return _next(run, now, "timed_out", actor="sweeper", deadline_passed=True, signal_count=run.signal_count + 1)


def pause(run: WorkflowRun, *, now: datetime, actor: str) -> WorkflowRun:
    """Pause the run: no further job starts, and running jobs continue."""
    if run.status != "running" or run.terminating:
        raise InvalidTransition(f"Cannot pause workflow {run.workflow_id}: it is {_describe_status(run)}")
    return _next(run, now, "paused", actor=actor, status="paused", paused_by_operator=True)


def resume(run: WorkflowRun, *, awaiting_decision: int, now: datetime, actor: str) -> WorkflowRun:
    """Resume a paused run."""
    if run.status != "paused" or run.terminating:
        raise InvalidTransition(f"Cannot resume workflow {run.workflow_id}: it is {_describe_status(run)}")
    if awaiting_decision:
        raise InvalidTransition(
            f"Cannot resume workflow {run.workflow_id}: {awaiting_decision} failed jobs need a decision each"
        )
    return _next(run, now, "resumed", actor=actor, status="running", paused_by_operator=False)


def decide(run: WorkflowRun, job: str, action: DecisionAction, *, now: datetime, actor: str) -> WorkflowRun:
    """Record that an operator has decided on a failed job. This is a signal: the supervisor applies the decision."""
    if run.ended or run.terminating or run.status != "paused":
        raise InvalidTransition(f"Workflow {run.workflow_id} is {_describe_status(run)}: it awaits no decision")
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
    run: WorkflowRun, *, aborted: bool, awaiting_decision: int, failed_job: str | None, now: datetime
) -> WorkflowRun:
    """Record that the decisions are applied.

    The run resumes unless an operator paused it or further decisions are open.
    """
    changed = replace(run, has_pending_decisions=False, failed_job=failed_job)
    if aborted:
        return _next(changed, now, aborted=True)
    if awaiting_decision or run.paused_by_operator or run.status != "paused":
        return _next(changed, now)
    return _next(changed, now, "resumed", actor="supervisor", reason="decided", status="running")


def begin_cancelling(run: WorkflowRun, *, now: datetime) -> WorkflowRun:
    """Record that the supervisor cancels the remaining jobs."""
    return run if run.cancelling or run.ended else _next(run, now, cancelling=True)


def mark_stalled(run: WorkflowRun, reason: str, *, now: datetime) -> WorkflowRun:
    """Record that no job has changed during the `health_check_interval` of the run."""
    return _next(run, now, "stalled", actor="sweeper", reason=reason, stalled_at=now)


def schedule_next_check(run: WorkflowRun, *, now: datetime) -> WorkflowRun:
    """Set the time of the next check: less and less often, but at the deadline at the latest.

    A terminating run is checked each minute, so that it ends even if no supervisor ends it.
    """
    age = now - (run.started_at or run.created_at)
    interval = FIRST_CHECK if run.terminating else min(max(FIRST_CHECK, age / 4), MAX_CHECK_INTERVAL)
    if run.health_check_interval_s is not None:
        interval = min(interval, timedelta(seconds=run.health_check_interval_s))
    return _next(
        run, now, next_check_at=min(now + interval, run.deadline_at) if not run.deadline_passed else now + interval
    )


def next_supervisor_generation(run: WorkflowRun, *, now: datetime) -> WorkflowRun:
    """Increment the number of the supervisor, so that a successor replaces the current one."""
    return _next(run, now, supervisor=run.supervisor + 1)


def end(
    run: WorkflowRun,
    *,
    first_failure: tuple[str, JobError | None] | None,
    statistics: Mapping[JobStatus, int],
    now: datetime,
    output_error: JobError | None = None,
) -> WorkflowRun:
    """End a drained run: `cancelled`, `failed` or `completed`.

    Args:
        run: The run, whose jobs have all ended.
        first_failure: The first job that failed the run, and its error.
        statistics: The number of jobs for each status.
        now: The time of the end.
        output_error: The reason why the run has no valid output. It fails a run that would otherwise be completed.
    """
    ended = replace(run, statistics=statistics, next_check_at=None, finished_at=now)
    if run.cancel_requested_by is not None:
        return _next(ended, now, "cancelled", actor="supervisor", status="cancelled")
    error: JobError | None = None
    if run.deadline_passed:
        error = JobError(
            code=TIMED_OUT, message=f"The run took longer than {run.timeout_s or MAX_DURATION.days * 86_400} s"
        )
    elif run.aborted:
        error = run.error or JobError(code=ABORTED, message="An operator decided to abort the run")
    elif first_failure is not None:
        failed_job_name, failed_job_error = first_failure
        reason = (
            "was cancelled"
            if failed_job_error is None
            else f"failed: {failed_job_error.code}: {failed_job_error.message}"
        )
        error = JobError(code=JOB_FAILED, message=f"Job {failed_job_name} {reason}"[:1024])
    else:
        error = output_error
    if error is None:
        return _next(ended, now, "completed", actor="supervisor", status="completed", error=None)
    return _next(ended, now, "failed", actor="supervisor", reason=error.code, status="failed", error=error)


def with_result(run: WorkflowRun, result_ref: str | None) -> WorkflowRun:
    """Set the pointer to the result of a run that is about to be stored as ended."""
    return replace(run, result_ref=result_ref)


def retry(run: WorkflowRun, rerun: frozenset[int], *, now: datetime, actor: str, start: str | None) -> WorkflowRun:
    """Start the next generation of an ended run. Jobs that are not in `rerun` keep their results."""
    if not run.ended:
        raise InvalidTransition(f"Cannot retry workflow {run.workflow_id}: it is {run.status}")
    if not rerun:
        raise InvalidTransition(f"Cannot retry workflow {run.workflow_id}: none of its jobs has failed")
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
    return f"{run.status} and terminating" if run.terminating and not run.ended else run.status


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
