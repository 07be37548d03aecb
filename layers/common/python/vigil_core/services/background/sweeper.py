"""The sweeper: process everything that is due.

A timer message makes the sweeper process a due row to the second, and the sweep processes it within a minute. Messages
are hints: the due row decides what happens, so a message that is late, early, doubled or lost does no harm.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Protocol

from vigil_core.domain.exact_json import JsonValue
from vigil_core.services.background.stream_consumer import request_retry
from vigil_core.services.background.sweep import SweepContext, sweep_more_queues, sweep_partition
from vigil_core.services.context import (
    UsesListing,
    UsesParseJob,
    UsesParseRun,
    UsesPostponedRecords,
    UsesSchedules,
    UsesStreamConsumers,
    UsesTimers,
    UsesWaits,
    UsesWebhooks,
)
from vigil_core.services.executors.dispatch import dispatch
from vigil_core.services.jobs.transitions import apply_timers
from vigil_core.services.limits.recount import recount
from vigil_core.services.locks import promote_next_waiter
from vigil_core.services.messages import (
    DispatchJob,
    JobTimer,
    ScheduleTimer,
    Sweep,
    SweepQueues,
    parse_sweeper_request,
)
from vigil_core.services.queues.sweep import sweep_queue
from vigil_core.services.schedules.fire import fire_schedule
from vigil_core.services.waits import register as register_wait
from vigil_core.services.waits import resolve as resolve_wait
from vigil_core.services.webhooks import deliver as webhook_delivery
from vigil_core.services.workflows.reconcile import reconcile_run
from vigil_core.store.due_index import DueItem
from vigil_core.store.keys import DUE_PARTITIONS


class SweeperContext(
    SweepContext,
    UsesWaits,
    UsesListing,
    UsesWebhooks,
    UsesSchedules,
    UsesTimers,
    UsesParseJob,
    UsesParseRun,
    UsesPostponedRecords,
    UsesStreamConsumers,
    Protocol,
):
    """The due index, and what the processing of each kind of due row uses."""


MIN_SWEEP_TIME = timedelta(seconds=50)
"""The time that a sweep takes at most. With less time left, an invocation passes the message to another one."""


def start_sweep(ctx: SweeperContext) -> None:
    """Send one message for each partition of the due index, so that each invocation sweeps one partition."""
    for partition in range(DUE_PARTITIONS):
        ctx.message_queues.send_to_sweeper(Sweep(partition=partition).to_json(), 0)


def is_sweep(document: JsonValue) -> bool:
    """Return whether a message takes long, so that an invocation processes its other messages before."""
    return isinstance(document, Mapping) and document.get("kind") in (Sweep.KIND, SweepQueues.KIND)


def on_message(ctx: SweeperContext, document: JsonValue, *, time_left: timedelta = timedelta(minutes=1)) -> int:
    """Process a message: sweep a partition or a part of its queues, or process one due row.

    Args:
        ctx: The collaborators.
        document: The message.
        time_left: The time that the invocation has left.

    Returns:
        The number of due rows that were processed.
    """
    request = parse_sweeper_request(document)
    if isinstance(request, Sweep | SweepQueues) and time_left < MIN_SWEEP_TIME:
        ctx.message_queues.send_to_sweeper(request.to_json(), 0)
        return 0
    match request:
        case Sweep(partition=partition):
            return sweep(ctx, partition)
        case SweepQueues():
            return sweep_more_queues(ctx, request)
        case JobTimer(namespace=namespace, id=job_id):
            apply_timers(ctx, namespace, job_id)
            return 1
        case DispatchJob(namespace=namespace, id=job_id):
            return int(dispatch(ctx, namespace, job_id, actor="sweeper"))
        case message:
            return process_due(ctx, DueItem(kind=message.KIND, namespace=message.namespace, entity_id=message.id))


def on_timer(ctx: SweeperContext, timer: Mapping[str, JsonValue]) -> None:
    """Fire the schedule whose timer has elapsed. A timer of an older generation does nothing."""
    elapsed = ScheduleTimer.from_document(timer)
    fire_schedule(ctx, elapsed.namespace, elapsed.schedule, generation=elapsed.generation)


def sweep(ctx: SweeperContext, partition: int) -> int:
    """Sweep one partition of the due index, and return the number of due rows and due jobs that were processed.

    Raises:
        SweepFailed: Some rows failed. All others are processed before.
    """
    return sweep_partition(ctx, partition, lambda due: process_due(ctx, due))


def process_due(ctx: SweeperContext, due: DueItem) -> int:
    """Process one due row, if it is still due.

    Returns:
        The number of due rows that were processed. For a queue, the number of its due jobs.
    """
    match due.kind:
        case "queue":
            return sweep_queue(ctx, due.namespace, due.entity_id)
        case "mutex":
            promote_next_waiter(ctx, due.namespace, due.entity_id, actor="sweeper")
        case "wait_expiry":
            resolve_wait.expire(ctx, due.namespace, due.entity_id)
        case "wait_registration":
            register_wait.resume_registration(ctx, due.namespace, due.entity_id)
        case "delivery":
            webhook_delivery.requeue_due(ctx, due.namespace, due.entity_id)
        case "run":
            reconcile_run(ctx, due.namespace, due.entity_id)
        case "recount":
            recount(ctx, due.namespace)
        case "schedule":
            fire_schedule(ctx, due.namespace, due.entity_id)
        case "postponed":
            return request_retry(ctx, due.namespace, due.entity_id)
    return 1
