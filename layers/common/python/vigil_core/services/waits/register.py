"""Register a wait, so that no change of a job is missed and none counts twice.

The race between the registrar and a change of a job:

1. Write order of the registrar: it reads the jobs, writes the entries, and reads the jobs again (consistently). An
   entry contains the version that the first read returned.
2. Read order of the matcher: it receives a change from the stream after the change was written, and then reads the
   entries of the job. It ignores versions up to the one in the entry.
3. Conclusion: a change before the second read is returned by that read. A change after it is written after the entries,
   so the matcher finds them. If both evaluate the same version, the first stored outcome of the entry wins.

An inline wait stores its own row last, so the row means that the registration is complete. A large wait stores its row
first and is registered page by page. Each page can be repeated, and the registration is complete when all pages are
marked.

Crashes:

- If the process crashes before the row of an inline wait exists, its entries are orphans, which expire. The client has
  no answer and repeats the request. The sweeper clears early outcomes.
- If the process crashes after the row of a large wait exists, the row is in the due index as an incomplete
  registration. The sweeper calls `resume_registration`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Protocol

from vigil_core.domain.errors import FieldProblem, JobNotFound, ValidationFailed, escape_pointer_token
from vigil_core.domain.exact_json import dumps
from vigil_core.domain.ids import is_uuid7
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.jobs.stages import is_known
from vigil_core.domain.waits import wait as waits
from vigil_core.domain.waits.request import WaitRequest
from vigil_core.domain.waits.wait import EntryOutcome, Wait, WaitOnJob, wait_entry_of
from vigil_core.services.context import (
    UsesClock,
    UsesJobs,
    UsesLimits,
    UsesListing,
    UsesMessageQueues,
    UsesThreads,
    UsesWaits,
)
from vigil_core.services.fair_shares import fan_out_group
from vigil_core.services.messages import RegisterPage
from vigil_core.services.ports import FanOutMessage
from vigil_core.services.timers import start_wait_timer
from vigil_core.services.waits import resolve as resolve_wait


class RegisterWaitContext(
    UsesJobs, UsesWaits, UsesListing, UsesMessageQueues, UsesClock, UsesThreads, UsesLimits, Protocol
):
    """The jobs and waits, the listing, and the queue of the fan-out function."""


MAX_SYNCHRONOUS_PAGES = 1
"""The fan-out function registers a wait with more pages, because it would exceed the 30 s of the HTTP API."""
MAX_PROBLEMS = 100


def register_wait(ctx: RegisterWaitContext, namespace: str, request: WaitRequest, *, actor: str, wait_id: str) -> Wait:
    """Register a wait under this id, or continue an earlier registration of the same request.

    Raises:
        JobNotFound: With every job that does not exist, unless `allow_missing`.
        ValidationFailed: A condition has a stage that its job does not have.
    """
    wait = ctx.waits.find(namespace, wait_id)
    if wait is None:
        jobs_by_id = _load_jobs(ctx, namespace, request)
        entries = _build_entries(request, jobs_by_id)
        draft = _draft_wait(ctx, namespace, request, entries, actor=actor, wait_id=wait_id)
        _store_side_rows(ctx, draft, request)
        if draft.is_inline:
            return _register_inline(ctx, draft, entries, jobs_by_id)
        wait = _store_large(ctx, draft, entries)
    return wait if wait.registration_complete else _register_pages(ctx, wait)


def register_page(ctx: RegisterWaitContext, namespace: str, wait_id: str, page: int) -> Wait | None:
    """Register one page of a large wait. The call is idempotent.

    1. Write order: store the entries and the outcomes of the page, then mark the page.
    2. The registration is complete when all pages are marked. Only then can counts close the wait as `met` or `unmet`.
    3. If the process crashes before the mark, the message is delivered again, and the page is repeated. If it crashes
       after the last mark, the due entry of the registration remains, and the sweeper calls `resume_registration`.

    Returns:
        The wait, or None if it has ended or does not exist.
    """
    wait = ctx.waits.find(namespace, wait_id)
    if wait is None or wait.ended:
        return None
    entries = ctx.waits.spec_page(wait, page)
    if entries is None:
        raise LookupError(f"Page {page} of wait {wait_id} was never stored")
    if page not in wait.registered_pages:
        _write_page(ctx, wait, entries)
        wait = ctx.waits.mark_page_registered(wait, page)
    return wait and _finish_registration(ctx, wait)


def resume_registration(ctx: RegisterWaitContext, namespace: str, wait_id: str) -> None:
    """Complete a registration after a crash, at whatever step it stopped. A complete registration is unchanged."""
    wait = ctx.waits.find(namespace, wait_id)
    if wait is not None and not wait.ended:
        if wait.expires_at <= ctx.now():
            resolve_wait.expire(ctx, namespace, wait_id)
        elif not wait.registration_complete:
            _enqueue_pages(ctx, wait)
            return
        elif wait.is_inline:
            resolve_wait.resolve(ctx, namespace, wait_id, list(ctx.waits.outcomes(namespace, wait_id)))
        else:
            _finish_registration(ctx, wait)
    ctx.waits.clear_early_outcomes(namespace, wait_id)


def recheck_jobs(ctx: RegisterWaitContext, wait: Wait, entries: Iterable[WaitOnJob]) -> list[EntryOutcome]:
    """Read the jobs again after their entries were written, and return the outcomes.

    The matcher looks for entries only if the job has the waiter mark. Therefore:

    1. Write order: entries, then the waiter mark on each open job without one. The marking write returns the job.
    2. A change before the mark is part of the returned job, and is evaluated here.
    3. A change after the mark carries the mark, so the matcher looks for entries and finds them.
    """
    entry_list = list(entries)
    jobs_by_id = ctx.jobs.find_many(wait.namespace, (entry.job_id for entry in entry_list))
    decided = _outcomes(ctx, wait, entry_list, jobs_by_id)
    open_ids = {entry.job_id for entry in entry_list} - {outcome.job_id for outcome in decided}
    unmarked = [job for job_id in sorted(open_ids) if (job := jobs_by_id.get(job_id)) is not None and not job.has_waits]
    if not unmarked:
        return decided
    marked_by_id = {job.job_id: job for job in ctx.in_parallel(ctx.jobs.mark_has_waits, unmarked) if job is not None}
    marked_entries = [entry for entry in entry_list if entry.job_id in marked_by_id]
    return [*decided, *_outcomes(ctx, wait, marked_entries, marked_by_id)]


def _load_jobs(ctx: RegisterWaitContext, namespace: str, request: WaitRequest) -> Mapping[str, Job]:
    """Read the jobs of the request, and check that they and their stages exist."""
    jobs_by_id = ctx.jobs.find_many(namespace, filter(is_uuid7, request.wait_on))
    existing_ids = {job_id for job_id, job in jobs_by_id.items() if not job.deleted}
    unknown_ids = [
        job_id
        for job_id in request.wait_on
        if job_id not in existing_ids and not (request.options.allow_missing and is_uuid7(job_id))
    ]
    if unknown_ids:
        raise JobNotFound(*unknown_ids)
    problems = [
        FieldProblem(
            pointer=f"/wait_on/{escape_pointer_token(job_id)}/job_stage",
            detail=f"unknown stage {stage!r}; this job's stages are {', '.join(jobs_by_id[job_id].stages)}",
        )
        for job_id, raw_condition in request.wait_on.items()
        if job_id in existing_ids and (stage := waits.parse_condition(raw_condition).stage) is not None
        if not is_known(jobs_by_id[job_id].stages, stage)
    ]
    if problems:
        raise ValidationFailed(problems[:MAX_PROBLEMS])
    return jobs_by_id


def _build_entries(request: WaitRequest, jobs_by_id: Mapping[str, Job]) -> tuple[WaitOnJob, ...]:
    return tuple(
        WaitOnJob(
            index=index,
            job_id=job_id,
            raw_condition=raw_condition,
            known_version=jobs_by_id[job_id].version if job_id in jobs_by_id else 0,
        )
        for index, (job_id, raw_condition) in enumerate(request.wait_on.items())
    )


def _draft_wait(
    ctx: RegisterWaitContext,
    namespace: str,
    request: WaitRequest,
    entries: tuple[WaitOnJob, ...],
    *,
    actor: str,
    wait_id: str,
) -> Wait:
    now = ctx.now()
    inline = len(entries) <= waits.MAX_INLINE_WAIT_JOBS
    return Wait(
        namespace=namespace,
        wait_id=wait_id,
        status="waiting",
        options=request.options,
        raw_options=dumps(request.raw_options),
        total=len(entries),
        created_by=actor,
        created_at=now,
        expires_at=now + timedelta(seconds=request.expires_in_s),
        has_waited_jobs=bool(request.waited_jobs),
        wait_on_jobs=entries if inline else None,
        pages=0 if inline else -(-len(entries) // ctx.waits.spec_page_entries),
    )


def _store_side_rows(ctx: RegisterWaitContext, draft: Wait, request: WaitRequest) -> None:
    """Store the rows to which the wait's own row refers, before that row exists."""
    ctx.listing.mark_day(draft.namespace, "waits", draft.created_at.date())
    if request.waited_jobs:
        ctx.waits.put_earlier_answer(draft, request.waited_jobs)


