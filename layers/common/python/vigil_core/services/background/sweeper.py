"""The sweeper: what is due is done, by a message to the second or by the sweep within a minute. The due row decides."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import cast

from vigil_core.domain.exact_json import JsonValue, dumps
from vigil_core.services.context import Context
from vigil_core.services.executors.dispatch import dispatch
from vigil_core.services.jobs.transitions import on_time
from vigil_core.services.locks import hand_over
from vigil_core.services.queues.sweep import mind_queue
from vigil_core.services.schedules.fire import run_schedule
from vigil_core.services.waits import register as register_wait
from vigil_core.services.waits import resolve as resolve_wait
from vigil_core.services.webhooks import deliver as tell_webhooks
from vigil_core.services.workflows.reconcile import look_after_run
from vigil_core.store.due_index import Due
from vigil_core.store.keys import DUE_SHARDS, DueKind

SWEEP_LOCK = timedelta(seconds=55)
"""As long as a sweep may take: the sweeper function's timeout. The next minute's sweep finds the shard free again."""


class SweepFailed(Exception):
    """Some due work failed; the rest of the shard was done, and the next sweep finds it again."""

    def __init__(self, errors: list[tuple[str, Exception]]) -> None:
        super().__init__(f"{len(errors)} due rows failed, the first because {errors[0][0]}: {errors[0][1]!r}")
        self.errors = errors


def start_sweep(ctx: Context) -> None:
    """A minute has passed: have each shard swept on its own, so that the work is spread over as many invocations."""
    for shard in range(DUE_SHARDS):
        ctx.queues.wake_up(dumps({"kind": "sweep", "shard": shard}), 0)


def on_message(ctx: Context, message: JsonValue) -> int:
    """A sweep, or one due row whose time has come: too late, too early or for nothing, the row decides.

    Returns how many due rows were looked after.
    """
    assert isinstance(message, Mapping)
    kind, namespace, entity_id = message["kind"], str(message.get("namespace")), str(message.get("id"))
    match kind:
        case "sweep":
            return sweep(ctx, int(str(message["shard"])))
        case "job":
            on_time(ctx, namespace, entity_id)
            return 1
        case "dispatch":
            return int(dispatch(ctx, namespace, entity_id, by="sweeper"))
        case "wait_expiry" | "queue" | "delivery" | "schedule" | "run":
            return look_after(ctx, Due(kind=cast(DueKind, kind), namespace=namespace, entity_id=entity_id))
        case _:
            raise ValueError(f"a message of unknown kind {kind!r}")


def on_alarm(ctx: Context, alarm: Mapping[str, JsonValue]) -> None:
    """The time for which a schedule was armed has come."""
    namespace, name, generation = (str(alarm[part]) for part in ("namespace", "schedule", "generation"))
    run_schedule(ctx, namespace, name, generation=generation)


def sweep(ctx: Context, shard: int) -> int:
    """Do everything overdue in one shard; returns how much that was. Nothing while another sweep has the shard.

    Raises:
        SweepFailed: after everything else was done.
    """
    if not ctx.due.lock(shard, now=ctx.now(), life=SWEEP_LOCK):
        return 0
    errors: list[tuple[str, Exception]] = []
    deliveries: list[Due] = []
    done = 0

    def try_to_look_after(due: Due) -> int:
        try:
            return look_after(ctx, due)
        except Exception as error:
            errors.append((f"{due.kind} of {due.namespace} {due.entity_id}", error))
            return 0

    for due in ctx.due.overdue(shard, ctx.now()):
        if due.kind == "delivery":
            deliveries.append(due)
        else:
            done += try_to_look_after(due)
    # Last: there are very many when a receiver is down, and nothing else is to wait for them.
    done += sum(ctx.in_parallel(try_to_look_after, deliveries))
    ctx.due.unlock(shard)
    if errors:
        raise SweepFailed(errors)
    return done


def look_after(ctx: Context, due: Due) -> int:
    """Do what is due, if it still is. Returns how much there was to do: of a queue, how many of its jobs were due."""
    match due.kind:
        case "queue":
            return mind_queue(ctx, due.namespace, due.entity_id)
        case "mutex":
            hand_over(ctx, due.namespace, due.entity_id, by="sweeper")
        case "wait_expiry":
            resolve_wait.expire(ctx, due.namespace, due.entity_id)
        case "wait_registration":
            register_wait.resume_registration(ctx, due.namespace, due.entity_id)
        case "delivery":
            tell_webhooks.hand_over_again(ctx, due.namespace, due.entity_id)
        case "run":
            look_after_run(ctx, due.namespace, due.entity_id)
        case "schedule":
            run_schedule(ctx, due.namespace, due.entity_id)
    return 1
