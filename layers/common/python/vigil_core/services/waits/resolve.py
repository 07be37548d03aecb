"""Give outcomes to a wait and close it when they decide it. Shared by the matcher, `fan_out` and the registrar."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Protocol

from vigil_core.domain.errors import InvalidTransition, WaitNotFound
from vigil_core.domain.exact_json import loads
from vigil_core.domain.ids import is_uuid7
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.waits import wait as waits
from vigil_core.domain.waits.wait import EntryOutcome, Wait, WaitEntry, WaitStatus
from vigil_core.services.context import UsesClock, UsesJobs, UsesThreads, UsesWaits
from vigil_core.services.optimistic import update_with_retry
from vigil_core.store.keys import block_of, block_size


class ResolveWaitContext(UsesJobs, UsesWaits, UsesClock, UsesThreads, Protocol):
    """What this module uses of the outside world."""


def outcome_of(ctx: ResolveWaitContext, entry: WaitEntry, job: Job) -> EntryOutcome | None:
    """What this version of a job means for an entry; reads the job's result when the wait collects it."""
    outcome = waits.evaluate_entry(entry, job)
    if outcome is None or outcome.status == "unmet" or "result" not in entry.get_fields:
        return outcome
    text = ctx.jobs.payloads(job, payload=False).result if job.result_ref else None
    return outcome if text is None else waits.evaluate_entry(entry, job, result=loads(text))


def resolve(ctx: ResolveWaitContext, namespace: str, wait_id: str, outcomes: Sequence[EntryOutcome]) -> Wait | None:
    """Record outcomes, each unless its entry has one, and close the wait if they decide it.

    Can be repeated, by several at once. Returns the wait as far as it is known; None when its row is not there.
    """
    wait = ctx.waits.find(namespace, wait_id)
    if wait is None or wait.ended or not outcomes:
        return wait
    return _resolve_inline(ctx, wait, outcomes) if wait.is_inline else _resolve_large(ctx, wait, outcomes)


def close_if_decided(ctx: ResolveWaitContext, wait: Wait) -> Wait:
    """Close a large wait if what its chunks reported decides it. Before it is sealed, counting proves nothing."""
    if not wait.registration_complete:
        return wait
    status = waits.wait_status(wait.counts, wait.options, failed=False)
    return wait if status == "waiting" else _close(ctx, wait, status)


def expire(ctx: ResolveWaitContext, namespace: str, wait_id: str) -> None:
    """End a wait whose time is over; nothing when it is not, or the wait has ended."""

    def end(wait: Wait) -> Wait:
        jobs = ctx.jobs.find_many(namespace, (entry.job_id for entry in wait.wait_on_jobs or ()))
        return waits.expire_inline(wait, {job_id: job.stage for job_id, job in jobs.items()}, now=ctx.now())

    wait = ctx.waits.find(namespace, wait_id)
    if wait is not None and not wait.ended and wait.expires_at <= ctx.now():
        _end(ctx, wait, "expired", end)


def cancel(ctx: ResolveWaitContext, namespace: str, wait_id: str) -> Wait:
    """End a wait that nobody wants any more. Cancelling twice changes nothing.

    Raises:
        WaitNotFound: there is none.
        InvalidTransition: it has ended in another way.
    """
    wait = ctx.waits.find(namespace, wait_id) if is_uuid7(wait_id) else None
    if wait is None:
        raise WaitNotFound(wait_id)
    if not wait.ended:
        wait = _end(ctx, wait, "cancelled", lambda wait: waits.cancel_inline(wait, now=ctx.now()))
    if wait.status != "cancelled":
        raise InvalidTransition(f"Wait {wait_id} has ended: it is {wait.status}")
    return wait


def _resolve_inline(ctx: ResolveWaitContext, wait: Wait, outcomes: Sequence[EntryOutcome]) -> Wait:
    def decide(current: Wait) -> Wait:
        return waits.with_outcomes(current, outcomes, now=ctx.now())

    return _change_inline(ctx, wait, decide)


def _resolve_large(ctx: ResolveWaitContext, wait: Wait, outcomes: Sequence[EntryOutcome]) -> Wait:
    recorded = ctx.in_parallel(lambda outcome: ctx.waits.put_outcome(wait, outcome), outcomes)
    # What fails the wait is not counted: else another matcher could find the last chunk full, and the wait met.
    failed_indexes = [outcome.index for outcome in recorded if outcome.status == "failed"]
    counted_outcomes = sorted((o for o in recorded if o.status != "failed"), key=lambda outcome: outcome.index)
    latest = wait
    for block, members in groupby(counted_outcomes, key=lambda outcome: block_of(outcome.index)):
        met, unmet = ctx.waits.count_outcomes(wait, block, list(members))
        if wait.counts_every_outcome or met + unmet == block_size(block, wait.total):
            latest = ctx.waits.update_counts(wait, block, met, unmet) or latest
    if failed_indexes:
        return _close(ctx, wait, "failed_fast", failed_indexes)
    return close_if_decided(ctx, latest)


def _close(ctx: ResolveWaitContext, wait: Wait, status: WaitStatus, failed_indexes: Sequence[int] = ()) -> Wait:
    closed = ctx.waits.close_large(wait, status, now=ctx.now(), extra_met=failed_indexes)
    return closed or ctx.waits.find(wait.namespace, wait.wait_id) or wait


def _end(ctx: ResolveWaitContext, wait: Wait, status: WaitStatus, decide: waits.WaitTransition) -> Wait:
    if not wait.is_inline:
        return _close(ctx, wait, status)
    ended = _change_inline(ctx, wait, lambda current: current if current.ended else decide(current))
    ctx.waits.remove_entries(
        wait.namespace, [(entry.job_id, wait.wait_id, entry.index) for entry in wait.wait_on_jobs or ()]
    )
    return ended


def _change_inline(ctx: ResolveWaitContext, wait: Wait, decide: waits.WaitTransition) -> Wait:
    """One conditional write on the wait's row decides every race."""

    def save(before: Wait, after: Wait) -> Wait:
        if after is not before:
            ctx.waits.save(before, after)
        return after

    return update_with_retry(
        lambda: ctx.waits.find(wait.namespace, wait.wait_id) or wait,
        decide,
        save,
        sleep=ctx.sleep,
        subject=f"wait {wait.wait_id}",
        cached=wait,
    )
