"""The use cases on moto, in a context with its own clock. The test delivers the stream to the matcher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import uuid6

from vigil_core.api.schedules.models import parse_scheduled_job
from vigil_core.api.workflows.models import parse_workflow
from vigil_core.domain.exact_json import loads
from vigil_core.domain.jobs.job import Job, JobError, NewJob, Report
from vigil_core.services.background import matcher, sweeper
from vigil_core.services.background.fan_out import fan_out
from vigil_core.services.context import Context
from vigil_core.services.jobs import submit as submit_job
from vigil_core.services.jobs import transitions
from vigil_core.services.ports import FanOutMessage
from vigil_core.services.waits import requests
from vigil_core.store import keys
from vigil_core.store.connections import ConnectionStore
from vigil_core.store.due_index import DueStore
from vigil_core.store.idempotency import IdempotencyStore
from vigil_core.store.jobs.batches import BatchStore
from vigil_core.store.jobs.dependencies import DependencyStore
from vigil_core.store.jobs.job_rows import job_from_row
from vigil_core.store.jobs.job_types import JobTypeStore
from vigil_core.store.jobs.jobs import JobStore
from vigil_core.store.jobs.payloads import RetentionClass
from vigil_core.store.limits import LimitStores
from vigil_core.store.listing import ListingStore
from vigil_core.store.locks import LockStore
from vigil_core.store.postponed_records import PostponedRecordStore
from vigil_core.store.queues import QueueStore
from vigil_core.store.schedules import ScheduleStore
from vigil_core.store.table import Delete, Put, Table
from vigil_core.store.waits.waits import SPEC_PAGE_ENTRIES, WaitStore
from vigil_core.store.webhooks import WebhookStore
from vigil_core.store.work_slots import WorkSlotStore
from vigil_core.store.workflows.runs import RunStore

T = TypeVar("T")
R = TypeVar("R")

NAMESPACE = "team"
KEY = "key1"
CONCURRENCY = 10


@dataclass
class FakeQueues:
    """Queues that record every message that is sent."""

    fan_out_messages: list[FanOutMessage] = field(default_factory=list)
    sweeper_messages: list[tuple[str, int]] = field(default_factory=list)
    webhook_messages: list[str] = field(default_factory=list)

    def send_fan_out(self, messages: Sequence[FanOutMessage]) -> None:
        self.fan_out_messages += messages

    def send_to_sweeper(self, message: str, delay_s: int) -> None:
        self.sweeper_messages.append((message, delay_s))

    def send_deliveries(self, messages: Sequence[str], *, delay_s: int = 0) -> None:
        self.webhook_messages += messages


@dataclass
class FakeExecutors:
    """Executors that record every call, and raise `error` if it is set."""

    calls: list[Any] = field(default_factory=list)
    invocations: list[tuple[str, Any]] = field(default_factory=list)
    error: BaseException | None = None

    def call_http(self, event: str) -> None:
        self._raise()
        self.calls.append(loads(event))

    def invoke_lambda(self, function: str, event: str) -> None:
        self._raise()
        self.invocations.append((function, loads(event)))

    def _raise(self) -> None:
        if self.error is not None:
            raise self.error


@dataclass
class FakeTimers:
    """Timers by their names: the time and the event of each."""

    armed: dict[str, tuple[datetime, Any]] = field(default_factory=dict)

    def start(self, name: str, at: datetime, event: str) -> None:
        self.armed.setdefault(name, (at, loads(event)))

    def cancel(self, name: str) -> None:
        self.armed.pop(name, None)


@dataclass
class FakePayloadStore:
    """Payload objects by their names: the text and the retention class of each."""

    stored: dict[str, tuple[str, RetentionClass]] = field(default_factory=dict)

    def put(self, key: str, text: str, *, retention_class: RetentionClass) -> None:
        self.stored[key] = text, retention_class

    def get(self, key: str) -> str | None:
        return self.stored[key][0] if key in self.stored else None

    def renew(self, key: str, *, retention_class: RetentionClass, source: str | None = None) -> None:
        self.stored[key] = self.stored[source or key][0], retention_class

    def remove(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.stored.pop(key, None)

    def names(self, prefix: str) -> list[str]:
        return [key for key in self.stored if key.startswith(prefix)]

    def url(self, key: str) -> str:
        return f"https://objects/{key}"

    def upload_url(self, key: str, size: int) -> str:
        return f"https://objects/{key}?size={size}"

    def size(self, key: str) -> int | None:
        return len(self.stored[key][0].encode()) if key in self.stored else None


class World:
    """One namespace with its jobs and waits. Job changes stay in `unmatched` until the test calls `run_matcher`."""

    def __init__(self, table: Table, *, spec_page_entries: int = SPEC_PAGE_ENTRIES, queue_partitions: int = 1) -> None:
        self.time = datetime(2026, 1, 31, 9, 0, tzinfo=UTC)
        self.queues = FakeQueues()
        self.executors = FakeExecutors()
        self.timers = FakeTimers()
        self.objects = FakePayloadStore()
        job_types = JobTypeStore(table, now=lambda: self.time)
        self.unmatched: list[Job] = []
        self.ctx = Context(
            jobs=_RecordingJobStore(table, self.objects, lambda: self.time, self.unmatched, queue_partitions),
            job_types=job_types,
            dependencies=DependencyStore(table),
            batches=BatchStore(table),
            locks=LockStore(table),
            waits=WaitStore(table, now=lambda: self.time, spec_page_entries=spec_page_entries),
            idempotency=IdempotencyStore(table),
            listing=ListingStore(table),
            due_index=DueStore(table),
            job_queues=QueueStore(table, now=lambda: self.time, partitions=queue_partitions),
            connections=ConnectionStore(table),
            webhooks=WebhookStore(table),
            work_slots=WorkSlotStore(table),
            schedules=ScheduleStore(table),
            runs=RunStore(table, self.objects, now=lambda: self.time),
            postponed_records=PostponedRecordStore(table),
            limits=LimitStores.over(table, now=lambda: self.time, concurrency=CONCURRENCY),
            message_queues=self.queues,
            executors=self.executors,
            timers=self.timers,
            parse_job=partial(parse_scheduled_job, find_type=job_types.find),
            parse_run=lambda namespace, body, workflow_id, now, schedule: parse_workflow(
                namespace, body, workflow_id, now=now, find_types=job_types.find_many, schedule=schedule
            ),
            clock=lambda: self.time,
            new_id=lambda: str(uuid6.uuid7()),
            sleep=self.pass_time,
            in_parallel=_map_in_sequence,
        )

    def pass_time(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)

    # Jobs

    def job(self, **attributes: Any) -> str:
        """Create a job and return its id."""
        known = {"job_id": str(uuid6.uuid7()), "job_type": "test", "has_waits": "job_id" in attributes}
        new = NewJob(**{**known, **attributes})
        return submit_job.submit(self.ctx, NAMESPACE, new, actor=KEY).job.job_id

    def running(self, **attributes: Any) -> str:
        job_id = self.job(**attributes)
        self.do(transitions.start, job_id)
        return job_id

    def do(self, change: Callable[..., Job], job_id: str, *args: Any, **kwargs: Any) -> Job:
        """Apply a change to a job. `change` is a function of the module `transitions`."""
        return change(self.ctx, NAMESPACE, job_id, *args, actor=KEY, **kwargs)

    def report(self, job_id: str, **report: Any) -> Job:
        return self.do(transitions.report, job_id, Report(**report))

    def complete(self, job_id: str, **kwargs: Any) -> Job:
        return self.do(transitions.complete, job_id, **kwargs)

    def fail(self, job_id: str) -> Job:
        return self.do(transitions.fail, job_id, JobError(code="BROKEN", message="it broke"))

    def delete(self, job_id: str) -> None:
        transitions.delete(self.ctx, NAMESPACE, job_id, actor=KEY)

    def run_matcher(self) -> None:
        """Match all changes since the last call in one batch, and then the changes that result from them."""
        while batch := [job for job in self.unmatched if job.needs_matching]:
            self.unmatched.clear()
            matcher.match_versions(self.ctx, batch)
            for job in batch:
                matcher.handle_job_change(self.ctx, job)

    def run_fan_out(self) -> None:
        """Process every message for the fan-out function."""
        while self.queues.fan_out_messages:
            assert fan_out(self.ctx, loads(self.queues.fan_out_messages.pop(0).body), has_time_left=lambda: True)

    def sweep(self) -> int:
        """Sweep every partition of the due index once, and return the number of due rows."""
        return sum(sweeper.sweep(self.ctx, shard) for shard in range(keys.DUE_PARTITIONS))

    # Waits

    def wait(self, wait_on: Mapping[str, Any], *, poll_s: float = 0, **rest: Any) -> dict[str, Any]:
        """Post a wait and return its response."""
        return self.post({"wait_on": wait_on, **rest}, poll_s=poll_s)

    def post(self, body: Mapping[str, Any], *, poll_s: float = 0) -> dict[str, Any]:
        until = self.time + timedelta(seconds=poll_s)
        return requests.post_wait(self.ctx, NAMESPACE, body, actor=KEY, poll_until=until)

    def show(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        return requests.show_wait(self.ctx, NAMESPACE, str(answer["wait_id"]), poll_until=self.time)


class _RecordingJobStore(JobStore):
    """Job store that records every version that it stores, as the table's stream does."""

    def __init__(
        self,
        table: Table,
        objects: FakePayloadStore,
        now: Callable[[], datetime],
        versions: list[Job],
        queue_partitions: int,
    ) -> None:
        super().__init__(table, objects, now=now, queue_partitions=queue_partitions)
        self._versions = versions

    def _write(self, actions: Sequence[Put | Delete]) -> None:
        super()._write(actions)
        state = actions[0]
        assert isinstance(state, Put)
        self._versions.append(job_from_row({name: value for name, value in state.row.items() if value is not None}))


def _map_in_sequence(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    return [work(item) for item in items]
