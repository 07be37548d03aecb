"""The collaborators of the use cases, and narrow views of them.

A module with use cases declares a Protocol of the views that it uses, for example `LocksContext`. The type checker
proves that the module uses nothing else. `Context` satisfies every view: `wiring` builds it once per process, and no
use case names it.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol, Self

from vigil_core.domain.timestamps import truncate_to_ms
from vigil_core.services.expressions import Expressions, UnsharedExpressions
from vigil_core.services.parallel import POOL_THREADS, R, T, thread_pool_map
from vigil_core.services.ports import (
    Executors,
    JobParser,
    MessageQueues,
    NoExecutors,
    NoStreamConsumers,
    NoSupervisors,
    RunParser,
    StreamConsumers,
    Supervisors,
    Timers,
)
from vigil_core.store.connections import ConnectionStore
from vigil_core.store.due_index import DueStore
from vigil_core.store.idempotency import IdempotencyStore
from vigil_core.store.jobs.batches import BatchStore
from vigil_core.store.jobs.dependencies import DependencyStore
from vigil_core.store.jobs.job_types import JobTypeStore
from vigil_core.store.jobs.jobs import JobStore
from vigil_core.store.limits import LimitStores
from vigil_core.store.listing import ListingStore
from vigil_core.store.locks import LockStore
from vigil_core.store.postponed_records import PostponedRecordStore
from vigil_core.store.queues import QueueStore
from vigil_core.store.schedules import ScheduleStore
from vigil_core.store.waits.waits import WaitStore
from vigil_core.store.webhooks import WebhookStore
from vigil_core.store.work_slots import WorkSlotStore
from vigil_core.store.workflows.runs import RunStore


class UsesJobs(Protocol):
    """Access to the jobs."""

    @property
    def jobs(self) -> JobStore: ...


class UsesJobTypes(Protocol):
    """Access to the job types and the targets that they define."""

    @property
    def job_types(self) -> JobTypeStore: ...


class UsesDependencies(Protocol):
    """Access to the rows that link jobs to their dependents."""

    @property
    def dependencies(self) -> DependencyStore: ...


class UsesBatches(Protocol):
    """Access to the payloads, items and results of batches."""

    @property
    def batches(self) -> BatchStore: ...


class UsesLocks(Protocol):
    """Access to unique keys, mutexes and mutex queues."""

    @property
    def locks(self) -> LockStore: ...


class UsesWaits(Protocol):
    """Access to waits, their entries and their outcomes."""

    @property
    def waits(self) -> WaitStore: ...


class UsesIdempotency(Protocol):
    """Access to the stored responses of idempotency keys."""

    @property
    def idempotency(self) -> IdempotencyStore: ...


class UsesListing(Protocol):
    """Access to the listings of a namespace, ordered by creation time."""

    @property
    def listing(self) -> ListingStore: ...


class UsesDueIndex(Protocol):
    """Access to the due index."""

    @property
    def due_index(self) -> DueStore: ...


class UsesJobQueues(Protocol):
    """Access to queues and the order of their pending jobs."""

    @property
    def job_queues(self) -> QueueStore: ...


class UsesConnections(Protocol):
    """Access to WebSocket connections and their subscriptions."""

    @property
    def connections(self) -> ConnectionStore: ...


class UsesPostponedRecords(Protocol):
    """Access to the postponed records of the stream."""

    @property
    def postponed_records(self) -> PostponedRecordStore: ...


class UsesStreamConsumers(Protocol):
    """Access to the functions that consume the stream."""

    @property
    def stream_consumers(self) -> StreamConsumers: ...


class UsesWebhooks(Protocol):
    """Access to webhooks and their deliveries."""

    @property
    def webhooks(self) -> WebhookStore: ...


class UsesWorkSlots(Protocol):
    """Access to the slots of work that takes long."""

    @property
    def work_slots(self) -> WorkSlotStore: ...


class UsesSchedules(Protocol):
    """Access to the schedules."""

    @property
    def schedules(self) -> ScheduleStore: ...


class UsesRuns(Protocol):
    """Access to workflow runs, their graphs and their node states."""

    @property
    def runs(self) -> RunStore: ...


class UsesLimits(Protocol):
    """Access to the limits of namespaces, their counters and the slots of long polls."""

    @property
    def limits(self) -> LimitStores: ...


class UsesMessageQueues(Protocol):
    """Access to the SQS queues of Vigil's own functions."""

    @property
    def message_queues(self) -> MessageQueues: ...


class UsesTimers(Protocol):
    """Access to the timers that wake the sweeper."""

    @property
    def timers(self) -> Timers: ...


class UsesParseJob(Protocol):
    """Access to the parser of a request that creates a job."""

    @property
    def parse_job(self) -> JobParser: ...


