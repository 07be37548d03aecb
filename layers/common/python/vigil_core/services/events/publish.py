"""The notifier: publish changes of jobs, runs and waits, and refused fires, to WebSockets, SNS and webhooks.

Delivery is at least once. A repeated event has the same id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeAlias

from vigil_core.domain.events.event import (
    Event,
    PublishRejected,
    job_event,
    may_fit_in_event,
    progress_event,
    progress_of_report,
    schedule_refused_event,
    wait_event,
    workflow_run_event,
)
from vigil_core.domain.waits.wait import Wait
from vigil_core.domain.webhooks import Delivery
from vigil_core.runtime.failures import add_error, apply_in_halves, contain
from vigil_core.services.context import (
    UsesClock,
    UsesConnections,
    UsesIds,
    UsesLimits,
    UsesMessageQueues,
    UsesRandomness,
    UsesThreads,
    UsesWaits,
    UsesWebhooks,
)
from vigil_core.services.events.outbox import BatchSender, Connection, Outbox, OutgoingEvent
from vigil_core.services.events.sockets import Sockets
from vigil_core.services.limits.counting import count_ends
from vigil_core.services.waits.view import wait_answer
from vigil_core.services.webhooks.deliver import deliveries_for, enqueue_deliveries
from vigil_core.store.connections import Subscriber
from vigil_core.store.schedules import schedule_from_row
from vigil_core.store.stream import StreamRecord, job_version_of, progress_from_row, run_version_of
from vigil_core.store.table import Row
from vigil_core.store.waits.wait_rows import wait_from_row


class PublishEventsContext(
    UsesWaits,
    UsesLimits,
    UsesConnections,
    UsesWebhooks,
    UsesMessageQueues,
    UsesClock,
    UsesIds,
    UsesRandomness,
    UsesThreads,
    Protocol,
):
    """The waits, connections and webhooks, the message queues, the time, jitter and threads."""


ACK_POLL_S = 0.02
"""Interval at which the notifier checks whether an acknowledgement has been sent."""


class EventTopic(Protocol):
    """The SNS topic of the stack."""

    def publish(self, events: Sequence[Event]) -> Mapping[str, PublishRejected]:
        """Publish events, and return the rejected ones by event id."""


@dataclass(frozen=True, kw_only=True)
class PublishReport:
    """The result of a batch.

    `failed` maps the sequence number of each record that must be delivered again to its error.
    """

    events: int
    messages: int
    published: int
    enqueued: int
    by_type: Mapping[str, int]
    """The number of events by type."""
    failed: Mapping[str, Exception]


@dataclass(frozen=True, kw_only=True)
class _PendingEvent:
    """An event, the record from which it derives, and whether its own topic may have subscribers."""

    record: str
    event: Event
    has_subscribers: bool

    @property
    def own_topics(self) -> Sequence[str]:
        """The topic of the single job, wait or run. Its subscribers are served first."""
        return self.event.topics[:1] if self.has_subscribers else ()

    @property
    def shared_topics(self) -> Sequence[str]:
        """The topics of its run, its queue and its namespace."""
        return self.event.topics[1:]


_Errors: TypeAlias = dict[str, Exception]
_Subscribers: TypeAlias = Mapping[tuple[str, str], Sequence[Subscriber]]
"""The subscribers of (namespace, topic)."""
_PendingDeliveries: TypeAlias = list[tuple[Sequence[str], Sequence[Delivery]]]
"""The webhook deliveries of a namespace, with the records from which they derive."""


def notify(
    ctx: PublishEventsContext,
    sockets: Sockets,
    event_topic: EventTopic,
    records: Iterable[StreamRecord],
    *,
    all_changes: bool,
    is_retry: bool = False,
) -> PublishReport:
    """Publish every record of a batch.

    1. Create the events of all records.
    2. Send them to the subscribers of own topics (one job, wait or run), which expect them soonest.
    3. In parallel: send them to the subscribers of shared topics, publish to SNS, and collect webhook deliveries.
    4. Send what exceeds the share of a namespace to `fan_out`.
    5. Store and enqueue the webhook deliveries.
    6. Count the ends of jobs and waits for the limits of their namespaces.

    Each connection receives its messages in the order of the records. A failure is attributed to its records, and does
    not affect other records or connections. A permanent error ends the work that causes it: a socket that cannot
    receive a message is closed, and a delivery that cannot be stored or enqueued is abandoned. A transient error of a
    socket does the same if other records succeed: a later message must not overtake an earlier one.

    If the process crashes after any step, Lambda delivers the batch again and every step is repeated. A repeated event
    has the same id, so its receivers can drop it.

    Args:
        ctx: The collaborators.
        sockets: The open WebSockets.
        event_topic: The SNS topic.
        records: The stream records.
        all_changes: True if SNS receives every version, False if it receives endings only.
        is_retry: True for a postponed record, which failed before while others succeeded.
    """
    record_list = list(records)
    errors: _Errors = {}
    pending_events: list[_PendingEvent] = []
    for record in record_list:
        with _attribute_failure(errors, [record.sequence_number]):
            pending_events += [
                _PendingEvent(record=record.sequence_number, event=event, has_subscribers=_may_have_subscribers(record))
                for event in events_of(ctx, record)
            ]
    own_outbox = _build_outbox(
        pending_events, _find_subscribers(ctx, [(item, item.own_topics) for item in pending_events], errors)
    )
    sender = BatchSender(ctx=ctx, sockets=sockets, on_error=partial(_attribute_to_records, errors))
    ctx.in_parallel(_run_task, sender.tasks(own_outbox))
    shared_outbox = _build_outbox(
        pending_events,
        _find_subscribers(ctx, [(item, item.shared_topics) for item in pending_events], errors),
        already_sent=own_outbox,
    )
    for_sns = [
        item
        for item in pending_events
        if item.event.audience == "ending" or (all_changes and item.event.audience == "change")
    ]
    tasks = sender.tasks(shared_outbox)
    tasks.append(partial(_publish, event_topic, for_sns, errors))
    pending_deliveries: _PendingDeliveries = []
    tasks += _webhook_tasks(ctx, pending_events, pending_deliveries, errors)
    ctx.in_parallel(_run_task, tasks)
    sender.send_deferred()
    # The deliveries are stored last, so that no open WebSocket waits for the writes.
    for sequence_numbers, deliveries in pending_deliveries:
        with _attribute_failure(errors, sequence_numbers):
            enqueue_deliveries(ctx, deliveries)
    with_events = {item.record for item in pending_events}
    sender.close_unreachable(with_events - errors.keys(), is_retry=is_retry)
    count_ends(ctx, record_list, errors)
    return PublishReport(
        events=len(pending_events),
        messages=sum(map(len, (*own_outbox.values(), *shared_outbox.values()))),
        published=len(for_sns),
        by_type=Counter(item.event.type for item in pending_events),
        enqueued=sum(len(deliveries) for _, deliveries in pending_deliveries),
        failed={
            record.sequence_number: errors[record.sequence_number]
            for record in record_list
            if record.sequence_number in errors
        },
    )


def events_of(ctx: PublishEventsContext, record: StreamRecord) -> list[Event]:
    """Return the events of a changed row. Most rows have none."""
    row = record.new() or {}
    match row.get("entity"):
        case "job":
            versions = job_version_of(record)
            if versions is None:
                return []
            job, previous = versions
            progress = progress_of_report(job)
            event = job_event(job, job.log[-1], previous.log[-1] if previous else None)
            return [event, progress_event(progress)] if progress else [event]
        case "live":
            return [] if _is_heartbeat(row, record.old()) else [progress_event(progress_from_row(row))]
        case "run":
            run_versions = run_version_of(record)
            return (
                []
                if run_versions is None
                else [workflow_run_event(run_versions[0], run_versions[0].log[-1], run_versions[1])]
            )
        case "wait":
            wait = wait_from_row(row)
            return [wait_ended_event(ctx, wait)] if wait.ended else []
        case "schedule":
            return _refused_fires(row, record.old())
        case _:
            return []


def _refused_fires(row: Row, previous_row: Row | None) -> list[Event]:
    """Return the event of a refused fire, unless an earlier version of the schedule already had that fire."""
    fire_row = row.get("last_fire")
    if fire_row is None or (previous_row is not None and previous_row.get("last_fire") == fire_row):
        return []
    schedule = schedule_from_row(row)
    fire = schedule.last_fire
    return [schedule_refused_event(schedule, fire)] if fire is not None and fire.outcome == "refused" else []


def _may_have_subscribers(record: StreamRecord) -> bool:
    """Return False if the own topic certainly has no subscribers: a subscription to a job marks the job's row first."""
    row = record.new() or {}
    return row.get("entity") != "job" or "has_subscribers" in row