def _register_inline(
    ctx: RegisterWaitContext, draft: Wait, entries: tuple[WaitOnJob, ...], jobs_by_id: Mapping[str, Job]
) -> Wait:
    """Register an inline wait: entries, second read, own row, early outcomes.

    1. Write order of the registrar: entries, the wait's own row. Then it reads the early outcomes.
    2. Write order of the matcher, if it matches an entry and finds no row of the wait: an early outcome. Then it looks
       for the row once more.
    3. Conclusion: at least one of the two sees the write of the other, and gives the outcome to the wait. If the
       registrar crashes after the row exists, the sweeper finds the early outcome in the due index.
    """
    decided = waits.with_outcomes(draft, _outcomes(ctx, draft, entries, jobs_by_id), now=ctx.now())
    if decided.ended:
        return _create_or_find(ctx, decided)
    ctx.waits.put_entries(draft, entries)
    wait = waits.with_outcomes(draft, recheck_jobs(ctx, draft, entries), now=ctx.now())
    wait = _create_or_find(ctx, wait)
    early_outcomes = list(ctx.waits.outcomes(draft.namespace, draft.wait_id))
    if early_outcomes:
        wait = resolve_wait.resolve(ctx, draft.namespace, draft.wait_id, early_outcomes) or wait
    if wait.outcomes:
        done = entries if wait.ended else [entry for entry in entries if entry.index in wait.outcomes]
        ctx.waits.remove_entries(draft.namespace, [(entry.job_id, draft.wait_id, entry.index) for entry in done])
    start_wait_timer(ctx, wait)
    return wait


