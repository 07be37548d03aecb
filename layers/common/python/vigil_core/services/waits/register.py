"""Register a wait so that no update is missed and none counts twice.

The jobs are read, the entries are written, the jobs are read again. An update is either seen by the second read, or its
stream record comes after the entry and the matcher sees it; a version that the first read saw does not count for the
matcher. Small waits need no more than their own row, which is written last and therefore says by itself that the
registration is finished. Large ones are stored first and worked off in pages, of which each can be repeated; the last
page done is their seal.
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
from vigil_core.services.context import UsesClock, UsesJobs, UsesListing, UsesMessageQueues, UsesThreads, UsesWaits
from vigil_core.services.ports import FanOutMessage
from vigil_core.services.timers import start_wait_timer
from vigil_core.services.waits import resolve as resolve_wait


class RegisterWaitContext(UsesJobs, UsesWaits, UsesListing, UsesMessageQueues, UsesClock, UsesThreads, Protocol):
    """What this module uses of the outside world."""


MAX_SYNCHRONOUS_PAGES = 1
"""A wait of more pages than this is registered by the fan-out function: it would outlast the HTTP API's 30 s."""


def register_wait(ctx: RegisterWaitContext, namespace: str, request: WaitRequest, *, actor: str, wait_id: str) -> Wait:
    """Store a wait under this id, or find the one that an earlier try of the same request stored.

    Raises:
        JobNotFound: naming every job that does not exist, unless `allow_missing`.
        ValidationFailed: a stage that the job's order does not hold.
    """
    stored = ctx.waits.find(namespace, wait_id)
    if stored is None:
        jobs_by_id = _load_jobs(ctx, namespace, request)
        stored = _store(ctx, namespace, request, jobs_by_id, actor=actor, wait_id=wait_id)
    return stored if stored.registration_complete else _register_pages(ctx, stored)


def register_page(ctx: RegisterWaitContext, namespace: str, wait_id: str, page: int) -> Wait | None:
    """Write the entries of one page of a large wait and read its jobs after. Can be repeated; None when all is over."""
    wait = ctx.waits.find(namespace, wait_id)
    if wait is None or wait.ended:
        return None
    entries = ctx.waits.spec_page(wait, page)
    if entries is None:
        raise LookupError(f"page {page} of wait {wait_id} was never stored")
    if page not in wait.registered_pages:
        _write_page(ctx, wait, entries)
        wait = ctx.waits.mark_page_registered(wait, page)
    return wait and _finish_registration(ctx, wait)


def resume_registration(ctx: RegisterWaitContext, namespace: str, wait_id: str) -> None:
    """See to whatever a crash left of a registration, in whatever state; nothing when it is finished."""
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
    """What the jobs are now that the entries are written: an update before this may have had no entry to match, and
    one of a job for which nobody waited is kept from the matcher."""
    entry_list = list(entries)
    jobs_by_id = ctx.jobs.find_many(wait.namespace, (entry.job_id for entry in entry_list))
    decided = _outcomes(ctx, wait, entry_list, jobs_by_id)
    undecided_ids = {entry.job_id for entry in entry_list} - {outcome.job_id for outcome in decided}
    unmarked = [
        job for job_id in sorted(undecided_ids) if (job := jobs_by_id.get(job_id)) is not None and not job.has_waits
    ]
    if not unmarked:
        return decided
    marked_by_id = {job.job_id: job for job in ctx.in_parallel(ctx.jobs.mark_has_waits, unmarked) if job is not None}
    return [
        *decided,
        *_outcomes(ctx, wait, (entry for entry in entry_list if entry.job_id in marked_by_id), marked_by_id),
    ]


def _write_page(ctx: RegisterWaitContext, wait: Wait, entries: Sequence[WaitOnJob]) -> None:
    """Entries first, jobs after. An earlier try may have got anywhere: what it recorded is counted, not judged anew."""
    met, unmet = ctx.waits.counted_entries(wait)
    first_index, last_index = entries[0].index, entries[-1].index
    recorded = list(
        ctx.waits.outcomes(wait.namespace, wait.wait_id, after_index=first_index - 1, through_index=last_index)
    )
    recorded_indexes = met | unmet | {outcome.index for outcome in recorded}
    undecided = [entry for entry in entries if entry.index not in recorded_indexes]
    ctx.waits.put_entries(wait, undecided)
    decided = recheck_jobs(ctx, wait, undecided)
    resolve_wait.resolve(ctx, wait.namespace, wait.wait_id, [*recorded, *decided])
    ctx.waits.remove_entries(wait.namespace, [(o.job_id, wait.wait_id, o.index) for o in decided])


