"""Give outcomes to a wait and close it when they decide it. Shared by the matcher, `fan_out` and the registrar."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from vigil_core.domain.errors import InvalidTransition, StoreConflict, WaitNotFound
from vigil_core.domain.exact_json import loads
from vigil_core.domain.ids import is_uuid7
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.waits import wait as waits
from vigil_core.domain.waits.wait import Interest, Outcome, Wait, WaitStatus
from vigil_core.services.context import Context
from vigil_core.store.keys import chunk_of, chunk_size

ATTEMPTS = 12


def outcome_of(ctx: Context, interest: Interest, job: Job) -> Outcome | None:
    """What this version of a job means for an entry; reads the job's result when the wait collects it."""
    outcome = waits.outcome(interest, job)
    if outcome is None or outcome.verdict == "unmet" or "result" not in interest.get_fields:
        return outcome
    text = ctx.jobs.bodies(job, payload=False).result if job.result_ref else None
    return outcome if text is None else waits.outcome(interest, job, result=loads(text))


def resolve(ctx: Context, namespace: str, wait_id: str, outcomes: Sequence[Outcome]) -> Wait | None:
    """Record outcomes, each unless its entry has one, and close the wait if they decide it.

    Can be repeated, by several at once. Returns the wait as far as it is known; None when its row is not there.
    """
    wait = ctx.waits.find(namespace, wait_id)
    if wait is None or wait.ended or not outcomes:
        return wait
    return _resolve_inline(ctx, wait, outcomes) if wait.inline else _resolve_large(ctx, wait, outcomes)


def close_if_decided(ctx: Context, wait: Wait) -> Wait:
    """Close a large wait if what its chunks reported decides it. Before it is sealed, counting proves nothing."""
    if not wait.sealed:
        return wait
    status = waits.close(wait.tally, wait.options, failed=False)
    return wait if status == "waiting" else _close(ctx, wait, status)


def expire(ctx: Context, namespace: str, wait_id: str) -> None:
    """End a wait whose time is over; nothing when it is not, or the wait has ended."""

    def end(wait: Wait) -> Wait:
        jobs = ctx.jobs.find_many(namespace, (entry.job_id for entry in wait.entries or ()))
        return waits.expired(wait, {job_id: job.stage for job_id, job in jobs.items()}, now=ctx.now())

    wait = ctx.waits.find(namespace, wait_id)
    if wait is not None and not wait.ended and wait.expires_at <= ctx.now():
        _end(ctx, wait, "expired", end)


def cancel(ctx: Context, namespace: str, wait_id: str) -> Wait:
    """End a wait that nobody wants any more. Cancelling twice changes nothing.

    Raises:
        WaitNotFound: there is none.
        InvalidTransition: it has ended in another way.
    """
    wait = ctx.waits.find(namespace, wait_id) if is_uuid7(wait_id) else None
    if wait is None:
        raise WaitNotFound(wait_id)
    if not wait.ended:
        wait = _end(ctx, wait, "cancelled", lambda wait: waits.cancelled(wait, now=ctx.now()))
    if wait.status != "cancelled":
        raise InvalidTransition(f"Wait {wait_id} has ended: it is {wait.status}")
    return wait


def _resolve_inline(ctx: Context, wait: Wait, outcomes: Sequence[Outcome]) -> Wait:
    def decide(current: Wait) -> Wait:
        return waits.with_outcomes(current, outcomes, now=ctx.now())

    return _change_inline(ctx, wait, decide)


def _resolve_large(ctx: Context, wait: Wait, outcomes: Sequence[Outcome]) -> Wait:
    recorded = ctx.in_parallel(lambda outcome: ctx.waits.put_outcome(wait, outcome), outcomes)
    # What fails the wait is not counted: else another matcher could find the last chunk full, and the wait met.
    failed = [outcome.index for outcome in recorded if outcome.verdict == "failed"]
    in_chunks = sorted((o for o in recorded if o.verdict != "failed"), key=lambda outcome: outcome.index)
    latest = wait
    for chunk, members in groupby(in_chunks, key=lambda outcome: chunk_of(outcome.index)):
        met, unmet = ctx.waits.count(wait, chunk, list(members))
        if wait.counts_each or met + unmet == chunk_size(chunk, wait.total):
            latest = ctx.waits.report_count(wait, chunk, met, unmet) or latest
    if failed:
        return _close(ctx, wait, "failed_fast", failed)
    return close_if_decided(ctx, latest)


def _close(ctx: Context, wait: Wait, status: WaitStatus, failed: Sequence[int] = ()) -> Wait:
    closed = ctx.waits.close_large(wait, status, now=ctx.now(), also_shown=failed)
    return closed or ctx.waits.find(wait.namespace, wait.wait_id) or wait


def _end(ctx: Context, wait: Wait, status: WaitStatus, end: waits.Decision) -> Wait:
    if not wait.inline:
        return _close(ctx, wait, status)
    ended = _change_inline(ctx, wait, lambda current: current if current.ended else end(current))
    ctx.waits.remove_entries(
        wait.namespace, [(entry.job_id, wait.wait_id, entry.index) for entry in wait.entries or ()]
    )
    return ended


def _change_inline(ctx: Context, wait: Wait, decide: waits.Decision) -> Wait:
    """One conditional write on the wait's row decides every race."""
    for attempt in range(ATTEMPTS):
        after = decide(wait)
        if after is wait:
            return wait
        try:
            ctx.waits.save(wait, after)
        except StoreConflict:
            ctx.sleep(0.01 * attempt)
            wait = ctx.waits.find(wait.namespace, wait.wait_id) or wait
            continue
        return after
    raise StoreConflict(f"Wait {wait.wait_id} is being changed by too many at once: try again")