def _store_large(ctx: RegisterWaitContext, draft: Wait, entries: Sequence[WaitOnJob]) -> Wait:
    """Store the packed entries, then the wait's own row with the due entry of the registration."""
    ctx.waits.put_spec(draft, entries)
    return _create_or_find(ctx, draft)


def _register_pages(ctx: RegisterWaitContext, wait: Wait) -> Wait:
    start_wait_timer(ctx, wait)
    if wait.pages > MAX_SYNCHRONOUS_PAGES:
        _enqueue_pages(ctx, wait)
        return wait
    for page in range(wait.pages):
        register_page(ctx, wait.namespace, wait.wait_id, page)
    return ctx.waits.find(wait.namespace, wait.wait_id) or wait


def _write_page(ctx: RegisterWaitContext, wait: Wait, entries: Sequence[WaitOnJob]) -> None:
    """Write the entries of a page, read their jobs again, and record the outcomes.

    An earlier run of the same page may have crashed at any step. Its stored outcomes are counted, not evaluated again.
    """
    met, unmet = ctx.waits.counted_entries(wait)
    first_index, last_index = entries[0].index, entries[-1].index
    recorded = list(
        ctx.waits.outcomes(wait.namespace, wait.wait_id, after_index=first_index - 1, through_index=last_index)
    )
    recorded_indexes = met | unmet | {outcome.index for outcome in recorded}
    open_entries = [entry for entry in entries if entry.index not in recorded_indexes]
    ctx.waits.put_entries(wait, open_entries)
    decided = recheck_jobs(ctx, wait, open_entries)
    resolve_wait.resolve(ctx, wait.namespace, wait.wait_id, [*recorded, *decided])
    ctx.waits.remove_entries(wait.namespace, [(outcome.job_id, wait.wait_id, outcome.index) for outcome in decided])


def _finish_registration(ctx: RegisterWaitContext, wait: Wait) -> Wait:
    """After the last page, close the wait if its counts decide it, otherwise index its expiry.

    The due entry of the registration remains until then. If the process crashes before, the sweeper repeats this step.
    """
    if not wait.registration_complete:
        return wait
    wait = resolve_wait.close_if_decided(ctx, wait)
    return wait if wait.ended else ctx.waits.index_expiry(wait) or wait


def _create_or_find(ctx: RegisterWaitContext, wait: Wait) -> Wait:
    if ctx.waits.create(wait):
        if not wait.ended:
            ctx.limits.counters.add(wait.namespace, waits_by_key={wait.created_by: 1})
        return wait
    return ctx.waits.find(wait.namespace, wait.wait_id) or wait


def _enqueue_pages(ctx: RegisterWaitContext, wait: Wait) -> None:
    sent_at = ctx.clock().isoformat()
    ctx.message_queues.send_fan_out(
        [
            FanOutMessage(
                group=fan_out_group(wait.namespace, wait.wait_id, page),
                body=RegisterPage(
                    namespace=wait.namespace, wait_id=wait.wait_id, page=page, sent_at=sent_at
                ).to_json(),
            )
            for page in range(wait.pages)
            if page not in wait.registered_pages
        ]
    )  # fmt: skip


def _outcomes(
    ctx: RegisterWaitContext, wait: Wait, entries: Iterable[WaitOnJob], jobs_by_id: Mapping[str, Job]
) -> list[EntryOutcome]:
    outcomes = (
        resolve_wait.outcome_of(ctx, wait_entry_of(wait, entry), jobs_by_id[entry.job_id])
        for entry in entries
        if entry.job_id in jobs_by_id
    )
    return [outcome for outcome in outcomes if outcome is not None]
