"""What clients do with waits: post one and hold, look again, cancel, list."""

from __future__ import annotations

from datetime import datetime
from itertools import islice

from vigil_core.domain.errors import ValidationFailed, WaitNotFound
from vigil_core.domain.exact_json import JsonValue
from vigil_core.domain.ids import is_uuid7
from vigil_core.domain.waits.request import WaitRequest, parse_wait_request
from vigil_core.domain.waits.wait import Wait
from vigil_core.services.context import Context
from vigil_core.services.long_poll import hold
from vigil_core.services.pagination import DAY_BUDGET, READ_BUDGET
from vigil_core.services.waits import resolve as resolve_wait
from vigil_core.services.waits.register import register
from vigil_core.services.waits.view import Answer, answer, jobs_page, summary
from vigil_core.services.webhooks.manage import check_wait_webhook


def post_wait(
    ctx: Context,
    namespace: str,
    body: JsonValue,
    *,
    by: str,
    hold_until: datetime,
    reserved_id: str | None = None,
) -> Answer:
    """Register a wait, or go on with the one whose answer is posted back; hold until it is done or time is over.

    Raises:
        ValidationFailed: with every problem of the body.
        JobNotFound: naming the unknown jobs.
    """
    request = parse_wait_request(body)
    wait = _posted_back(ctx, namespace, request)
    if wait is None:
        if not request.wait_on:
            raise ValidationFailed.at("/wait_on", "required: no wait with this wait_id is stored")
        if request.options.needed > len(request.wait_on):
            raise ValidationFailed.at("/wait_options/mode/at_least", "more than the jobs in wait_on")
        if request.options.webhook is not None:
            check_wait_webhook(ctx, namespace, request.options.webhook, "/wait_options/notify/webhook")
        wait = register(ctx, namespace, request, by=by, wait_id=reserved_id or ctx.new_id())
    return answer(ctx, _hold(ctx, wait, hold_until, request))


def show_wait(ctx: Context, namespace: str, wait_id: str, *, hold_until: datetime) -> Answer:
    """The wait as it stands once it is done or time is over. Raises WaitNotFound."""
    return answer(ctx, _hold(ctx, find_wait(ctx, namespace, wait_id), hold_until, None))


def cancel_wait(ctx: Context, namespace: str, wait_id: str, *, by: str) -> Answer:
    """End a wait that nobody wants any more. Raises WaitNotFound, or InvalidTransition when it ended otherwise."""
    del by  # A wait keeps no history of its own.
    return answer(ctx, resolve_wait.cancel(ctx, namespace, wait_id))


def list_waits(
    ctx: Context, namespace: str, *, status: str | None, before_place: str | None, page_size: int
) -> tuple[list[Answer], str | None]:
    """Waits, newest first, in short form; and the place to go on before, None at the end.

    A page is filled up to a read budget, and may be short while there is more.
    """
    found: list[Answer] = []
    examined = days = 0
    place = before_place
    listed = ctx.listing.newest_first(namespace, "waits", before_place=before_place)
    while len(found) < page_size and examined < READ_BUDGET and days < DAY_BUDGET:
        batch = list(islice(listed, min(100, page_size)))
        if not batch:
            return found, None
        ids = [line.entity_id for line in batch if line.entity_id is not None]
        examined += len(ids)
        days += len(batch) - len(ids)
        waits = ctx.waits.find_many(namespace, ids)
        for line in batch:
            wait = waits.get(line.entity_id or "")
            if wait is not None and status in (None, wait.status):
                if len(found) == page_size:
                    return found, place
                found.append(summary(wait))
            place = line.place
    return found, place


def wait_jobs(
    ctx: Context, namespace: str, wait_id: str, *, after_index: int, page_size: int
) -> tuple[list[Answer], int | None]:
    """What became of a wait's jobs, page by page. Raises WaitNotFound."""
    return jobs_page(ctx, find_wait(ctx, namespace, wait_id), after_index=after_index, page_size=page_size)


def find_wait(ctx: Context, namespace: str, wait_id: str) -> Wait:
    """The wait as of now. Raises WaitNotFound, also for what cannot be an id."""
    wait = ctx.waits.find(namespace, wait_id) if is_uuid7(wait_id) else None
    if wait is None:
        raise WaitNotFound(wait_id)
    return wait


def _posted_back(ctx: Context, namespace: str, request: WaitRequest) -> Wait | None:
    if request.wait_id is None or not is_uuid7(request.wait_id):
        return None
    return ctx.waits.find(namespace, request.wait_id)


def _hold(ctx: Context, wait: Wait, until: datetime, request: WaitRequest | None) -> Wait:
    """Until the wait is done, or there is news for a client that wants it."""
    return hold(
        ctx,
        lambda: ctx.waits.find(wait.namespace, wait.wait_id) or wait,
        enough=lambda seen: seen.ended or _has_news(seen, request),
        until=until,
        seen=wait,
    )


def _has_news(wait: Wait, request: WaitRequest | None) -> bool:
    """Whether a wait that returns on progress has an outcome that the client did not post."""
    if request is None or not wait.options.return_on_progress:
        return False
    if wait.inline:
        return any(outcome.job_id not in request.seen for outcome in wait.outcomes.values())
    return wait.tally.met + wait.tally.unmet > request.seen_count
