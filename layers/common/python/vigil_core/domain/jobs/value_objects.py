"""The parts of a job that concern one capability each: mutex, batch, workflow, dependencies, timeouts."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vigil_core.domain.jobs.batch import OnItemFailure
from vigil_core.domain.jobs.dependencies import Dependency, DependencyStatus
from vigil_core.domain.jobs.trigger_rules import TriggerRule, Verdict


@dataclass(frozen=True, kw_only=True)
class MutexState:
    """The mutex of a job and the job's position in the mutex queue."""

    key: str | None = None
    queue_on_conflict: bool = False
    """Whether the job enters the mutex queue if another job has the mutex. Otherwise its creation is refused."""
    position: int | None = None
    """The mutex position while the job waits. The lowest position is promoted first."""

    @property
    def is_queued(self) -> bool:
        """Whether the job is in the mutex queue."""
        return self.position is not None

    @property
    def acquired_when_ready(self) -> bool:
        """Whether the job acquires its mutex, or enters the queue, only when it becomes ready."""
        return self.key is not None and self.queue_on_conflict

    def at(self, position: int | None) -> MutexState:
        """Return this state with another position; None leaves the mutex queue."""
        return replace(self, position=position)


@dataclass(frozen=True, kw_only=True)
class BatchMembership:
    """The role of a job as a batch, or as an item of one."""

    size: int | None = None
    """The number of items of a batch. Retry policy, timeouts, fallback and executor of a batch apply to its items."""
    on_item_failure: OnItemFailure = "continue"
    batch_id: str | None = None
    """The batch of an item."""
    index: int | None = None
    """The index of an item in its batch."""
    kept_since: int = 1
    """The first attempt of a batch whose completed items a later attempt keeps."""

    @property
    def is_batch(self) -> bool:
        """Whether the job is a batch: it runs nothing itself, and its items do."""
        return self.size is not None

    def retried(self, next_attempt: int, *, has_completed: bool) -> BatchMembership:
        """Return this membership for the next attempt. A completed batch keeps no items: it runs all of them again."""
        return replace(self, kept_since=next_attempt) if self.is_batch and has_completed else self

    @property
    def is_item(self) -> bool:
        """Whether the job is an item of a batch."""
        return self.batch_id is not None


@dataclass(frozen=True, kw_only=True)
class WorkflowMembership:
    """The place of a job in a workflow run; all defaults for a job outside a run."""

    workflow_id: str | None = None
    """The run of the job."""
    index: int | None = None
    """The index of the job's node in the graph of the run."""
    upstream_names: tuple[str, ...] = ()
    """The names of the jobs on which the job depends in its run; only the first ones if there are very many."""
    upstream_truncated: bool = False
    """Whether `upstream_names` leaves out names."""
    parked: bool = False
    """Whether the run keeps the ready job from starting, because it is paused or has no free slot."""

    @property
    def in_run(self) -> bool:
        """Whether the job belongs to a workflow run."""
        return self.workflow_id is not None

    @property
    def graph_index(self) -> int:
        """The index of the job's node in its run."""
        assert self.index is not None
        return self.index

    def with_parked(self, parked: bool) -> WorkflowMembership:
        """Return this membership, parked or not."""
        return replace(self, parked=parked)


@dataclass(frozen=True, kw_only=True)
class DependencyState:
    """The dependencies of a job, the rule that judges them, and its verdict."""

    depends_on: tuple[Dependency, ...] = ()
    """The dependencies of a job outside a run. In a run, the graph contains them."""
    trigger_rule: TriggerRule = "all_success"
    condition: str | None = None
    """An expression over the results of the dependencies that must be true before the job starts."""
    status: DependencyStatus = "none"
    verdict: Verdict | None = None

    def decided(self, status: DependencyStatus, verdict: Verdict | None) -> DependencyState:
        """Return this state with another status and verdict."""
        return replace(self, status=status, verdict=verdict)


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """The time limits of one attempt, in seconds; None for no limit."""

    attempt_s: int | None = None
    """The longest duration of an attempt."""
    heartbeat_s: int | None = None
    """The longest silence of a job that runs without a lease."""