def _is_heartbeat(row: Row, previous_row: Row | None) -> bool:
    """Return True if the report has no new progress and no new message."""
    compared_names = ("attempt", "progress", "message")
    if previous_row is None:
        return row["progress"] == 0 and "message" not in row
    return all(row.get(name) == previous_row.get(name) for name in compared_names)


def wait_ended_event(ctx: PublishEventsContext, wait: Wait) -> Event:
    """Create the event of an ended wait, with its answer if it is short enough and can be built."""
    answer = contain(lambda: wait_answer(ctx, wait) if may_fit_in_event(wait) else None, lambda _: None)
    return wait_event(wait, answer)


def _find_subscribers(
    ctx: PublishEventsContext, pending_events: Iterable[tuple[_PendingEvent, Sequence[str]]], errors: _Errors
) -> _Subscribers:
    """Read the subscribers of topics, once per topic and batch.

    A client that subscribes after this read misses no event: it reads the job, wait or run itself after its
    subscription is stored.
    """
    records_by_topic: dict[tuple[str, str], list[str]] = {}
    for item, topics in pending_events:
        for topic in topics:
            records_by_topic.setdefault((item.event.namespace, topic), []).append(item.record)

    subscribers: dict[tuple[str, str], Sequence[Subscriber]] = {}

    def collect(topic_key: tuple[str, str]) -> None:
        with _attribute_failure(errors, records_by_topic[topic_key]):
            subscribers[topic_key] = _acknowledged_subscribers(ctx, *topic_key)

    ctx.in_parallel(collect, records_by_topic)
    return subscribers


