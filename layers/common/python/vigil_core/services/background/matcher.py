"""The matcher: process changed jobs and runs from the table's stream.

For each changed job it resolves the waits on the job, informs its dependents, dispatches it, and advances its run. The
stream delivers a record at least once, sometimes late, and two processes may have the same record at once. Every step
can therefore be repeated.

Each step contains its permanent errors: the job fails, the run aborts, or the wait entry is unmet, with the name of the
error as the reason. What a step cannot end remains an error of its record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Protocol, TypeAlias, TypeVar

from vigil_core.domain.exact_json import JsonValue, ascii_size
from vigil_core.domain.jobs.dependencies import Dependent
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.waits import wait as waits
from vigil_core.domain.waits.wait import EntryOutcome, WaitEntry, is_newer_than
from vigil_core.runtime.failures import add_error, contain
from vigil_core.runtime.tracing import ids_of
from vigil_core.services.background.stream_consumer import RecordQueued
from vigil_core.services.context import DispatchesJobs, UsesBatches, UsesListing, UsesMessageQueues, UsesWaits
from vigil_core.services.executors.dispatch import dispatch, is_large_join
from vigil_core.services.expressions import ExpressionsDeferred, InlineExpressions
from vigil_core.services.fair_shares import fan_out_group
from vigil_core.services.jobs import batches
from vigil_core.services.jobs.dependencies import on_dependency_finished, register_with_dependencies
from vigil_core.services.jobs.unprocessable import fail_unprocessable
from vigil_core.services.locks import promote_next_waiter
from vigil_core.services.messages import MAX_MATCH_BYTES, CompleteJoin, Match, RegisterDependencies
from vigil_core.services.ports import FanOutMessage
from vigil_core.services.timers import start_job_timer
from vigil_core.services.waits.resolve import outcome_of, resolve
from vigil_core.services.workflows.advance import on_jobs_changed, on_run_changed
from vigil_core.services.workflows.commands import abort_unprocessable
from vigil_core.store.jobs.job_rows import job_from_row, job_to_row
from vigil_core.store.keys import parse_run
from vigil_core.store.stream import StreamRecord, job_version_of
from vigil_core.store.table import Row


class MatcherContext(DispatchesJobs, UsesBatches, UsesWaits, UsesListing, UsesMessageQueues, Protocol):
    """What dispatch uses, the stores of waits and batches, the listing index, and the message queues."""


T = TypeVar("T")

MAX_INLINE_WAITS = 200
"""The number of wait entries of a job that the matcher resolves itself. `fan_out` resolves more."""

JobKey: TypeAlias = tuple[str, str]
"""The namespace and the job id."""


@dataclass(frozen=True, kw_only=True)
class WaitMatch:
    """A wait entry, and the outcome that a version of its job decides."""

    namespace: str
    entry: WaitEntry
    outcome: EntryOutcome


@dataclass(frozen=True, kw_only=True)
class MatchResult:
    """The wait entries that versions of a job decide, and the dependents to inform about the end of the job."""

    wait_matches: list[WaitMatch]
    finished: list[tuple[Dependent, Job]]


class MatchFailed(Exception):
    """Signal that some jobs of a batch could not be matched. The others are matched, and all can be repeated."""

    def __init__(self, errors: Mapping[JobKey, Exception]) -> None:
        super().__init__(f"{len(errors)} jobs could not be matched; first error: {next(iter(errors.values()))!r}")
        self.errors = errors


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """A batch of stream records, classified."""

    run_changes: dict[str, tuple[Row, Row | None]] = field(default_factory=dict)
    """The new and the previous row of each changed run, by sequence number."""
    versions: dict[str, Job] = field(default_factory=dict)
    """All versions of jobs, by sequence number, in the order of the stream."""
    previous_versions: dict[str, Job | None] = field(default_factory=dict)
    failed: dict[str, Exception] = field(default_factory=dict)
    """The error of each record that must be delivered again, by sequence number."""

    @property
    def latest_numbers(self) -> dict[JobKey, str]:
        """The sequence number of the latest version of each job."""
        return {(job.namespace, job.job_id): number for number, job in self.versions.items()}

    @contextmanager
    def attribute_failure(self, sequence_number: str) -> Iterator[None]:
        """Attribute an error to one record: only this record is delivered again."""
        try:
            yield
        except Exception as error:
            add_error(self.failed, sequence_number, error)


def match_records(
    ctx: MatcherContext, records: Sequence[StreamRecord], *, is_retry: bool = False
) -> dict[str, Exception]:
    """Process a batch of stream records of jobs and runs.

    1. Each step processes the whole batch before the next one starts, and an error concerns one record only.
    2. Waits are resolved from every version of a job, because any version may meet a condition. All other steps depend
       on the current state of the job and use only its latest version in the batch.
    3. If the process crashes, the stream delivers the batch again, and every step is repeated.
    4. Conditions that need more CPU time than a namespace has in one batch are evaluated by `fan_out`.
    5. While records of a job are postponed, its later versions queue behind them: their error is `RecordQueued`. Only
       the waits need this order. All other steps use the current state of the job, in any order.

    Args:
        ctx: The collaborators.
        records: The records.
        is_retry: Whether these are the postponed records themselves, in their order.

    Returns:
        The error of each record that must be delivered again, by sequence number.
    """
    ctx = ctx.with_expressions(InlineExpressions())
    batch = _classify(records)
    _process_run_changes(ctx, batch)
    _start_job_timers(ctx, batch)
    _process_job_changes(ctx, batch)
    _advance_runs(ctx, batch)
    _match_waits_and_dependents(ctx, batch, is_retry=is_retry)
    return batch.failed


def _classify(records: Sequence[StreamRecord]) -> _Batch:
    """Sort the records into changed runs and versions of jobs. Other records are ignored."""
    batch = _Batch()
    for record in records:
        number = record.sequence_number
        with batch.attribute_failure(number):
            if (row := record.new()) is not None and row["entity"] == "run":
                batch.run_changes[number] = row, record.old()
            elif (version_pair := job_version_of(record)) is not None:
                batch.versions[number], batch.previous_versions[number] = version_pair
    return batch


def _start_job_timers(ctx: MatcherContext, batch: _Batch) -> None:
    """Start the timers that are new in a version.

    A timer that is lost or doubled does no harm: the due row decides.
    """
    for number, job in batch.versions.items():
        with batch.attribute_failure(number):
            contain(partial(start_job_timer, ctx, job, batch.previous_versions[number]), lambda _: None)


def _process_run_changes(ctx: MatcherContext, batch: _Batch) -> None:
    """Wake supervisors, and start the jobs of runs that have started or resumed."""
    for number, (row, previous_row) in batch.run_changes.items():
        with batch.attribute_failure(number):
            contain(
                partial(on_run_changed, ctx, row, previous_row),
                partial(abort_unprocessable, ctx, *parse_run(row["pk"])),
            )


def _process_job_changes(ctx: MatcherContext, batch: _Batch) -> None:
    """Dispatch, register and promote jobs, and advance batches: see `handle_job_change`."""

    def process(sequence_number: str) -> None:
        with batch.attribute_failure(sequence_number):
            handle_job_change(ctx, batch.versions[sequence_number])

    ctx.in_parallel(process, batch.latest_numbers.values())


def _advance_runs(ctx: MatcherContext, batch: _Batch) -> None:
    """Advance each run once, with the latest versions of all its changed jobs."""
    latest_numbers = batch.latest_numbers
    jobs_by_run = group_by_run(batch.versions[number] for number in latest_numbers.values())

    def advance(run_key: tuple[str, str]) -> None:
        try:
            contain(
                partial(on_jobs_changed, ctx, *run_key, jobs_by_run[run_key]),
                partial(abort_unprocessable, ctx, *run_key),
            )
        except Exception as error:
            for job in jobs_by_run[run_key]:
                add_error(batch.failed, latest_numbers[job.namespace, job.job_id], error)

    ctx.in_parallel(advance, jobs_by_run)


def _match_waits_and_dependents(ctx: MatcherContext, batch: _Batch, *, is_retry: bool) -> None:
    """Match all versions. If a job fails, all its versions in the batch are delivered again, in order."""
    try:
        match_versions(ctx, batch.versions.values(), is_retry=is_retry)
    except MatchFailed as failure:
        for number, job in batch.versions.items():
            if (error := failure.errors.get((job.namespace, job.job_id))) is not None:
                add_error(batch.failed, number, error)


def handle_job_change(ctx: MatcherContext, job: Job) -> None:
    """Apply what follows from the current state of a job, apart from its waits, dependents and run.

    A permanent error fails the job whose data causes it: the job itself, the first job of the mutex queue, or the
    batch of an item.
    """
    fail_job = partial(fail_unprocessable, ctx, job.namespace, job.job_id)
    if job.dispatchable and is_large_join(job):
        contain(partial(_enqueue_join, ctx, job), fail_job)
    elif job.dispatchable:
        contain(partial(dispatch, ctx, job.namespace, job.job_id, actor="matcher"), fail_job)
    if job.can_be_skipped and not job.workflow.in_run:
        try:
            contain(partial(register_with_dependencies, ctx, job), fail_job)
        except ExpressionsDeferred:
            contain(partial(_enqueue_registration, ctx, job), fail_job)
    if job.affects_mutex:
        mutex = str(job.mutex.key)
        contain(
            partial(promote_next_waiter, ctx, job.namespace, mutex, actor="matcher"),
            partial(_fail_first_queued, ctx, job.namespace, mutex),
        )
    if job.affects_batch and job.batch.is_batch:
        contain(partial(batches.on_batch_changed, ctx, job), fail_job)
    elif job.affects_batch:
        contain(
            partial(batches.on_item_ended, ctx, job),
            partial(fail_unprocessable, ctx, job.namespace, str(job.batch.batch_id)),
        )


def _fail_first_queued(ctx: MatcherContext, namespace: str, mutex: str, error: Exception) -> None:
    """Fail the first job of a mutex queue, which cannot be promoted. Its end promotes the next one."""
    first_entry = ctx.locks.first_queued(namespace, mutex)
    if first_entry is not None:
        fail_unprocessable(ctx, namespace, first_entry.job_id, error)


def group_by_run(versions: Iterable[Job]) -> dict[tuple[str, str], list[Job]]:
    """Group the versions that affect a run by the run's namespace and id."""
    jobs_by_run: dict[tuple[str, str], list[Job]] = {}
    for job in versions:
        if job.affects_run and job.workflow.workflow_id is not None:
            jobs_by_run.setdefault((job.namespace, job.workflow.workflow_id), []).append(job)
    return jobs_by_run


