"""Work that is too wide for the request or record that caused it, message by message."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vigil_core.domain.exact_json import JsonValue
from vigil_core.services.background.matcher import match_wide
from vigil_core.services.context import Context
from vigil_core.services.jobs import batches as batch
from vigil_core.services.waits.register import register_page
from vigil_core.services.workflows import advance as follow_run
from vigil_core.services.workflows import create as create_run


def do_wide_work(ctx: Context, message: JsonValue, *, still_time: Callable[[], bool]) -> bool:
    """Work off one message of the fan-out function's queue. False when it has to come again for the rest."""
    assert isinstance(message, Mapping)
    match message["kind"]:
        case "register":
            register_page(ctx, str(message["namespace"]), str(message["wait_id"]), int(str(message["page"])))
            return True
        case "match":
            return match_wide(ctx, message, still_time=still_time)
        case "batch_page":
            batch.see_to_page(ctx, message)
            return True
        case "batch_end":
            batch.end(ctx, message)
            return True
        case "run_prepare":
            create_run.prepare_chunk(ctx, message)
            return True
        case "run_settle":
            follow_run.settle_chunks(ctx, message)
            return True
        case "run_held":
            return follow_run.let_held_go(ctx, message, still_time=still_time)
        case "run_cancel":
            follow_run.cancel_chunk(ctx, message)
            return True
        case kind:
            raise ValueError(f"a message of unknown kind {kind!r}")
