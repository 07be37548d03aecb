"""Bulk work that is too large for the request or stream record that caused it.

One message is one piece of work.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from vigil_core.domain.errors import InvalidTransition, WaitNotFound
from vigil_core.domain.exact_json import JsonValue
from vigil_core.runtime.failures import contain
from vigil_core.services import messages
from vigil_core.services.background.matcher import match_bulk
from vigil_core.services.context import (
    DispatchesJobs,
    UsesBatches,
    UsesConnections,
    UsesListing,
    UsesMessageQueues,
    UsesWaits,
)
from vigil_core.services.events.outbox import send_backlog
from vigil_core.services.events.sockets import Sockets
from vigil_core.services.executors.dispatch import dispatch, dispatch_waiting
from vigil_core.services.jobs import batches
from vigil_core.services.jobs.dependencies import register_waiting_job
from vigil_core.services.jobs.unprocessable import fail_unprocessable
from vigil_core.services.waits.register import register_page
from vigil_core.services.waits.resolve import cancel as cancel_wait
from vigil_core.services.workflows import apply, cancellation, create, parking
from vigil_core.services.workflows.commands import abort_unprocessable


class FanOutContext(DispatchesJobs, UsesBatches, UsesWaits, UsesListing, UsesConnections, UsesMessageQueues, Protocol):
    """What the bulk work on waits, batches and runs uses together."""


def fan_out(
    ctx: FanOutContext,
    document: JsonValue,
    *,
    has_time_left: Callable[[], bool],
    sockets: Callable[[], Sockets] | None = None,
) -> bool:
    """Process one message of the queue of `fan_out`.

    A permanent error ends the work of the message, if that has an end with a reason: the batch fails, the run aborts,
    the wait is cancelled. Any other message is delivered again, and becomes a dead letter in the end.

    Args:
        ctx: The collaborators.
        document: The message.
        has_time_left: Returns whether the work may continue with its next part.
        sockets: Returns the open WebSockets, for the messages that need them.

    Returns:
        False if the time was over before the end, and the message must be delivered again.
    """
    request = messages.parse_fan_out_request(document)
    if isinstance(request, messages.SocketEvents):
        assert sockets is not None
        send_backlog(ctx, sockets(), request)
        return True

    def end_work(error: Exception) -> bool:
        _end_work(ctx, request, error)
        return True

    return contain(lambda: _process(ctx, request, has_time_left=has_time_left), end_work)


def _end_work(ctx: FanOutContext, request: messages.FanOutRequest, error: Exception) -> None:
    """End the batch, run or wait of a message with a permanent error.

    Raises:
        Exception: The same error, if the message has no such object.
    """
    match request:
        case (
            messages.BatchPage() | messages.BatchEnd() | messages.RegisterDependencies() | messages.CompleteJoin()
        ) as message:
            fail_unprocessable(ctx, message.namespace, message.job_id, error, actor="fan_out")
        case messages.RunApply() | messages.RunUnpark() as message:
            abort_unprocessable(ctx, message.namespace, message.workflow_id, error)
        case messages.RegisterPage() as message:
            with suppress(InvalidTransition, WaitNotFound):
                cancel_wait(ctx, message.namespace, message.wait_id)
        case _:
            raise error


def _process(ctx: FanOutContext, request: messages.FanOutRequest, *, has_time_left: Callable[[], bool]) -> bool:
    match request:
        case messages.RegisterPage() as message:
            register_page(ctx, message.namespace, message.wait_id, message.page)
        case messages.Match() as message:
            return match_bulk(ctx, message, has_time_left=has_time_left)
        case messages.RegisterDependencies() as message:
            register_waiting_job(ctx, message.namespace, message.job_id)
        case messages.CompleteJoin() as message:
            dispatch(ctx, message.namespace, message.job_id, actor="fan_out")
        case messages.DispatchWaiting() as message:
            dispatch_waiting(ctx, message.namespace, message.queue, has_time_left=has_time_left, actor="fan_out")
        case messages.BatchPage() as message:
            batches.process_page(ctx, message)
        case messages.BatchEnd() as message:
            batches.end_batch(ctx, message)
        case messages.RunPrepare() as message:
            create.prepare_block(ctx, message)
        case messages.RunApply() as message:
            apply.apply_transitions_bulk(ctx, message)
        case messages.RunUnpark() as message:
            return parking.release_parked_bulk(ctx, message, has_time_left=has_time_left)
        case messages.RunCancel() as message:
            cancellation.cancel_block(ctx, message)
    return True