class UsesParseRun(Protocol):
    """Access to the parser of a request that creates a workflow run."""

    @property
    def parse_run(self) -> RunParser: ...


class UsesClock(Protocol):
    """Access to the current time, and to a pause."""

    @property
    def clock(self) -> Callable[[], datetime]: ...

    @property
    def sleep(self) -> Callable[[float], None]: ...

    def now(self) -> datetime: ...


class UsesIds(Protocol):
    """Access to new ids and lease tokens."""

    @property
    def new_id(self) -> Callable[[], str]: ...


class UsesExecutors(Protocol):
    """Access to the Lambda functions that run jobs."""

    @property
    def executors(self) -> Executors: ...


class UsesSupervisors(Protocol):
    """Access to the Step Functions executions that supervise runs."""

    @property
    def supervisors(self) -> Supervisors: ...


class UsesRandomness(Protocol):
    """Access to random bytes, and to a random number from 0 to 1."""

    @property
    def random_bytes(self) -> Callable[[int], bytes]: ...

    @property
    def jitter(self) -> Callable[[], float]: ...


class UsesAllowedPrivateHosts(Protocol):
    """Access to the hosts that the deployment exempts from the outbound policy."""

    @property
    def allowed_private_hosts(self) -> frozenset[str]: ...


class UsesExpressions(Protocol):
    """Access to the CPU budgets of conditions."""

    @property
    def expressions(self) -> Expressions: ...

    def with_expressions(self, expressions: Expressions) -> Self:
        """Return this context with other CPU budgets of conditions."""


class UsesStackName(Protocol):
    """Access to the name of the stack, with which the names of Vigil's own functions begin."""

    @property
    def stack_name(self) -> str: ...


class UsesThreads(Protocol):
    """Access to a `map` function that runs on a pool of threads."""

    @property
    def in_parallel(self) -> Callable[[Callable[[T], R], Iterable[T]], list[R]]: ...


class ChangesJobs(UsesJobs, UsesLocks, UsesWorkSlots, UsesClock, UsesIds, UsesRandomness, Protocol):
    """The collaborators of every change of a job."""


class ChangesRuns(ChangesJobs, UsesRuns, UsesSupervisors, Protocol):
    """The collaborators of every change of a workflow run."""


class DispatchesJobs(
    ChangesRuns,
    UsesJobTypes,
    UsesDependencies,
    UsesJobQueues,
    UsesExecutors,
    UsesExpressions,
    UsesLimits,
    UsesThreads,
    UsesStackName,
    Protocol,
):
    """The collaborators of the dispatch of a job to its executor."""


@dataclass(frozen=True, kw_only=True)
class Stores:
    """The rows of the table, with one store per kind of entity."""

    jobs: JobStore
    job_types: JobTypeStore
    dependencies: DependencyStore
    batches: BatchStore
    locks: LockStore
    waits: WaitStore
    idempotency: IdempotencyStore
    listing: ListingStore
    due_index: DueStore
    job_queues: QueueStore
    connections: ConnectionStore
    webhooks: WebhookStore
    work_slots: WorkSlotStore
    schedules: ScheduleStore
    runs: RunStore
    limits: LimitStores
    postponed_records: PostponedRecordStore


@dataclass(frozen=True, kw_only=True)
class Gateways:
    """The other AWS services."""

    message_queues: MessageQueues
    timers: Timers
    executors: Executors = field(default_factory=NoExecutors)
    supervisors: Supervisors = field(default_factory=NoSupervisors)
    stream_consumers: StreamConsumers = field(default_factory=NoStreamConsumers)


@dataclass(frozen=True, kw_only=True)
class Readers:
    """Parsers of request bodies, which the API layer provides."""

    parse_job: JobParser
    parse_run: RunParser


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Time, ids, randomness, threads and settings."""

    clock: Callable[[], datetime]
    new_id: Callable[[], str]
    random_bytes: Callable[[int], bytes] = secrets.token_bytes
    allowed_private_hosts: frozenset[str] = frozenset()
    stack_name: str = ""
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = random.random
    in_parallel: Callable[[Callable[[T], R], Iterable[T]], list[R]] = field(
        default_factory=lambda: thread_pool_map(POOL_THREADS)
    )

    expressions: Expressions = field(default_factory=UnsharedExpressions)

    def now(self) -> datetime:
        """Return the current time in milliseconds, the precision of the API."""
        return truncate_to_ms(self.clock())


@dataclass(frozen=True, kw_only=True)
class Context(Stores, Gateways, Readers, Environment):
    """All collaborators of the use cases.

    The actor of a change without an API key is the name of the function that makes it.
    """

    def with_expressions(self, expressions: Expressions) -> Self:
        """Return this context with other CPU budgets of conditions."""
        return replace(self, expressions=expressions)