def match_versions(ctx: MatcherContext, versions: Iterable[Job], *, is_retry: bool = False) -> None:
    """Resolve the waits that these versions decide, inform the dependents, and purge deleted jobs.

    1. The outcomes are stored in the waits before the entries are removed, and dependents are informed before they are
       removed. If the process crashes in between, the repeated versions find the same entries and dependents.
    2. A deleted job is purged last. As long as anything before fails, its rows stay.

    Args:
        ctx: The stores of jobs and waits.
        versions: The versions of one or more jobs, those of one job in their order.
        is_retry: Whether the versions are those of postponed records, which need not queue.

    Raises:
        MatchFailed: The versions of some jobs must be delivered again.
    """
    versions_by_job: dict[JobKey, list[Job]] = {}
    for job in versions:
        versions_by_job.setdefault((job.namespace, job.job_id), []).append(job)
    errors: dict[JobKey, Exception] = {}
    results = _find_all_matches(ctx, versions_by_job, errors, is_retry=is_retry)
    _record_outcomes(ctx, [wait_match for result in results.values() for wait_match in result.wait_matches], errors)
    deferred: set[JobKey] = set()
    for result in results.values():
        deferred |= _notify_dependents(ctx, result.finished, errors)
    for key in [key for key in results if key in deferred and key not in errors]:
        _isolate(errors, [key], lambda job_versions=versions_by_job[key]: _enqueue_bulk_match(ctx, job_versions))  # type: ignore[misc]
    for key in [key for key in results if key not in errors and key not in deferred]:
        _isolate(errors, [key], lambda job_versions=versions_by_job[key]: _purge_deleted_job(ctx, job_versions))  # type: ignore[misc]
    if errors:
        raise MatchFailed(errors)


