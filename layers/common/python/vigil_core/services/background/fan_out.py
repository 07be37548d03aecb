"""Work that is too wide for the request or record that caused it, message by message."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from vigil_core.domain.exact_json import JsonValue
from vigil_core.services.background.matcher import match_bulk
from vigil_core.services.context import DispatchesJobs, UsesBatches, UsesListing, UsesMessageQueues, UsesWaits
from vigil_core.services.jobs import batches
from vigil_core.services.waits.register import register_page
from vigil_core.services.workflows import advance, create


class FanOutContext(DispatchesJobs, UsesBatches, UsesWaits, UsesListing, UsesMessageQueues, Protocol):
    """What this module uses of the outside world."""


def fan_out(ctx: FanOutContext, message: JsonValue, *, has_time_left: Callable[[], bool]) -> bool:
    """Work off one message of the fan-out function's queue. False when it has to come again for the rest."""
    assert isinstance(message, Mapping)
    match message["kind"]:
        case "register":
            register_page(ctx, str(message["namespace"]), str(message["wait_id"]), int(str(message["page"])))
            return True
        case "match":
            return match_bulk(ctx, message, has_time_left=has_time_left)
        case "batch_page":
            batches.process_page(ctx, message)
            return True
        case "batch_end":
            batches.end_batch(ctx, message)
            return True
        case "run_prepare":
            create.prepare_block(ctx, message)
            return True
        case "run_settle":
            advance.apply_transitions_bulk(ctx, message)
            return True
        case "run_held":
            return advance.release_parked_bulk(ctx, message, has_time_left=has_time_left)
        case "run_cancel":
            advance.cancel_block(ctx, message)
            return True
        case kind:
            raise ValueError(f"a message of unknown kind {kind!r}")
