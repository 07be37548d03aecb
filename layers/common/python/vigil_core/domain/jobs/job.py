"""A job, the request for one, and a report on one. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Literal, TypeAlias

from vigil_core.domain.exact_json import JsonValue
from vigil_core.domain.jobs import stages
from vigil_core.domain.jobs.batch import OnItemFailure
from vigil_core.domain.jobs.lease import Lease
from vigil_core.domain.jobs.retry import RetryPolicy
from vigil_core.domain.jobs.status import TERMINAL, JobStatus
from vigil_core.domain.jobs.trigger_rules import TriggerRule
from vigil_core.domain.jobs.value_objects import (
    BatchMembership,
    DependencyState,
    MutexState,
    Timeouts,
    WorkflowMembership,
)

Priority: TypeAlias = Literal["background", "low", "normal", "high", "critical"]
Executor: TypeAlias = Literal["worker", "lambda", "http", "none", "join"]
JobLogKind: TypeAlias = Literal[
    "created", "waiting", "ready", "claimed", "started", "updated", "released", "lease_expired", "retrying",
    "completed", "failed", "cancel_requested", "cancelled", "skipped", "retried", "deleted",
]  # fmt: skip

MAX_FIELDS_BYTES = 32 * 1024
MAX_MILESTONES = 256
TIMED_OUT = "TIMED_OUT"
LEASE_EXPIRED = "LEASE_EXPIRED"
CONDITION_FAILED = "CONDITION_FAILED"
PROCESSING_FAILED = "PROCESSING_FAILED"
CONDITION_ERRORS = frozenset({CONDITION_FAILED, "RESULT_TOO_LARGE", "RESULT_UNAVAILABLE"})
"""The errors of a condition that cannot be evaluated. A retry of the job evaluates it again."""
CANCEL_GRACE = timedelta(seconds=60)
"""The time that a running job has to end after a cancel request."""
BATCH_CANCEL_GRACE = timedelta(seconds=100)
"""The same time for a batch. Its items receive their cancel requests one by one and have their own grace each. Every
cancel thereby ends its job within two minutes."""
DISPATCHED_EXECUTORS = frozenset({"lambda", "http", "join"})
"""The executors whose pending jobs Vigil starts itself. A `join` completes with the results of its dependencies."""
TARGETED_EXECUTORS = frozenset({"lambda", "http"})
"""The executors that need a target."""

BUILT_IN_NAMES = frozenset(
    {
        "status", "job_stage", "job_health", "dependency_status", "queue", "job_type", "name", "priority", "attempt",
        "milestones", "workflow_id",
    }
)  # fmt: skip
"""The names other than fields that a wait condition can test."""

RESERVED_FIELD_NAMES = BUILT_IN_NAMES | {"milestone", "progress", "message", "result", "error", "truncated"}
"""The names that no field may have, because a condition or `get_fields` gives them another meaning."""


@dataclass(frozen=True, kw_only=True)
class JobLogEntry:
    """One line of a job's history: the version that it made, with time, event, actor, reason and outcome."""

    version: int
    occurred_at: datetime
    kind: JobLogKind
    actor: str
    status: JobStatus
    stage: str
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class JobError:
    """The reason of a failed attempt."""

    code: str
    message: str
    type: str | None = None
    """The full name of the exception, as the language of the worker writes it."""
    traceback: str | None = None
    """The last lines of the traceback."""


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """A validated request to create a job."""

    job_id: str
    job_type: str
    name: str | None = None
    queue: str = "default"
    priority: Priority = "normal"
    executor: Executor = "worker"
    stages: tuple[str, ...] = stages.DEFAULT_STAGES
    fields: Mapping[str, JsonValue] = field(default_factory=dict)
    tags: Sequence[str] = ()
    payload: JsonValue = None
    payload_upload: str | None = None
    """The reference of the upload that becomes the payload."""
    trace_id: str | None = None
    correlation_id: str | None = None
    unique_key: str | None = None
    mutex_key: str | None = None
    queue_on_conflict: bool = False
    depends_on: Sequence[str] = ()
    trigger_rule: TriggerRule = "all_success"
    condition: str | None = None
    scheduled_at: datetime | None = None
    retry: RetryPolicy | None = None
    timeout_s: int | None = None
    heartbeat_timeout_s: int | None = None
    fallback: JsonValue = None
    target_ref: str | None = None
    has_waits: bool = False
    """Whether waits may exist before the job does: the client chose its id."""
    batch_size: int | None = None
    """The number of items of a batch, whose payload is the list of their payloads; None for any other job."""
    on_item_failure: OnItemFailure = "continue"
    batch_id: str | None = None
    """The batch of an item; `batch_index` is the index of the item in it."""
    batch_index: int | None = None
    workflow_id: str | None = None
    """The run of the job; `workflow_index` is its node, and `upstream_names` are its dependencies in the run."""
    workflow_index: int | None = None
    upstream_names: Sequence[str] = ()
    upstream_truncated: bool = False
    """Whether `upstream_names` leaves out names."""

    @property
    def workflow_membership(self) -> WorkflowMembership:
        """The place of the new job in its run."""
        return WorkflowMembership(
            workflow_id=self.workflow_id,
            index=self.workflow_index,
            upstream_names=tuple(self.upstream_names),
            upstream_truncated=self.upstream_truncated,
        )

    @property
    def attempts_per_life(self) -> int:
        """The number of attempts from the creation to the end. The retry policy of a batch applies to its items."""
        return 1 if self.retry is None or self.batch_size is not None else self.retry.max_attempts