def match_bulk(ctx: MatcherContext, message: Match, *, has_time_left: Callable[[], bool]) -> bool:
    """Match versions of a job with very many waits and dependents, page by page.

    1. Each page is matched and removed before the next one is read. A message that is delivered again, after a crash or
       because the time was over, continues with what remains.
    2. The backlog mark is removed last: later versions of the job queue behind this message until then.

    Returns:
        False if the time was over before the last page, and the message must be delivered again.

    Raises:
        MatchFailed: Some waits or dependents must be matched again.
    """
    versions = [job_from_row(dict(row)) for row in message.unpack_rows()]
    namespace, job_id = versions[0].namespace, versions[0].job_id
    cursor = None
    while True:
        page = ctx.waits.entries_of_job(namespace, job_id, limit=MAX_INLINE_WAITS, cursor=cursor)
        errors: dict[JobKey, Exception] = {}
        _record_outcomes(ctx, _match_entries(ctx, page.entries, versions), errors)
        _notify_dependents(ctx, _match_dependents(page.dependents, versions), errors)
        if errors:
            raise MatchFailed(errors)
        if page.cursor is None:
            _purge_deleted_job(ctx, versions)
            ctx.waits.close_backlog(namespace, job_id, versions[-1].version)
            return True
        if not has_time_left():
            return False
        cursor = page.cursor