def _finish_registration(ctx: RegisterWaitContext, wait: Wait) -> Wait:
    """After its last page a large wait may be closed by counting, and if it is not, only expiry is left to come.

    The due row of the registration stays until that is done: a crash in between leaves the sweeper to do it again.
    """
    if not wait.registration_complete:
        return wait
    wait = resolve_wait.close_if_decided(ctx, wait)
    return wait if wait.ended else ctx.waits.index_expiry(wait) or wait


def _load_jobs(ctx: RegisterWaitContext, namespace: str, request: WaitRequest) -> Mapping[str, Job]:
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
        for job_id, asked in request.wait_on.items()
        if job_id in existing_ids and (stage := waits.parse_condition(asked).stage) is not None
        if not is_known(jobs_by_id[job_id].stages, stage)
    ]
    if problems:
        raise ValidationFailed(problems[:100])
    return jobs_by_id


def _store(
    ctx: RegisterWaitContext,
    namespace: str,
    request: WaitRequest,
    jobs_by_id: Mapping[str, Job],
    *,
    actor: str,
    wait_id: str,
) -> Wait:
    now = ctx.now()
    entries = tuple(
        WaitOnJob(
            index=index,
            job_id=job_id,
            raw_condition=asked,
            known_version=jobs_by_id[job_id].version if job_id in jobs_by_id else 0,
        )
        for index, (job_id, asked) in enumerate(request.wait_on.items())
    )
    inline = len(entries) <= waits.MAX_INLINE_WAIT_JOBS
    pages = -(-len(entries) // ctx.waits.spec_page_entries)
    draft = Wait(
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
        pages=0 if inline else pages,
    )
    ctx.listing.mark_day(namespace, "waits", now.date())
    if request.waited_jobs:
        ctx.waits.put_echo(draft, request.waited_jobs)
    if inline:
        return _store_inline(ctx, draft, entries, jobs_by_id)
    ctx.waits.put_spec(draft, entries)
    return _create_or_find(ctx, draft)


def _store_inline(
    ctx: RegisterWaitContext, draft: Wait, entries: tuple[WaitOnJob, ...], jobs_by_id: Mapping[str, Job]
) -> Wait:
    resolved = waits.with_outcomes(draft, _outcomes(ctx, draft, entries, jobs_by_id), now=ctx.now())
    if resolved.ended:
        return _create_or_find(ctx, resolved)
    ctx.waits.put_entries(draft, entries)
    wait = waits.with_outcomes(draft, recheck_jobs(ctx, draft, entries), now=ctx.now())
    wait = _create_or_find(ctx, wait)
    # The matcher may have met an entry before the wait's row was there: it left the outcome, and looked once more.
    early_outcomes = list(ctx.waits.outcomes(draft.namespace, draft.wait_id))
    if early_outcomes:
        wait = resolve_wait.resolve(ctx, draft.namespace, draft.wait_id, early_outcomes) or wait
    if wait.outcomes:
        decided = entries if wait.ended else [entry for entry in entries if entry.index in wait.outcomes]
        ctx.waits.remove_entries(draft.namespace, [(e.job_id, draft.wait_id, e.index) for e in decided])
    start_wait_timer(ctx, wait)
    return wait


def _create_or_find(ctx: RegisterWaitContext, wait: Wait) -> Wait:
    if ctx.waits.create(wait):
        return wait
    stored = ctx.waits.find(wait.namespace, wait.wait_id)
    return stored or wait


def _register_pages(ctx: RegisterWaitContext, wait: Wait) -> Wait:
    start_wait_timer(ctx, wait)
    if wait.pages > MAX_SYNCHRONOUS_PAGES:
        _enqueue_pages(ctx, wait)
        return wait
    for page in range(wait.pages):
        register_page(ctx, wait.namespace, wait.wait_id, page)
    return ctx.waits.find(wait.namespace, wait.wait_id) or wait


def _enqueue_pages(ctx: RegisterWaitContext, wait: Wait) -> None:
    sent_at = ctx.clock().isoformat()
    ctx.message_queues.send_fan_out(
        [
            FanOutMessage(
                group=f"{wait.wait_id}#{page}",
                body=dumps(
                    {
                        "kind": "register", "namespace": wait.namespace, "wait_id": wait.wait_id, "page": page,
                        "at": sent_at,
                    }
                ),
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