@dataclass(frozen=True, kw_only=True)
class Job:
    """One version of a job.

    Payload and result are stored separately: `payload_ref` and `result_ref` point to them. `log` holds the newest lines
    of the history, at least the line of this version.
    """

    namespace: str
    job_id: str
    job_type: str
    name: str | None
    queue: str
    priority: Priority
    executor: Executor
    stages: tuple[str, ...]
    """The stage order of the job type when the job was created."""
    status: JobStatus
    stage: str
    health: str | None
    progress: Decimal
    message: str | None
    milestones: tuple[str, ...]
    fields: Mapping[str, JsonValue]
    tags: tuple[str, ...]
    error: JobError | None
    attempt: int
    max_attempts: int
    trace_id: str | None
    correlation_id: str | None
    unique_key: str | None
    cancel_requested_at: datetime | None
    payload_ref: str | None
    result_ref: str | None
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    version: int
    live_version: int
    """The number of reports of only progress and message. `version` and `live_version` identify what a reader saw."""
    deleted: bool
    log: tuple[JobLogEntry, ...]
    scheduled_at: datetime | None = None
    retry: RetryPolicy | None = None
    timeouts: Timeouts = field(default=Timeouts())
    fallback_ref: str | None = None
    target_ref: str | None = None
    """The target of the job type when the job was created."""
    lease: Lease | None = None
    reported_token: str | None = None
    """The token of the lease whose attempt was reported as ended last."""
    expires_at: datetime | None = field(default=None, compare=False)
    """The time after which readers ignore the job and DynamoDB removes its row."""
    indexed_due_at: datetime | None = None
    """The time at which index `due` shows a running job. It may precede `due_at`: a heartbeat does not move it."""
    has_waits: bool = False
    """Whether any wait has ever named the job, or may have before it was created. Never false again."""
    has_subscribers: bool = False
    """Whether any socket has ever subscribed to the job. Never false again."""
    mutex: MutexState = field(default=MutexState())
    dependencies: DependencyState = field(default=DependencyState())
    batch: BatchMembership = field(default=BatchMembership())
    workflow: WorkflowMembership = field(default=WorkflowMembership())

    @property
    def attempts_per_life(self) -> int:
        """The number of attempts from an operator's retry to the end.

        The attempt never decreases, because the keys of results contain it. Its limit grows instead.
        """
        return 1 if self.retry is None or self.batch.is_batch else self.retry.max_attempts

    @property
    def ended(self) -> bool:
        """Whether the status is terminal."""
        return self.status in TERMINAL

    @property
    def dispatchable(self) -> bool:
        """Whether Vigil itself must start the job now."""
        return self.status == "pending" and self.executor in DISPATCHED_EXECUTORS and not self.batch.is_batch

    @property
    def needs_matching(self) -> bool:
        """Whether the matcher must process this version, apart from publishing its event."""
        has_waiting_parties = self.has_waits or self.awaits_dependencies
        concerns_others = (
            has_waiting_parties or self.deleted or self.affects_mutex or self.affects_batch or self.affects_run
        )
        return concerns_others or self.dispatchable or self.timer_at is not None

    @property
    def affects_mutex(self) -> bool:
        """Whether this version may promote a job of the mutex queue: the job has ended, or is queued itself."""
        return self.mutex.key is not None and (self.ended or self.mutex.is_queued)

    @property
    def affects_batch(self) -> bool:
        """Whether the job is a batch whose items must exist or be deleted, or an item that has ended."""
        if self.batch.is_batch:
            return self.deleted or self.status in ("pending", "running")
        return self.batch.is_item and self.ended

    @property
    def affects_run(self) -> bool:
        """Whether the run must still record this version.

        The first version needs no record. The process that skips a job because of other jobs records the skip itself.
        """
        is_recorded = self.version == 1 or (self.status == "skipped" and self.dependencies.condition is None)
        return self.workflow.in_run and not is_recorded

    @property
    def awaits_run(self) -> bool:
        """Whether the job waits for a verdict of its run."""
        return self.workflow.in_run and self.status == "waiting" and self.dependencies.verdict is None

    @property
    def awaits_dependencies(self) -> bool:
        """Whether the job waits for dependencies outside a run."""
        return not self.workflow.in_run and self.status == "waiting" and self.dependencies.status == "waiting"

    @property
    def awaits_verdict(self) -> bool:
        """Whether no verdict on the dependencies exists yet, whatever the status of the job."""
        return self.dependencies.status == "waiting" or (self.workflow.in_run and self.dependencies.verdict is None)

    @property
    def can_be_skipped(self) -> bool:
        """Whether the dependencies may still skip the job. They decide before its start time, too."""
        return self.status in ("scheduled", "waiting") and self.awaits_verdict

    @property
    def cancel_due_at(self) -> datetime | None:
        """The time at which the sweeper enforces an outstanding cancel request."""
        if self.cancel_requested_at is None or self.status != "running":
            return None
        return self.cancel_requested_at + (BATCH_CANCEL_GRACE if self.batch.is_batch else CANCEL_GRACE)

    @property
    def times_out_at(self) -> datetime | None:
        """The time at which the current attempt times out."""
        attempt_s = self.timeouts.attempt_s
        if self.status != "running" or attempt_s is None or self.started_at is None or self.batch.is_batch:
            return None
        return self.started_at + timedelta(seconds=attempt_s)

    @property
    def heartbeat_deadline(self) -> datetime | None:
        """The time of the heartbeat timeout of a job without a lease. Any change counts as a heartbeat."""
        heartbeat_s = self.timeouts.heartbeat_s
        if self.status != "running" or heartbeat_s is None or self.lease is not None or self.batch.is_batch:
            return None
        return self.updated_at + timedelta(seconds=heartbeat_s)

    @property
    def timer_at(self) -> datetime | None:
        """The time of the next change that must happen to the second: the start, the timeout or the forced cancel."""
        if self.status == "scheduled":
            return self.scheduled_at
        return min((at for at in (self.times_out_at, self.cancel_due_at) if at is not None), default=None)

    @property
    def due_at(self) -> datetime | None:
        """The next time at which the passing of time alone changes the job; None for never."""
        lease_ends_at = self.lease.expires_at if self.lease else None
        due_times = (self.timer_at, self.cancel_due_at, self.heartbeat_deadline, lease_ends_at)
        return min((moment for moment in due_times if moment is not None), default=None)


@dataclass(frozen=True, kw_only=True)
class Report:
    """The body of a `PATCH` of a job.

    None leaves a member unchanged. A null value removes its field.
    """

    stage: str | None = None
    milestones: Sequence[str] = ()
    progress: Decimal | None = None
    message: str | None = None
    fields: Mapping[str, JsonValue] = field(default_factory=dict)

    @property
    def only_progress(self) -> bool:
        """Whether the report changes nothing that a wait can test."""
        return self.stage is None and not self.milestones and not self.fields