def _find_all_matches(
    ctx: MatcherContext,
    versions_by_job: Mapping[JobKey, Sequence[Job]],
    errors: dict[JobKey, Exception],
    *,
    is_retry: bool,
) -> dict[JobKey, MatchResult]:
    """Find the matches of each job, except those that fail and those that are left to `fan_out`."""

    def find(key: JobKey) -> MatchResult | None:
        return _isolate(errors, [key], lambda: _find_matches(ctx, versions_by_job[key], is_retry=is_retry))

    results = ctx.in_parallel(find, versions_by_job)
    return {key: result for key, result in zip(versions_by_job, results, strict=True) if result is not None}


def _find_matches(ctx: MatcherContext, versions: Sequence[Job], *, is_retry: bool) -> MatchResult | None:
    """Find the wait entries and dependents that these versions of a job decide, or None if `fan_out` does it.

    1. A registrar marks the job as having waits before it reads the job once more.
    2. A version without the mark is older than that read, so the registrar sees it, and the matcher can ignore it.

    Raises:
        RecordQueued: Records of earlier versions are postponed.
    """
    if not any(job.has_waits for job in versions):
        return MatchResult(wait_matches=[], finished=[])
    namespace, job_id = versions[0].namespace, versions[0].job_id
    page = ctx.waits.entries_of_job(namespace, job_id, limit=MAX_INLINE_WAITS + 1)
    if page.has_postponed and not is_retry:
        raise RecordQueued
    if page.has_backlog or page.cursor is not None:
        _enqueue_bulk_match(ctx, versions)
        return None
    return MatchResult(
        wait_matches=_match_entries(ctx, page.entries, versions), finished=_match_dependents(page.dependents, versions)
    )


def _match_entries(ctx: MatcherContext, entries: Iterable[WaitEntry], versions: Sequence[Job]) -> list[WaitMatch]:
    """Match each entry with the first of these versions that decides it."""
    wait_matches: list[WaitMatch] = []
    for entry in entries:
        for job in versions:
            outcome = _outcome_of(ctx, entry, job) if is_newer_than(entry, job) else None
            if outcome is not None:
                wait_matches.append(WaitMatch(namespace=job.namespace, entry=entry, outcome=outcome))
                break
    return wait_matches


