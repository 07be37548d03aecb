"""Bulk work that is too large for the request or stream record that caused it.

One message is one piece of work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from vigil_core.domain.exact_json import JsonValue
from vigil_core.services import messages
from vigil_core.services.background.matcher import match_bulk
from vigil_core.services.context import DispatchesJobs, UsesBatches, UsesListing, UsesMessageQueues, UsesWaits
from vigil_core.services.jobs import batches
from vigil_core.services.jobs.dependencies import register_waiting_job
from vigil_core.services.waits.register import register_page
from vigil_core.services.workflows import apply, cancellation, create, parking


class FanOutContext(DispatchesJobs, UsesBatches, UsesWaits, UsesListing, UsesMessageQueues, Protocol):
    """What the bulk work on waits, batches and runs uses together."""


def fan_out(ctx: FanOutContext, document: JsonValue, *, has_time_left: Callable[[], bool]) -> bool:
    """Process one message of the queue of `fan_out`.

    Returns:
        False if the time was over before the end, and the message must be delivered again.
    """
    match messages.parse_fan_out_request(document):
        case messages.RegisterPage() as message:
            register_page(ctx, message.namespace, message.wait_id, message.page)
        case messages.Match() as message:
            return match_bulk(ctx, message, has_time_left=has_time_left)
        case messages.RegisterDependencies() as message:
            register_waiting_job(ctx, message.namespace, message.job_id)
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
