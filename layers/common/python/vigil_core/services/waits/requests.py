"""Requests of clients about waits: post, show, cancel and list."""

from __future__ import annotations

from datetime import datetime
from itertools import islice
from typing import Protocol

from vigil_core.domain.access import Access, Scope
from vigil_core.domain.errors import ValidationFailed, WaitNotFound
from vigil_core.domain.exact_json import JsonValue
from vigil_core.domain.ids import is_uuid7
from vigil_core.domain.waits.request import WaitRequest
from vigil_core.domain.waits.wait import Wait
from vigil_core.schemas.waits import parse_wait_request
from vigil_core.services.context import (
    UsesAllowedPrivateHosts,
    UsesClock,
    UsesIds,
    UsesJobs,
    UsesLimits,
    UsesListing,
    UsesMessageQueues,
    UsesRandomness,
    UsesThreads,
    UsesWaits,
    UsesWebhooks,
)
from vigil_core.services.limits.admission import require_room_for_wait
from vigil_core.services.long_poll import SlotRequest, long_poll
from vigil_core.services.pagination import MAX_DAYS_READ, MAX_ROWS_READ
from vigil_core.services.waits import resolve as resolve_wait
from vigil_core.services.waits.register import register_wait
from vigil_core.services.waits.view import WaitAnswer, jobs_page, wait_answer, wait_summary
from vigil_core.services.webhooks.manage import check_wait_webhook


class WaitRequestsContext(
    UsesJobs,
    UsesLimits,
    UsesWaits,
    UsesListing,
    UsesWebhooks,
    UsesMessageQueues,
    UsesClock,
    UsesIds,
    UsesRandomness,
    UsesAllowedPrivateHosts,
    UsesThreads,
    Protocol,
):
    """The collaborators of wait requests: those of a registration, and those of a webhook check."""


def post_wait(
    ctx: WaitRequestsContext,
    namespace: str,
    body: JsonValue,
    *,
    actor: str,
    poll_until: datetime,
    reserved_id: str | None = None,
    read_only: bool = False,
    slot: SlotRequest | None = None,
) -> WaitAnswer:
    """Register a wait, or continue the wait whose answer is posted back. Then wait until it is done.

    The call returns at `poll_until` at the latest.

    Raises:
        ValidationFailed: With every problem of the body.
        JobNotFound: With all unknown jobs.
        LimitExceeded: The namespace, or its key of scope `read`, has too many open waits.
    """
    request = parse_wait_request(body)
    wait = _find_posted(ctx, namespace, request)
    if wait is None:
        if not request.wait_on:
            raise ValidationFailed.at("/wait_on", "is required: no wait with this wait_id is stored")
        if request.options.needed > len(request.wait_on):
            raise ValidationFailed.at("/wait_options/mode/at_least", "must not exceed the number of jobs in wait_on")
        if request.options.webhook is not None:
            check_wait_webhook(ctx, namespace, request.options.webhook, "/wait_options/notify/webhook")
        require_room_for_wait(ctx, namespace, actor, read_only=read_only)
        wait = register_wait(ctx, namespace, request, actor=actor, wait_id=reserved_id or ctx.new_id())
    return wait_answer(ctx, _long_poll(ctx, wait, poll_until, request, slot))


def show_wait(
    ctx: WaitRequestsContext, namespace: str, wait_id: str, *, poll_until: datetime, slot: SlotRequest | None = None
) -> WaitAnswer:
    """Return the wait once it is done, or at `poll_until`.

    Raises:
        WaitNotFound: The namespace has no wait with this id.
    """
    return wait_answer(ctx, _long_poll(ctx, find_wait(ctx, namespace, wait_id), poll_until, None, slot))


def cancel_wait(ctx: WaitRequestsContext, namespace: str, wait_id: str, *, access: Access) -> WaitAnswer:
    """Cancel a wait. A key without the scopes `submit` and `admin` may cancel only the waits that it registered.

    Raises:
        WaitNotFound: The namespace has no wait with this id.
        Forbidden: The key may not cancel the wait.
        InvalidTransition: The wait has ended with another status.
    """
    if find_wait(ctx, namespace, wait_id).created_by != access.key_id:
        access.require(Scope.SUBMIT)
    return wait_answer(ctx, resolve_wait.cancel(ctx, namespace, wait_id))


def list_waits(
    ctx: WaitRequestsContext, namespace: str, *, status: str | None, before_cursor: str | None, page_size: int
) -> tuple[list[WaitAnswer], str | None]:
    """List waits, newest first, without their jobs.

    The number of reads per page is limited. A page may therefore be short although there are more waits.

    Returns:
        The page, and the cursor for the next page, or None at the end.
    """
    page: list[WaitAnswer] = []
    rows_read = days_read = 0
    cursor = before_cursor
    index_rows = ctx.listing.newest_first(namespace, "waits", before_cursor=before_cursor)
    while len(page) < page_size and rows_read < MAX_ROWS_READ and days_read < MAX_DAYS_READ:
        batch = list(islice(index_rows, min(100, page_size)))
        if not batch:
            return page, None
        ids = [line.entity_id for line in batch if line.entity_id is not None]
        rows_read += len(ids)
        days_read += len(batch) - len(ids)
        waits = ctx.waits.find_many(namespace, ids)
        for line in batch:
            wait = waits.get(line.entity_id or "")
            if wait is not None and status in (None, wait.status):
                if len(page) == page_size:
                    return page, cursor
                page.append(wait_summary(wait))
            cursor = line.cursor
    return page, cursor


def list_wait_jobs(
    ctx: WaitRequestsContext, namespace: str, wait_id: str, *, after_index: int, page_size: int
) -> tuple[list[WaitAnswer], int | None]:
    """List the outcomes of a wait's jobs.

    Returns:
        The page, and the index after which the next page starts, or None at the end.

    Raises:
        WaitNotFound: The namespace has no wait with this id.
    """
    return jobs_page(ctx, find_wait(ctx, namespace, wait_id), after_index=after_index, page_size=page_size)


def find_wait(ctx: WaitRequestsContext, namespace: str, wait_id: str) -> Wait:
    """Return the current wait.

    Raises:
        WaitNotFound: The namespace has no wait with this id, or no wait can have it.
    """
    wait = ctx.waits.find(namespace, wait_id) if is_uuid7(wait_id) else None
    if wait is None:
        raise WaitNotFound(wait_id)
    return wait


def _find_posted(ctx: WaitRequestsContext, namespace: str, request: WaitRequest) -> Wait | None:
    if request.wait_id is None or not is_uuid7(request.wait_id):
        return None
    return ctx.waits.find(namespace, request.wait_id)


def _long_poll(
    ctx: WaitRequestsContext, wait: Wait, until: datetime, request: WaitRequest | None, slot: SlotRequest | None
) -> Wait:
    """Poll until the wait has ended, or until a client that requested progress can receive a new outcome."""
    return long_poll(
        ctx,
        lambda: ctx.waits.find(wait.namespace, wait.wait_id) or wait,
        is_done=lambda current: current.ended or _has_new_outcome(current, request),
        until=until,
        latest=wait,
        slot=slot,
    )


def _has_new_outcome(wait: Wait, request: WaitRequest | None) -> bool:
    """Return whether a wait that returns on progress has an outcome that the client does not know."""
    if request is None or not wait.options.return_on_progress:
        return False
    if wait.is_inline:
        return any(outcome.job_id not in request.known_job_ids for outcome in wait.outcomes.values())
    return wait.counts.met + wait.counts.unmet > request.known_outcomes