def _outcome_of(ctx: MatcherContext, entry: WaitEntry, job: Job) -> EntryOutcome | None:
    """Return the outcome of an entry. It is unmet if the data prevents its evaluation."""
    return contain(partial(outcome_of, ctx, entry, job), lambda _: waits.unprocessable_entry(entry.wait_on_job, job))


def _match_dependents(dependents: Iterable[Dependent], versions: Sequence[Job]) -> list[tuple[Dependent, Job]]:
    """Match each dependent with the first of these versions that shows the end of the job."""
    finished: list[tuple[Dependent, Job]] = []
    for dependent in dependents:
        ended_versions = (job for job in versions if job.ended and job.version > dependent.known_version)
        finished += [(dependent, job) for job in islice(ended_versions, 1)]
    return finished


def _record_outcomes(ctx: MatcherContext, wait_matches: Sequence[WaitMatch], errors: dict[JobKey, Exception]) -> None:
    """Record the outcomes of each wait in one write, then remove the decided entries."""
    matches_by_wait: dict[tuple[str, str], list[WaitMatch]] = {}
    for wait_match in wait_matches:
        matches_by_wait.setdefault((wait_match.namespace, wait_match.entry.wait_id), []).append(wait_match)

    def record(wait_key: tuple[str, str]) -> None:
        group = matches_by_wait[wait_key]
        job_keys = [(wait_match.namespace, wait_match.outcome.job_id) for wait_match in group]
        _isolate(errors, job_keys, lambda: _record_wait_outcomes(ctx, *wait_key, group))

    ctx.in_parallel(record, matches_by_wait)


def _record_wait_outcomes(ctx: MatcherContext, namespace: str, wait_id: str, group: Sequence[WaitMatch]) -> None:
    """Record outcomes in one wait. An outcome that cannot be stored becomes unmet, and the others keep their values."""

    def record_alone(wait_match: WaitMatch) -> None:
        contain(
            partial(_store_outcomes, ctx, namespace, wait_id, [wait_match.outcome]),
            lambda _: _store_outcomes(ctx, namespace, wait_id, [_without_values(wait_match.outcome)]),
        )

    contain(
        partial(_store_outcomes, ctx, namespace, wait_id, [wait_match.outcome for wait_match in group]),
        lambda _: _for_each(record_alone, group),
    )


def _for_each(work: Callable[[T], object], items: Iterable[T]) -> None:
    for item in items:
        work(item)


def _without_values(outcome: EntryOutcome) -> EntryOutcome:
    return replace(outcome, status="unmet", values={}, reason="processing_failed")


def _store_outcomes(ctx: MatcherContext, namespace: str, wait_id: str, outcomes: Sequence[EntryOutcome]) -> None:
    """Store outcomes in one wait, then remove the entries that are no longer needed.

    The registrar stores an inline wait after its entries, so the matcher may find an entry without its wait:

    1. The matcher stores the outcomes as early outcomes, and then tries to resolve the wait once more.
    2. The registrar stores the wait, and then reads the early outcomes.
    3. Whichever writes last sees the other's write, so no outcome is lost.
    """
    wait = resolve(ctx, namespace, wait_id, outcomes)
    if wait is None:
        for outcome in outcomes:
            ctx.waits.put_early_outcome(namespace, wait_id, outcome, now=ctx.now())
        wait = resolve(ctx, namespace, wait_id, outcomes)
    entries_of_ended_wait = (
        [(entry.job_id, entry.index) for entry in wait.wait_on_jobs or ()] if wait is not None and wait.ended else []
    )
    entries_to_remove = {(outcome.job_id, outcome.index) for outcome in outcomes}.union(entries_of_ended_wait)
    ctx.waits.remove_entries(namespace, [(job_id, wait_id, index) for job_id, index in sorted(entries_to_remove)])


