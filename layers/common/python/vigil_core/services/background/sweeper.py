"""The sweeper: what is due is done, by a message to the second or by the sweep within a minute. The due row decides."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Protocol, cast

from vigil_core.domain.exact_json import JsonValue, dumps
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
from vigil_core.services.queues.sweep import sweep_queue
from vigil_core.services.schedules.fire import fire_schedule
from vigil_core.services.waits import register as register_wait
from vigil_core.services.waits import resolve as resolve_wait
from vigil_core.services.webhooks import deliver as webhook_delivery
from vigil_core.services.workflows.reconcile import reconcile_run
from vigil_core.store.due_index import DueItem
from vigil_core.store.keys import DUE_PARTITIONS, DueKind


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
    """What this module uses of the outside world."""


SWEEP_LEASE = timedelta(seconds=55)
"""As long as a sweep may take: the sweeper function's timeout. The next minute's sweep finds the shard free again."""


class SweepFailed(Exception):
    """Some due work failed; the rest of the shard was done, and the next sweep finds it again."""

    def __init__(self, errors: list[tuple[str, Exception]]) -> None:
        super().__init__(f"{len(errors)} due rows failed, the first because {errors[0][0]}: {errors[0][1]!r}")
        self.errors = errors


def start_sweep(ctx: SweeperContext) -> None:
    """A minute has passed: have each shard swept on its own, so that the work is spread over as many invocations."""
    for shard in range(DUE_PARTITIONS):
        ctx.message_queues.send_to_sweeper(dumps({"kind": "sweep", "shard": shard}), 0)


def on_message(ctx: SweeperContext, message: JsonValue) -> int:
    """A sweep, or one due row whose time has come: too late, too early or for nothing, the row decides.

    Returns how many due rows were looked after.
    """
    assert isinstance(message, Mapping)
    kind, namespace, entity_id = message["kind"], str(message.get("namespace")), str(message.get("id"))
    match kind:
        case "sweep":
            return sweep(ctx, int(str(message["shard"])))
        case "job":
            apply_timers(ctx, namespace, entity_id)
            return 1
        case "dispatch":
            return int(dispatch(ctx, namespace, entity_id, actor="sweeper"))
        case "wait_expiry" | "queue" | "delivery" | "schedule" | "run":
            return process_due(ctx, DueItem(kind=cast(DueKind, kind), namespace=namespace, entity_id=entity_id))
        case _:
            raise ValueError(f"a message of unknown kind {kind!r}")


def on_timer(ctx: SweeperContext, timer: Mapping[str, JsonValue]) -> None:
    """The time for which a schedule was armed has come."""
    namespace, name, generation = (str(timer[part]) for part in ("namespace", "schedule", "generation"))
    fire_schedule(ctx, namespace, name, generation=generation)


def sweep(ctx: SweeperContext, shard: int) -> int:
    """Do everything overdue in one shard; returns how much that was. Nothing while another sweep has the shard.

    Raises:
        SweepFailed: after everything else was done.
    """
    if not ctx.due_index.acquire_sweep_lease(shard, now=ctx.now(), ttl=SWEEP_LEASE):
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

    for due in ctx.due_index.overdue(shard, ctx.now()):
        if due.kind == "delivery":
            deliveries.append(due)
        else:
            processed += process_or_collect(due)
    # Last: there are very many when a receiver is down, and nothing else is to wait for them.
    processed += sum(ctx.in_parallel(process_or_collect, deliveries))
    ctx.due_index.release_sweep_lease(shard)
    if errors:
        raise SweepFailed(errors)
    return processed


def process_due(ctx: SweeperContext, due: DueItem) -> int:
    """Do what is due, if it still is. Returns how much there was to do: of a queue, how many of its jobs were due."""
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