def _acknowledged_subscribers(ctx: PublishEventsContext, namespace: str, topic: str) -> list[Subscriber]:
    """Return the subscribers of a topic, after every quiet subscription is acknowledged or its grace time is over."""
    subscribers = list(ctx.connections.subscribers(namespace, topic))
    unacknowledged = {subscriber for subscriber in subscribers if subscriber.is_quiet(ctx.now())}
    while unacknowledged:
        ctx.sleep(ACK_POLL_S)
        now = ctx.now()
        unacknowledged = {
            subscriber
            for subscriber in ctx.connections.subscribers(namespace, topic)
            if subscriber in unacknowledged and subscriber.is_quiet(now)
        }
    return subscribers


def _build_outbox(
    pending_events: Iterable[_PendingEvent], subscribers: _Subscribers, already_sent: Outbox | None = None
) -> Outbox:
    """Collect the messages for each connection. A subscription with several matching topics receives an event once."""
    outbox: dict[Connection, list[OutgoingEvent]] = {}
    sent = {
        (connection, message.identity) for connection, messages in (already_sent or {}).items() for message in messages
    }
    for position, item in enumerate(pending_events):
        namespace = item.event.namespace
        recipients = {
            (subscriber.connection_id, subscriber.subscription_id)
            for topic in item.event.topics
            for subscriber in subscribers.get((namespace, topic), ())
        }
        for connection_id, subscription_id in sorted(recipients):
            message = OutgoingEvent(
                record=item.record, position=position, subscription_id=subscription_id, event=item.event
            )
            if ((namespace, connection_id), message.identity) not in sent:
                outbox.setdefault((namespace, connection_id), []).append(message)
    return outbox


def _run_task(task: Callable[[], None]) -> None:
    task()


def _publish(event_topic: EventTopic, pending_events: Sequence[_PendingEvent], errors: _Errors) -> None:
    def publish(items: Sequence[_PendingEvent]) -> None:
        rejected = event_topic.publish([item.event for item in items])
        for item in items:
            if (rejection := rejected.get(item.event.event_id)) is not None:
                add_error(errors, item.record, rejection)

    apply_in_halves(pending_events, publish, partial(_attribute, errors))


def _webhook_tasks(
    ctx: PublishEventsContext,
    pending_events: Sequence[_PendingEvent],
    pending_deliveries: _PendingDeliveries,
    errors: _Errors,
) -> list[Callable[[], None]]:
    """Create a task per namespace that adds its webhook deliveries to `pending_deliveries`."""
    by_namespace: dict[str, list[_PendingEvent]] = {}
    for item in pending_events:
        by_namespace.setdefault(item.event.namespace, []).append(item)

    def collect(namespace: str, items: Sequence[_PendingEvent]) -> None:
        deliveries = deliveries_for(ctx, namespace, [item.event for item in items])
        pending_deliveries.append(([item.record for item in items], deliveries))

    return [
        partial(apply_in_halves, items, partial(collect, namespace), partial(_attribute, errors))
        for namespace, items in by_namespace.items()
    ]


def _attribute_to_records(errors: _Errors, records: Sequence[str], error: Exception) -> None:
    for record in records:
        add_error(errors, record, error)


def _attribute(errors: _Errors, items: Sequence[_PendingEvent], error: Exception) -> None:
    for item in items:
        add_error(errors, item.record, error)


@contextmanager
def _attribute_failure(errors: _Errors, records: Iterable[str]) -> Iterator[None]:
    """Attribute an exception to records: only these records are delivered again."""
    try:
        yield
    except Exception as error:
        for record in records:
            add_error(errors, record, error)
