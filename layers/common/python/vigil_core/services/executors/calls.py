"""The calls of executors `http` and `lambda` in flight: a namespace has a limited number of them.

1. Dispatch acquires a slot before it claims a job. The change that ends the run of the job frees the slot.
2. A job without a slot stays undispatched. `fan_out` dispatches the jobs of its queue while slots become free, in a
   lane of the namespace. Each sweep of the queue does the same.
3. If a process crashes between the two writes, the slot becomes free by itself after `MAX_CALL`. A call that runs
   longer no longer counts.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Protocol

from vigil_core.domain.jobs.job import Job
from vigil_core.runtime.logging import logger
from vigil_core.runtime.tracing import ids_of
from vigil_core.services.context import UsesClock, UsesLimits, UsesMessageQueues, UsesWorkSlots
from vigil_core.services.fair_shares import fan_out_group
from vigil_core.services.messages import DispatchWaiting
from vigil_core.services.ports import FanOutMessage
from vigil_core.store.work_slots import EXECUTOR_CALLS

MAX_CALL = timedelta(minutes=16)
"""Longer than the longest run of a Lambda function."""
MESSAGE_INTERVAL_S = 10
"""The time in which the refused jobs of a queue cause one message. SQS drops the messages of the same text."""


class ExecutorCallsContext(UsesWorkSlots, UsesLimits, UsesMessageQueues, UsesClock, Protocol):
    """The slots, the limits of namespaces, the queue of `fan_out`, and the time."""


def call_owner(lease_token: str) -> str:
    """Return the owner of a slot for a lease token.

    It is the random end of the token, so that all slots of a row fit into one write unit.
    """
    return lease_token[-12:]


def acquire_call(ctx: ExecutorCallsContext, job: Job, lease_token: str) -> bool:
    """Acquire a slot for the call of a job, or return False and let `fan_out` dispatch its queue."""
    now = ctx.now()
    if ctx.work_slots.is_known_as_full(job.namespace, job.queue, now):
        return False
    slot = ctx.work_slots.acquire_call(
        job.namespace,
        limit=ctx.limits.namespaces.limit(job.namespace, EXECUTOR_CALLS),
        owner=call_owner(lease_token),
        until=now + MAX_CALL,
        now=now,
    )
    if slot is not None:
        return True
    ctx.work_slots.remember_full(job.namespace, job.queue, now)
    send_dispatch_waiting(ctx, job.namespace, job.queue)
    return False


def send_dispatch_waiting(ctx: ExecutorCallsContext, namespace: str, queue: str) -> None:
    """Let `fan_out` dispatch the jobs of a queue, once in each interval."""
    interval = int(ctx.now().timestamp()) // MESSAGE_INTERVAL_S * MESSAGE_INTERVAL_S
    sent_at = datetime.fromtimestamp(interval, UTC).isoformat()
    message = DispatchWaiting(namespace=namespace, queue=queue, sent_at=sent_at)
    group = fan_out_group(namespace, "dispatch")  # One lane of the namespace, whatever the number of its queues.
    ctx.message_queues.send_fan_out([FanOutMessage(group=group, body=message.to_json())])


class ReleaseCallContext(UsesWorkSlots, Protocol):
    """The slots."""


def release_call(ctx: ReleaseCallContext, before: Job, after: Job) -> None:
    """Free the slot of a job whose run has ended. If this fails, the slot becomes free by itself later."""
    has_ended = before.status == "running" and after.status != "running"
    if has_ended and before.executor in ("http", "lambda") and before.lease is not None:
        try:
            ctx.work_slots.release_call(before.namespace, owner=call_owner(before.lease.token))
        except Exception:
            # The change of the job is written, and the slot becomes free by itself.
            logger.exception("slot is not freed", extra={"action": "release_call", **ids_of(before)})
