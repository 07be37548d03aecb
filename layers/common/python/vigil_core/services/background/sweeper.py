"""The sweeper: process everything that is due.

A timer message makes the sweeper process a due row to the second, and the sweep processes it within a minute. Messages
are hints: the due row decides what happens, so a message that is late, early, doubled or lost does no harm.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Protocol

from vigil_core.domain.exact_json import JsonValue
from vigil_core.services.context import (
    DispatchesJobs,
    UsesDueIndex,
    UsesListing,
    UsesMessageQueues,
    UsesParseJob,
    UsesParseRun,
    UsesSchedules,
    UsesTimers,
    UsesWaits,
    UsesWebhooks,
)
from vigil_core.services.executors.dispatch import dispatch
from vigil_core.services.jobs.transitions import apply_timers
from vigil_core.services.locks import promote_next_waiter
from vigil_core.services.messages import DispatchJob, JobTimer, ScheduleTimer, Sweep, parse_sweeper_request
from vigil_core.services.queues.sweep import sweep_queue
from vigil_core.services.schedules.fire import fire_schedule
from vigil_core.services.waits import register as register_wait
from vigil_core.services.waits import resolve as resolve_wait
from vigil_core.services.webhooks import deliver as webhook_delivery
from vigil_core.services.workflows.reconcile import reconcile_run
from vigil_core.store.due_index import DueItem
from vigil_core.store.keys import DUE_PARTITIONS


class SweeperContext(
    DispatchesJobs,
    UsesWaits,
    UsesListing,
    UsesDueIndex,
    UsesWebhooks,
    UsesSchedules,
    UsesMessageQueues,
    UsesTimers,
    UsesParseJob,
    UsesParseRun,
    Protocol,
):
    """The due index, and what the processing of each kind of due row uses."""


SWEEP_LEASE = timedelta(seconds=55)
"""The timeout of the sweeper function. The sweep of the next minute can acquire the lease of the partition again."""


class SweepFailed(Exception):
    """Signal that some due rows failed. The other rows of the partition are processed, and the next sweep retries."""

    def __init__(self, errors: list[tuple[str, Exception]]) -> None:
        super().__init__(f"{len(errors)} due rows failed; first error: {errors[0][0]}: {errors[0][1]!r}")
        self.errors = errors


def start_sweep(ctx: SweeperContext) -> None:
    """Send one message for each partition of the due index, so that each invocation sweeps one partition."""
    for partition in range(DUE_PARTITIONS):
        ctx.message_queues.send_to_sweeper(Sweep(partition=partition).to_json(), 0)


def on_message(ctx: SweeperContext, document: JsonValue) -> int:
    """Process a message: sweep a partition, or process one due row.

    Returns:
        The number of due rows that were processed.
    """
    match parse_sweeper_request(document):
        case Sweep(partition=partition):
            return sweep(ctx, partition)
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
    """Process every overdue row of one partition, unless another sweep has the lease of the partition.

    Returns:
        The number of due rows that were processed.

    Raises:
        SweepFailed: Some rows failed. All others are processed before.
    """
    if not ctx.due_index.acquire_sweep_lease(partition, now=ctx.now(), ttl=SWEEP_LEASE):
        return 0
    errors: list[tuple[str, Exception]] = []
    deliveries: list[DueItem] = []
    processed = 0

    def process_or_collect(due: DueItem) -> int:
        try:
            return process_due(ctx, due)
        except Exception as error:
            errors.append((f"{due.kind} of {due.namespace} {due.entity_id}", error))
            return 0

    for due in ctx.due_index.overdue(partition, ctx.now()):
        if due.kind == "delivery":
            deliveries.append(due)
        else:
            processed += process_or_collect(due)
    # Deliveries come last: there are very many when a receiver is down, and they must not delay anything else.
    processed += sum(ctx.in_parallel(process_or_collect, deliveries))
    ctx.due_index.release_sweep_lease(partition)
    if errors:
        raise SweepFailed(errors)
    return processed


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
        case "schedule":
            fire_schedule(ctx, due.namespace, due.entity_id)
    return 1
