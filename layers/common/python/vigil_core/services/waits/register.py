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

from vigil_core.domain.errors import FieldProblem, JobNotFound, ValidationFailed, pointer_token
from vigil_core.domain.exact_json import dumps
from vigil_core.domain.ids import is_uuid7
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.jobs.stages import is_known
from vigil_core.domain.waits import wait as waits
from vigil_core.domain.waits.request import WaitRequest
from vigil_core.domain.waits.wait import Outcome, Wait, WaitEntry, interest_of
from vigil_core.services.context import Context, WideWork
from vigil_core.services.timers import wake_for_expiry
from vigil_core.services.waits import resolve as resolve_wait

SYNCHRONOUS_PAGES = 1
"""A wait of more pages than this is registered by the fan-out function: it would outlast the HTTP API's 30 s."""


def register(ctx: Context, namespace: str, request: WaitRequest, *, by: str, wait_id: str) -> Wait:
    """Store a wait under this id, or find the one that an earlier try of the same request stored.

    Raises:
        JobNotFound: naming every job that does not exist, unless `allow_missing`.
        ValidationFailed: a stage that the job's order does not hold.
    """
    stored = ctx.waits.find(namespace, wait_id)
    if stored is None:
        known = _first_look(ctx, namespace, request)
        stored = _store(ctx, namespace, request, known, by=by, wait_id=wait_id)
    return stored if stored.sealed else _register_pages(ctx, stored)


def register_page(ctx: Context, namespace: str, wait_id: str, page: int) -> Wait | None:
    """Write the entries of one page of a large wait and read its jobs after. Can be repeated; None when all is over."""
    wait = ctx.waits.find(namespace, wait_id)
    if wait is None or wait.ended:
        return None
    entries = ctx.waits.spec_page(wait, page)
    if entries is None:
        raise LookupError(f"page {page} of wait {wait_id} was never stored")
    if page not in wait.pages_done:
        _write_page(ctx, wait, entries)
        wait = ctx.waits.page_registered(wait, page)
    return wait and _finish(ctx, wait)


def resume_registration(ctx: Context, namespace: str, wait_id: str) -> None:
    """See to whatever a crash left of a registration, in whatever state; nothing when it is finished."""
    wait = ctx.waits.find(namespace, wait_id)
    if wait is not None and not wait.ended:
        if wait.expires_at <= ctx.now():
            resolve_wait.expire(ctx, namespace, wait_id)
        elif not wait.sealed:
            _hand_to_fan_out(ctx, wait)
            return
        elif wait.inline:
            resolve_wait.resolve(ctx, namespace, wait_id, list(ctx.waits.outcomes(namespace, wait_id)))
        else:
            _finish(ctx, wait)
    ctx.waits.settle_early_outcomes(namespace, wait_id)


def second_look(ctx: Context, wait: Wait, entries: Iterable[WaitEntry]) -> list[Outcome]:
    """What the jobs are now that the entries are written: an update before this may have had no entry to match, and
    one of a job for which nobody waited is kept from the matcher."""
    wanted = list(entries)
    now = ctx.jobs.find_many(wait.namespace, (entry.job_id for entry in wanted))
    decided = _outcomes(ctx, wait, wanted, now)
    open_jobs = {entry.job_id for entry in wanted} - {outcome.job_id for outcome in decided}
    unmarked = [job for job_id in sorted(open_jobs) if (job := now.get(job_id)) is not None and not job.awaited]
    if not unmarked:
        return decided
    marked = {job.job_id: job for job in ctx.in_parallel(ctx.jobs.mark_awaited, unmarked) if job is not None}
    return [*decided, *_outcomes(ctx, wait, (entry for entry in wanted if entry.job_id in marked), marked)]


def _write_page(ctx: Context, wait: Wait, entries: Sequence[WaitEntry]) -> None:
    """Entries first, jobs after. An earlier try may have got anywhere: what it recorded is counted, not judged anew."""
    met, unmet = ctx.waits.counted(wait)
    first, last = entries[0].index, entries[-1].index
    recorded = list(ctx.waits.outcomes(wait.namespace, wait.wait_id, after_index=first - 1, through_index=last))
    done = met | unmet | {outcome.index for outcome in recorded}
    undecided = [entry for entry in entries if entry.index not in done]
    ctx.waits.put_entries(wait, undecided)
    decided = second_look(ctx, wait, undecided)
    resolve_wait.resolve(ctx, wait.namespace, wait.wait_id, [*recorded, *decided])
    ctx.waits.remove_entries(wait.namespace, [(o.job_id, wait.wait_id, o.index) for o in decided])


def _finish(ctx: Context, wait: Wait) -> Wait:
    """After its last page a large wait may be closed by counting, and if it is not, only expiry is left to come.

    The due row of the registration stays until that is done: a crash in between leaves the sweeper to do it again.
    """
    if not wait.sealed:
        return wait
    wait = resolve_wait.close_if_decided(ctx, wait)
    return wait if wait.ended else ctx.waits.watch_expiry(wait) or wait