def _notify_dependents(
    ctx: MatcherContext, finished: Sequence[tuple[Dependent, Job]], errors: dict[JobKey, Exception]
) -> set[JobKey]:
    """Inform each dependent about the end of its dependency, then remove the dependent from the dependency.

    Returns:
        The dependencies that have dependents left, whose conditions `fan_out` must evaluate.
    """
    deferred: set[JobKey] = set()

    def notify(pair: tuple[Dependent, Job]) -> None:
        dependent, job = pair

        def work() -> None:
            try:
                contain(
                    partial(on_dependency_finished, ctx, dependent, job),
                    partial(fail_unprocessable, ctx, job.namespace, dependent.job_id),
                )
            except ExpressionsDeferred:
                deferred.add((job.namespace, job.job_id))
            else:
                ctx.dependencies.remove_dependent(job.namespace, job.job_id, dependent)

        _isolate(errors, [(job.namespace, job.job_id)], work)

    ctx.in_parallel(notify, finished)
    return deferred


def _enqueue_join(ctx: MatcherContext, job: Job) -> None:
    """Let `fan_out` complete a join. The sweeper dispatches it too, if the message is lost."""
    message = CompleteJoin(**ids_of(job), version=job.version)
    ctx.message_queues.send_fan_out(
        [FanOutMessage(group=fan_out_group(job.namespace, job.job_id), body=message.to_json())]
    )


def _enqueue_registration(ctx: MatcherContext, job: Job) -> None:
    """Let `fan_out` register a job with its dependencies. All steps of a registration can be repeated."""
    message = RegisterDependencies(**ids_of(job), sent_at=ctx.clock().isoformat())
    ctx.message_queues.send_fan_out(
        [FanOutMessage(group=fan_out_group(job.namespace, job.job_id), body=message.to_json())]
    )


def _purge_deleted_job(ctx: MatcherContext, versions: Sequence[Job]) -> None:
    """Remove the rows of a deleted job except its tombstone, after its last version has been matched."""
    if versions[-1].deleted:
        ctx.jobs.purge(versions[-1])


def _enqueue_bulk_match(ctx: MatcherContext, versions: Sequence[Job]) -> None:
    """Send these versions of a job to `fan_out`, in as many messages as their size requires.

    1. The backlog mark is written before the messages are sent. Later versions of the job find the mark and queue
       behind these messages, which have the same group, so versions are matched in order.
    2. If the process crashes after the mark, the stream delivers the versions again, and they are sent again.
    """
    first = versions[0]
    ctx.waits.open_backlog(first.namespace, first.job_id, versions[-1].version, now=ctx.now())
    for rows in _rows_by_message(versions):
        message = Match.of_rows(ids_of(first), ctx.clock().isoformat(), rows)
        group = fan_out_group(first.namespace, first.job_id)
        ctx.message_queues.send_fan_out([FanOutMessage(group=group, body=message.to_json())])


def _rows_by_message(versions: Iterable[Job]) -> Iterator[list[Mapping[str, JsonValue]]]:
    """Yield the rows of the versions, grouped into messages of at most `MAX_MATCH_BYTES`, at least one row each."""
    rows: list[Mapping[str, JsonValue]] = []
    size = 0
    for job in versions:
        row = {name: value for name, value in job_to_row(job).items() if value is not None}
        row_size = ascii_size(row)
        if rows and size + row_size > MAX_MATCH_BYTES:
            yield rows
            rows, size = [], 0
        rows.append(row)
        size += row_size
    if rows:
        yield rows


def _isolate(errors: dict[JobKey, Exception], job_keys: Iterable[JobKey], work: Callable[[], T]) -> T | None:
    """Do the work of one job or wait, and attribute an error to its jobs.

    The error does not stop the rest of the batch.
    """
    try:
        return work()
    except Exception as error:
        for key in job_keys:
            add_error(errors, key, error)
        return None
