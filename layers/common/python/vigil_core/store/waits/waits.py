"""Waits in the table.

A wait has its own row and one entry row under each of its jobs. A large wait also has rows for its packed entries
(`spec`), for the counts of each block of 64 entries, and for each outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from vigil_core.domain.exact_json import JsonValue
from vigil_core.domain.jobs.dependencies import Dependent
from vigil_core.domain.jobs.retention import DEFAULT_RETENTION
from vigil_core.domain.timestamps import to_epoch_s, to_text
from vigil_core.domain.waits.request import MAX_EXPIRES_S
from vigil_core.domain.waits.wait import (
    MAX_WAIT_JOBS,
    REGISTRATION_GRACE,
    EntryOutcome,
    Wait,
    WaitEntry,
    WaitOnJob,
    WaitStatus,
)
from vigil_core.store import keys
from vigil_core.store.jobs.dependencies import dependent_from_row
from vigil_core.store.table import (
    ABSENT,
    ConditionFailed,
    Delete,
    Put,
    Row,
    Table,
    Update,
    WriteCondition,
    query_all,
    version_is,
)
from vigil_core.store.waits.wait_rows import (
    entries_from_json,
    entries_to_json,
    entry_from_row,
    entry_to_row,
    has_large_values,
    outcome_from_row,
    outcome_to_row,
    pack,
    row_head,
    to_bitmap,
    unpack,
    wait_from_row,
    wait_to_row,
)

SPEC_PAGE_ENTRIES = 1_000
MAX_WAIT_DURATION = timedelta(seconds=MAX_EXPIRES_S)
OPEN = WriteCondition(expression="#status = :waiting", names={"#status": "status"}, values={":waiting": "waiting"})
BACKLOG_TTL = timedelta(days=15)
"""Longer than the retention of SQS (14 days). A backlog mark without a message must not stay forever."""
THROUGH_NAMES = {"#through": "through"}


@dataclass(frozen=True, kw_only=True)
class WaitEntryPage:
    """One page of the wait entries and the dependents of a job.

    `has_backlog` means that the fan-out function still matches earlier versions of the job, `has_postponed` that
    records of earlier versions are postponed.
    """

    entries: list[WaitEntry]
    dependents: list[Dependent]
    has_backlog: bool
    has_postponed: bool
    cursor: Row | None


class WaitStore:
    """Read and write waits. Reads do not return rows whose TTL has passed.

    A wait is kept for `retention` after its end. Its side rows are kept for `retention` after the time at which it
    expires. `vigil_core.domain.waits.wait` contains the decisions.
    """

    def __init__(
        self,
        table: Table,
        *,
        now: Callable[[], datetime],
        retention: timedelta = DEFAULT_RETENTION,
        spec_page_entries: int = SPEC_PAGE_ENTRIES,
    ) -> None:
        self._table = table
        self._now = now
        self._retention = retention
        self.spec_page_entries = spec_page_entries

    # The wait's own row

    def find(self, namespace: str, wait_id: str) -> Wait | None:
        """Return the wait by a consistent read, or None."""
        row = self._table.get(keys.wait(namespace, wait_id))
        return None if row is None or self._has_expired(row) else wait_from_row(row)

    def find_many(self, namespace: str, wait_ids: Iterable[str]) -> dict[str, Wait]:
        """Return the existing waits by id."""
        rows = self._table.batch_get([keys.wait(namespace, wait_id) for wait_id in wait_ids])
        live_rows = [row for row in rows.values() if not self._has_expired(row)]
        return {wait.wait_id: wait for wait in map(wait_from_row, live_rows)}

    def create(self, wait: Wait) -> bool:
        """Store a new wait. Return False if another wait has this id."""
        self._put_large_values(wait, wait.outcomes.values())
        try:
            self._table.put(Put(row=wait_to_row(wait, self._retention), condition=ABSENT))
        except ConditionFailed as error:
            # The SDK repeats a request whose answer was lost. The row can therefore be its own first write.
            return error.old is not None and wait_from_row(error.old) == wait
        return True

    def save(self, before: Wait, after: Wait) -> None:
        """Store the inline wait that follows `before`.

        Raises:
            ConditionFailed: The stored wait is no longer `before`.
        """
        self._put_large_values(
            after, (outcome for outcome in after.outcomes.values() if outcome.index not in before.outcomes)
        )
        self._table.put(Put(row=wait_to_row(after, self._retention), condition=version_is(before.version)))

    def _put_large_values(self, wait: Wait, outcomes: Iterable[EntryOutcome]) -> None:
        """Store large captured values before the row of the inline wait that refers to them."""
        for outcome in filter(has_large_values, outcomes):
            self.put_outcome(wait, outcome)

    # Entries: the waits on a job

    def put_entries(self, wait: Wait, entries: Iterable[WaitOnJob]) -> None:
        """Store entries, 25 in each request. The call is idempotent."""
        self._table.batch_write(puts=[entry_to_row(wait, entry) | {"ttl": self._ttl(wait)} for entry in entries])

    def entries_of_job(self, namespace: str, job_id: str, *, limit: int, cursor: Row | None = None) -> WaitEntryPage:
        """Return one page of the entries and dependents of a job by a consistent read, with the next cursor."""
        page = self._table.query_page(keys.entries_of_job(namespace, job_id), limit=limit, cursor=cursor)
        return WaitEntryPage(
            entries=[entry_from_row(row, job_id) for row in page.rows if row["entity"] == "entry"],
            dependents=[dependent_from_row(row) for row in page.rows if row["entity"] == "dependent"],
            has_backlog=any(row["entity"] == "backlog" for row in page.rows),
            has_postponed=any(row["entity"] == "postponed_record" for row in page.rows),
            cursor=page.cursor,
        )

    def open_backlog(self, namespace: str, job_id: str, through_version: int, *, now: datetime) -> None:
        """Mark that the fan-out function matches versions up to this one. Later versions queue behind it."""
        key = keys.backlog(namespace, job_id)
        is_newer = WriteCondition(
            expression=f"{ABSENT.expression} OR #through < :new", names=THROUGH_NAMES, values={":new": through_version}
        )
        with suppress(ConditionFailed):
            row = {**row_head(key, "backlog"), "through": through_version, "ttl": to_epoch_s(now + BACKLOG_TTL)}
            self._table.put(Put(row=row, condition=is_newer))

    def close_backlog(self, namespace: str, job_id: str, through_version: int) -> None:
        """Remove the backlog mark after all versions up to this one are matched, unless a later version was added."""
        is_current = WriteCondition(
            expression="#through = :done", names=THROUGH_NAMES, values={":done": through_version}
        )
        with suppress(ConditionFailed):
            self._table.delete(Delete(key=keys.backlog(namespace, job_id), condition=is_current))

    def remove_entries(self, namespace: str, entries: Iterable[tuple[str, str, int]]) -> None:
        """Delete entries, each given as (job id, wait id, index)."""
        self._table.batch_write(
            deletes=[keys.entry(namespace, job_id, wait_id, index) for job_id, wait_id, index in entries]
        )

    # Outcomes in rows of their own

    def put_outcome(self, wait: Wait, outcome: EntryOutcome) -> EntryOutcome:
        """Store an outcome unless the entry has one. Return the stored outcome."""
        return self._put_outcome(wait.namespace, wait.wait_id, outcome, self._ttl(wait))

    def put_early_outcome(self, namespace: str, wait_id: str, outcome: EntryOutcome, *, now: datetime) -> None:
        """Store an outcome of a wait whose own row does not exist yet.

        The registrar reads it after it has stored the row. If the registrar crashes before, the sweeper reads it.
        """
        g1pk, g1sk = keys.due(now + REGISTRATION_GRACE, "wait_registration", namespace, wait_id)
        due = {"g1pk": g1pk, "g1sk": g1sk}
        self._put_outcome(namespace, wait_id, outcome, to_epoch_s(now + MAX_WAIT_DURATION + self._retention), due)

    def clear_early_outcomes(self, namespace: str, wait_id: str) -> None:
        """Remove processed early outcomes from the due index."""
        pk = keys.wait(namespace, wait_id).pk
        for row in query_all(self._table, pk, begins="M#"):
            if "g1pk" in row:
                self._table.update(Update(key=keys.Key(pk, row["sk"]), expression="REMOVE g1pk, g1sk"))

    def outcomes(
        self,
        namespace: str,
        wait_id: str,
        *,
        after_index: int = -1,
        through_index: int = MAX_WAIT_JOBS,
        limit: int | None = None,
    ) -> Iterator[EntryOutcome]:
        """Yield the outcomes that have rows of their own, by index from after `after_index` through `through_index`."""
        pk = keys.wait(namespace, wait_id).pk
        first, last = (keys.wait_outcome(namespace, wait_id, index).sk for index in (after_index + 1, through_index))
        for row in query_all(self._table, pk, between=(first, last), limit=limit):
            yield outcome_from_row(row)

    def outcomes_at(self, namespace: str, wait_id: str, indexes: Iterable[int]) -> dict[int, EntryOutcome]:
        """Return the outcomes of these entries that have rows of their own, by index."""
        rows = self._table.batch_get([keys.wait_outcome(namespace, wait_id, index) for index in indexes])
        return {outcome.index: outcome for outcome in map(outcome_from_row, rows.values())}

    def _put_outcome(
        self, namespace: str, wait_id: str, outcome: EntryOutcome, ttl: int, due: Mapping[str, str] | None = None
    ) -> EntryOutcome:
        key = keys.wait_outcome(namespace, wait_id, outcome.index)
        try:
            self._table.put(Put(row={**outcome_to_row(key, outcome, ttl), **(due or {})}, condition=ABSENT))
        except ConditionFailed as error:
            existing = error.old or self._table.get(key)
            if existing is None:
                raise
            return outcome_from_row(existing)
        return outcome

    # Large waits: packed entries, registration, counts by block, closing

    def put_spec(self, wait: Wait, entries: Sequence[WaitOnJob]) -> None:
        """Store the packed entries of a large wait, page by page. The call is idempotent."""
        for page in range(wait.pages):
            start = page * self.spec_page_entries
            page_entries = entries_to_json(entries[start : start + self.spec_page_entries])
            key = keys.wait_spec(wait.namespace, wait.wait_id, page)
            row = {**row_head(key, "wait_spec"), "spec": pack(page_entries), "ttl": self._ttl(wait)}
            self._table.put(Put(row=row))

    def spec_page(self, wait: Wait, page: int) -> list[WaitOnJob] | None:
        """Return the entries of one page, or None if the page was never stored."""
        row = self._table.get(keys.wait_spec(wait.namespace, wait.wait_id, page))
        if row is None:
            return None
        return entries_from_json(unpack(row["spec"]), first_index=page * self.spec_page_entries)

    def mark_page_registered(self, wait: Wait, page: int) -> Wait | None:
        """Mark that a page's entries are written and its jobs were read again. Return None if the wait has ended."""
        return self._update_open(Update(
            key=keys.wait(wait.namespace, wait.wait_id),
            expression="ADD registered_pages :page", values={":page": {page}},
        ))  # fmt: skip

    def index_expiry(self, wait: Wait) -> Wait | None:
        """Replace the due entry of the registration by that of the expiry. Return None if the wait has ended."""
        g1pk, g1sk = keys.due(wait.expires_at, "wait_expiry", wait.namespace, wait.wait_id)
        return self._update_open(
            Update(
                key=keys.wait(wait.namespace, wait.wait_id),
                expression="SET g1pk = :g1pk, g1sk = :g1sk",
                values={":g1pk": g1pk, ":g1sk": g1sk},
            )
        )

    def count_outcomes(self, wait: Wait, block: int, outcomes: Iterable[EntryOutcome]) -> tuple[int, int]:
        """Add outcomes to the grow-only sets of their block. Return the sizes of both sets as (met, unmet)."""
        met = {outcome.index for outcome in outcomes if outcome.status != "unmet"}
        unmet = {outcome.index for outcome in outcomes if outcome.status == "unmet"}
        additions = [f"{name} :{name}" for name, indexes in (("met", met), ("unmet", unmet)) if indexes]
        row = self._table.update(
            Update(
                key=keys.wait_block(wait.namespace, wait.wait_id, block),
                expression=f"ADD {', '.join(additions)} SET entity = :entity, schema_version = :one, #ttl = :ttl",
                names={"#ttl": "ttl"},
                values={
                    ":entity": "wait_block",
                    ":one": 1,
                    ":ttl": self._ttl(wait),
                    **({":met": met} if met else {}),
                    **({":unmet": unmet} if unmet else {}),
                },
            )
        )
        return len(row.get("met", ())), len(row.get("unmet", ()))

    def update_counts(self, wait: Wait, block: int, met: int, unmet: int) -> Wait | None:
        """Store the counts of a block in the wait's row.

        The sets of a block only grow. Of two counts of the same block, one is therefore at least the other in both
        parts, and the larger one wins.

        Returns:
            None if the wait has ended or has larger counts.
        """
        is_newer = (
            "(attribute_not_exists(met_counts.#block) OR (met_counts.#block <= :met AND unmet_counts.#block <= :unmet))"
        )
        return self._update_open(Update(
            key=keys.wait(wait.namespace, wait.wait_id),
            expression="SET met_counts.#block = :met, unmet_counts.#block = :unmet",
            names={"#block": str(block)}, values={":met": met, ":unmet": unmet},
        ), extra_condition=is_newer)  # fmt: skip

    def counted_entries(self, wait: Wait) -> tuple[frozenset[int], frozenset[int]]:
        """Return the indexes of the met and the unmet entries of all blocks."""
        met: set[int] = set()
        unmet: set[int] = set()
        pk = keys.wait(wait.namespace, wait.wait_id).pk
        for row in query_all(self._table, pk, begins="C#"):
            met |= row.get("met", set())
            unmet |= row.get("unmet", set())
        return frozenset(met), frozenset(unmet)

    def close_large(
        self, wait: Wait, status: WaitStatus, *, now: datetime, extra_met: Iterable[int] = ()
    ) -> Wait | None:
        """Close a large wait with the entries that are counted at this moment. Return None if it has ended.

        `extra_met` are the entries that closed it by failing. The answer shows them, although they were never counted.
        """
        met, unmet = self.counted_entries(wait)
        failed = set(extra_met) - met
        return self._update_open(Update(
            key=keys.wait(wait.namespace, wait.wait_id),
            expression=(
                "SET #status = :status, ended_at = :now, final_met = :met, final_unmet = :unmet, "
                "version = version + :one, #ttl = :ttl, final_failed = :failed REMOVE g1pk, g1sk"
            ),
            names={"#status": "status", "#ttl": "ttl"},
            values={
                ":status": status, ":now": to_text(now), ":one": 1, ":ttl": to_epoch_s(now + self._retention),
                ":met": to_bitmap({*met, *failed}, wait.total), ":failed": len(failed),
                ":unmet": to_bitmap(unmet, wait.total),
            },
        ))  # fmt: skip

    def _has_expired(self, row: Row) -> bool:
        return int(row["ttl"]) <= to_epoch_s(self._now())

    def _ttl(self, wait: Wait) -> int:
        """Return the TTL of the side rows."""
        return to_epoch_s(wait.expires_at + self._retention)

    def _update_open(self, update: Update, extra_condition: str | None = None) -> Wait | None:
        condition = WriteCondition(
            expression=f"{OPEN.expression} AND {extra_condition}" if extra_condition else OPEN.expression,
            names=OPEN.names,
            values=OPEN.values,
        )
        try:
            row = self._table.update(
                Update(
                    key=update.key,
                    expression=update.expression,
                    names=update.names,
                    values=update.values,
                    condition=condition,
                )
            )
        except ConditionFailed:
            return None
        return wait_from_row(row)

    # The earlier answer

    def put_earlier_answer(self, wait: Wait, waited_jobs: Mapping[str, JsonValue]) -> None:
        """Store the `waited_jobs` of an earlier answer. The wait that refers to them is written after this."""
        key = keys.wait_earlier_answer(wait.namespace, wait.wait_id)
        row = {**row_head(key, "wait_earlier_answer"), "waited_jobs": pack(waited_jobs), "ttl": self._ttl(wait)}
        self._table.put(Put(row=row))

    def earlier_answer(self, wait: Wait) -> Mapping[str, JsonValue]:
        """Return the `waited_jobs` of an earlier answer, unchanged."""
        if not wait.has_waited_jobs:
            return {}
        row = self._table.get(keys.wait_earlier_answer(wait.namespace, wait.wait_id))
        return dict(unpack(row["waited_jobs"])) if row else {}
