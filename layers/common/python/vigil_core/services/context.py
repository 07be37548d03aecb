"""What every use case is handed: the stores, the gateways, the time, ids. Built once per process, by `wiring`."""

from __future__ import annotations

import random
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, TypeVar

from vigil_core.domain.exact_json import JsonValue
from vigil_core.domain.jobs.job import NewJob
from vigil_core.domain.timestamps import truncate_to_ms
from vigil_core.domain.workflows.run import NewWorkflowRun
from vigil_core.store.connections import ConnectionStore
from vigil_core.store.due_index import DueStore
from vigil_core.store.idempotency import IdempotencyStore
from vigil_core.store.jobs.batches import BatchStore
from vigil_core.store.jobs.dependencies import DependencyStore
from vigil_core.store.jobs.job_types import JobTypeStore
from vigil_core.store.jobs.jobs import JobStore
from vigil_core.store.listing import ListingStore
from vigil_core.store.locks import LockStore
from vigil_core.store.queues import QueueStore
from vigil_core.store.schedules import ScheduleStore
from vigil_core.store.waits.waits import WaitStore
from vigil_core.store.webhooks import WebhookStore
from vigil_core.store.workflows.runs import RunStore

T = TypeVar("T")
R = TypeVar("R")

POOL_THREADS = 8


class MessageQueues(Protocol):
    """Messages to Vigil's own workers. A lost message delays work, until the sweep finds it; it loses none."""

    def send_fan_out(self, messages: Sequence[FanOutMessage]) -> None:
        """Hand work to the fan-out function; one group's messages are worked off in order."""

    def send_to_sweeper(self, message: str, delay_s: int) -> None:
        """Wake the sweeper for one due row after at most 15 minutes."""

    def send_deliveries(self, messages: Sequence[str]) -> None:
        """Have webhooks told, in any order."""


class Timers(Protocol):
    """What wakes the sweeper at a time, however far ahead. A lost one delays a run, until the sweep finds it."""

    def start(self, name: str, at: datetime, event: str) -> None:
        """Have the sweeper handed this event at that time, once. Armed already is as good."""

    def cancel(self, name: str) -> None:
        """Forget an alarm, if there is one."""


class Supervisors(Protocol):
    """The executions that supervise runs."""

    def start(self, name: str, event: str) -> None:
        """Start one. One of that name, whatever became of it, is as good."""

    def wake(self, token: str) -> None:
        """Have one that waits go on. One that waits no longer is as good."""

    def is_running(self, name: str) -> bool:
        """Whether there is one of that name that has not ended."""


class NoSupervisors:
    """For functions that have nothing to do with runs, and no right to."""

    def start(self, _: str, __: str) -> None:
        raise RuntimeError("this function starts no supervisors")

    def wake(self, _: str) -> None:
        raise RuntimeError("this function wakes no supervisors")

    def is_running(self, _: str) -> bool:
        raise RuntimeError("this function looks after no supervisors")


class JobParser(Protocol):
    """Reads the body of a job's creation."""

    def __call__(self, namespace: str, body: Mapping[str, JsonValue], job_id: str) -> NewJob:
        """The job to create under this id, with what its type adds. Raises ValidationFailed."""


class RunParser(Protocol):
    """Reads the body of a workflow's creation."""

    def __call__(
        self, namespace: str, body: Mapping[str, JsonValue], workflow_id: str, now: datetime, schedule: str | None
    ) -> NewWorkflowRun:
        """The run to create under this id, with what the types of its jobs add. Raises ValidationFailed."""


@dataclass(frozen=True, kw_only=True)
class FanOutMessage:
    """A message for the fan-out function: JSON text, and the group in which order matters."""

    group: str
    body: str


class Executors(Protocol):
    """Those who run what Vigil dispatches. Both raise ExecutorRefused, or ExecutorBusy when it may not have worked."""

    def call_http(self, event: str, /) -> None:
        """Have the target of executor `http` called; the event says for which job."""

    def invoke_lambda(self, function: str, event: str, /) -> None:
        """Have a function of executor `lambda` run a job."""


class NoExecutors:
    """For functions that dispatch nothing, and have no right to."""

    def call_http(self, _: str) -> None:
        raise RuntimeError("this function dispatches no jobs")

    def invoke_lambda(self, _: str, __: str) -> None:
        raise RuntimeError("this function dispatches no jobs")


@dataclass(frozen=True, kw_only=True)
class Context:
    """The outside world of the use cases. `by` of a change that no key made is the name of the function that did."""

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
    schedules: ScheduleStore
    runs: RunStore
    message_queues: MessageQueues
    timers: Timers
    parse_job: JobParser
    parse_run: RunParser
    clock: Callable[[], datetime]
    new_id: Callable[[], str]
    executors: Executors = field(default_factory=NoExecutors)
    supervisors: Supervisors = field(default_factory=NoSupervisors)
    random_bytes: Callable[[int], bytes] = secrets.token_bytes
    allowed_private_hosts: frozenset[str] = frozenset()
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = random.random
    in_parallel: Callable[[Callable[[T], R], Iterable[T]], list[R]] = field(
        default_factory=lambda: thread_pool_map(POOL_THREADS)
    )

    def now(self) -> datetime:
        """The time, as exact as the wire can carry it."""
        return truncate_to_ms(self.clock())


def thread_pool_map(threads: int) -> Callable[[Callable[[T], R], Iterable[T]], list[R]]:
    """A map that keeps order and runs on a pool of threads: what waits for AWS may as well wait together.

    Work on the pool that maps in its turn does so by itself: waiting for the pool, all threads might wait for ever.
    """
    thread_state = threading.local()
    pool = ThreadPoolExecutor(max_workers=threads, initializer=lambda: setattr(thread_state, "on_the_pool", True))

    def map_in_order(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        item_list = list(items)
        if len(item_list) < 2 or hasattr(thread_state, "on_the_pool"):
            return [function(item) for item in item_list]
        return list(pool.map(function, item_list))

    return map_in_order