def _first_look(ctx: Context, namespace: str, request: WaitRequest) -> Mapping[str, Job]:
    known = ctx.jobs.find_many(namespace, filter(is_uuid7, request.wait_on))
    there = {job_id for job_id, job in known.items() if not job.deleted}
    unknown = [
        job_id
        for job_id in request.wait_on
        if job_id not in there and not (request.options.allow_missing and is_uuid7(job_id))
    ]
    if unknown:
        raise JobNotFound(*unknown)
    problems = [
        FieldProblem(
            pointer=f"/wait_on/{pointer_token(job_id)}/job_stage",
            detail=f"unknown stage {stage!r}; this job's stages are {', '.join(known[job_id].stages)}",
        )
        for job_id, asked in request.wait_on.items()
        if job_id in there and (stage := waits.parse_condition(asked).stage) is not None
        if not is_known(known[job_id].stages, stage)
    ]
    if problems:
        raise ValidationFailed(problems[:100])
    return known


def _store(
    ctx: Context, namespace: str, request: WaitRequest, known: Mapping[str, Job], *, by: str, wait_id: str
) -> Wait:
    now = ctx.now()
    entries = tuple(
        WaitEntry(
            index=index, job_id=job_id, asked=asked, known_version=known[job_id].version if job_id in known else 0
        )
        for index, (job_id, asked) in enumerate(request.wait_on.items())
    )
    inline = len(entries) <= waits.INLINE_ENTRIES
    pages = -(-len(entries) // ctx.waits.spec_page_entries)
    draft = Wait(
        namespace=namespace,
        wait_id=wait_id,
        status="waiting",
        options=request.options,
        options_echo=dumps(request.options_echo),
        total=len(entries),
        by=by,
        created_at=now,
        expires_at=now + timedelta(seconds=request.expires_in_s),
        has_echo=bool(request.echo),
        entries=entries if inline else None,
        pages=0 if inline else pages,
    )
    ctx.listing.note_day(namespace, "waits", now.date())
    if request.echo:
        ctx.waits.put_echo(draft, request.echo)
    if inline:
        return _store_inline(ctx, draft, entries, known)
    ctx.waits.put_spec(draft, entries)
    return _stored_or_found(ctx, draft)


def _store_inline(ctx: Context, draft: Wait, entries: tuple[WaitEntry, ...], known: Mapping[str, Job]) -> Wait:
    at_once = waits.with_outcomes(draft, _outcomes(ctx, draft, entries, known), now=ctx.now())
    if at_once.ended:
        return _stored_or_found(ctx, at_once)
    ctx.waits.put_entries(draft, entries)
    wait = waits.with_outcomes(draft, second_look(ctx, draft, entries), now=ctx.now())
    wait = _stored_or_found(ctx, wait)
    # The matcher may have met an entry before the wait's row was there: it left the outcome, and looked once more.
    early = list(ctx.waits.outcomes(draft.namespace, draft.wait_id))
    if early:
        wait = resolve_wait.resolve(ctx, draft.namespace, draft.wait_id, early) or wait
    if wait.outcomes:
        decided = entries if wait.ended else [entry for entry in entries if entry.index in wait.outcomes]
        ctx.waits.remove_entries(draft.namespace, [(e.job_id, draft.wait_id, e.index) for e in decided])
    wake_for_expiry(ctx, wait)
    return wait


def _stored_or_found(ctx: Context, wait: Wait) -> Wait:
    if ctx.waits.create(wait):
        return wait
    found = ctx.waits.find(wait.namespace, wait.wait_id)
    return found or wait


def _register_pages(ctx: Context, wait: Wait) -> Wait:
    wake_for_expiry(ctx, wait)
    if wait.pages > SYNCHRONOUS_PAGES:
        _hand_to_fan_out(ctx, wait)
        return wait
    for page in range(wait.pages):
        register_page(ctx, wait.namespace, wait.wait_id, page)
    return ctx.waits.find(wait.namespace, wait.wait_id) or wait


def _hand_to_fan_out(ctx: Context, wait: Wait) -> None:
    at = ctx.clock().isoformat()
    ctx.queues.wide_work(
        [
            WideWork(
                group=f"{wait.wait_id}#{page}",
                body=dumps(
                    {
                        "kind": "register", "namespace": wait.namespace, "wait_id": wait.wait_id, "page": page,
                        "at": at,
                    }
                ),
            )
            for page in range(wait.pages)
            if page not in wait.pages_done
        ]
    )  # fmt: skip


def _outcomes(ctx: Context, wait: Wait, entries: Iterable[WaitEntry], known: Mapping[str, Job]) -> list[Outcome]:
    found = (
        resolve_wait.outcome_of(ctx, interest_of(wait, entry), known[entry.job_id])
        for entry in entries
        if entry.job_id in known
    )
    return [outcome for outcome in found if outcome is not None]
