"""Record the outcomes of a wait's entries, and close the wait when they decide it.

The matcher, the registrar, the fan-out function and the sweeper use this module, possibly at the same time.

Inline wait: one conditional write of its row records the outcomes and closes it. A process whose write fails reads the
row again and decides again.

Large wait. Its entries are counted in blocks of 64, each with a set of met and a set of unmet entries that only grow:

1. Write order: the outcome row (put if absent), the grow-only sets of the block, the block's counts in the wait's row,
   the closed row.
2. Read order: each of these writes returns the new row. The process that adds the last outcome of a block receives the
   full sets. The process that stores the deciding counts receives them in the wait's row.
3. Conclusion: at least one process sees the counts that decide the wait, and closes it. The closing write requires the
   status `waiting`, so the wait is closed once.

If the process crashes between two of these writes, its stream record or message is delivered again. The stored outcome
is then counted again, which changes nothing in a set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Protocol

from vigil_core.domain.errors import InvalidTransition, WaitNotFound
from vigil_core.domain.exact_json import loads_stored
from vigil_core.domain.ids import is_uuid7
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.waits import wait as waits
from vigil_core.domain.waits.wait import EntryOutcome, Wait, WaitEntry, WaitStatus
from vigil_core.services.context import UsesClock, UsesJobs, UsesThreads, UsesWaits
from vigil_core.services.optimistic import update_with_retry
from vigil_core.store.keys import block_of, block_size


class ResolveWaitContext(UsesJobs, UsesWaits, UsesClock, UsesThreads, Protocol):
    """The jobs and waits."""


def outcome_of(ctx: ResolveWaitContext, entry: WaitEntry, job: Job) -> EntryOutcome | None:
    """Return the outcome of an entry by this version of its job, or None if the entry is still open.

    The job's result is read only if the wait collects it. A result that is too large to read is marked.
    """
    outcome = waits.evaluate_entry(entry, job)
    if outcome is None or outcome.status == "unmet" or "result" not in entry.get_fields:
        return outcome
    if job.result_ref is None:
        return outcome
    text = ctx.jobs.payloads(job, payload=False).result
    if text is None:
        return replace(outcome, values=waits.mark_truncated(outcome.values, ["result"]))
    return waits.evaluate_entry(entry, job, result=loads_stored(text))


def resolve(ctx: ResolveWaitContext, namespace: str, wait_id: str, outcomes: Sequence[EntryOutcome]) -> Wait | None:
    """Record outcomes of entries that have none, and close the wait if they decide it. The call is idempotent.

    Returns:
        The wait as far as this process knows it, or None if its row does not exist.
    """
    wait = ctx.waits.find(namespace, wait_id)
    if wait is None or wait.ended or not outcomes:
        return wait
    return _resolve_inline(ctx, wait, outcomes) if wait.is_inline else _resolve_large(ctx, wait, outcomes)


def close_if_decided(ctx: ResolveWaitContext, wait: Wait) -> Wait:
    """Close a large wait if its counts decide it.

    The wait stays open until its registration is complete, because entries may still be missing from the counts.
    """
    if not wait.registration_complete:
        return wait
    status = waits.wait_status(wait.counts, wait.options, failed=False)
    return wait if status == "waiting" else _close_large(ctx, wait, status)


def expire(ctx: ResolveWaitContext, namespace: str, wait_id: str) -> None:
    """Expire a wait whose deadline has passed. Any other wait is unchanged."""

    def expire_inline(wait: Wait) -> Wait:
        jobs_by_id = ctx.jobs.find_many(namespace, (entry.job_id for entry in wait.wait_on_jobs or ()))
        return waits.expire_inline(wait, {job_id: job.stage for job_id, job in jobs_by_id.items()}, now=ctx.now())

    wait = ctx.waits.find(namespace, wait_id)
    if wait is not None and not wait.ended and wait.expires_at <= ctx.now():
        _end(ctx, wait, "expired", expire_inline)


def cancel(ctx: ResolveWaitContext, namespace: str, wait_id: str) -> Wait:
    """Cancel a wait. A cancelled wait is unchanged.

    Raises:
        WaitNotFound: The namespace has no wait with this id.
        InvalidTransition: The wait has ended with another status.
    """
    wait = ctx.waits.find(namespace, wait_id) if is_uuid7(wait_id) else None
    if wait is None:
        raise WaitNotFound(wait_id)
    if not wait.ended:
        wait = _end(ctx, wait, "cancelled", lambda current: waits.cancel_inline(current, now=ctx.now()))
    if wait.status != "cancelled":
        raise InvalidTransition(f"Wait {wait_id} has ended: it is {wait.status}")
    return wait


def _resolve_inline(ctx: ResolveWaitContext, wait: Wait, outcomes: Sequence[EntryOutcome]) -> Wait:
    return _change_inline(ctx, wait, lambda current: waits.with_outcomes(current, outcomes, now=ctx.now()))


def _resolve_large(ctx: ResolveWaitContext, wait: Wait, outcomes: Sequence[EntryOutcome]) -> Wait:
    recorded = ctx.in_parallel(lambda outcome: ctx.waits.put_outcome(wait, outcome), outcomes)
    latest = _count_outcomes(ctx, wait, [outcome for outcome in recorded if outcome.status != "failed"])
    failed_indexes = [outcome.index for outcome in recorded if outcome.status == "failed"]
    if failed_indexes:
        return _close_large(ctx, wait, "failed_fast", failed_indexes)
    return close_if_decided(ctx, latest)


def _count_outcomes(ctx: ResolveWaitContext, wait: Wait, outcomes: Sequence[EntryOutcome]) -> Wait:
    """Add met and unmet outcomes to their blocks, and store the counts of the blocks in the wait's row.

    A failed outcome is never counted. Otherwise another matcher could find the last block full and close the wait as
    `met` before this process closes it as `failed_fast`.
    """
    latest = wait
    by_index = sorted(outcomes, key=lambda outcome: outcome.index)
    for block, members in groupby(by_index, key=lambda outcome: block_of(outcome.index)):
        met, unmet = ctx.waits.count_outcomes(wait, block, list(members))
        if wait.counts_every_outcome or met + unmet == block_size(block, wait.total):
            latest = ctx.waits.update_counts(wait, block, met, unmet) or latest
    return latest


def _close_large(ctx: ResolveWaitContext, wait: Wait, status: WaitStatus, failed_indexes: Sequence[int] = ()) -> Wait:
    closed = ctx.waits.close_large(wait, status, now=ctx.now(), extra_met=failed_indexes)
    return closed or ctx.waits.find(wait.namespace, wait.wait_id) or wait


def _end(ctx: ResolveWaitContext, wait: Wait, status: WaitStatus, decide_inline: waits.WaitTransition) -> Wait:
    """End a wait by expiry or cancel, and remove its entries from the jobs if it is inline."""
    if not wait.is_inline:
        return _close_large(ctx, wait, status)
    ended = _change_inline(ctx, wait, lambda current: current if current.ended else decide_inline(current))
    ctx.waits.remove_entries(
        wait.namespace, [(entry.job_id, wait.wait_id, entry.index) for entry in wait.wait_on_jobs or ()]
    )
    return ended


def _change_inline(ctx: ResolveWaitContext, wait: Wait, decide: waits.WaitTransition) -> Wait:
    """Change an inline wait by one conditional write of its row, which decides every race."""

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
