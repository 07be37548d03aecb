"""Waits in the table: the wait's own row, its entries under the jobs it waits for, and for large waits spec, chunks and
outcomes in rows of their own."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from vigil_core.domain.exact_json import JsonValue, dumps, loads
from vigil_core.domain.jobs.dependencies import Dependent
from vigil_core.domain.jobs.retention import DEFAULT_RETENTION
from vigil_core.domain.timestamps import from_text, to_epoch_s, to_text
from vigil_core.domain.waits.request import MAX_EXPIRES_S
from vigil_core.domain.waits.wait import (
    MAX_WAIT_JOBS,
    REGISTRATION_GRACE,
    EntryOutcome,
    Wait,
    WaitEntry,
    WaitOnJob,
    WaitOptions,
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

SPEC_PAGE_ENTRIES = 1_000
MAX_INLINE_VALUES_BYTES = 4 * 1024
"""Captured values over this size get a row of their own even in a small wait: the wait's row is written often."""
MAX_VALUES_BYTES = 360 * 1024
"""What one outcome row can hold (DynamoDB: 400 KB). Longer values are cut, the longest first."""
MAX_WAIT_DURATION = timedelta(seconds=MAX_EXPIRES_S)
OPEN = WriteCondition(expression="#status = :waiting", names={"#status": "status"}, values={":waiting": "waiting"})


BACKLOG_TTL = timedelta(days=15)
"""Longer than SQS keeps a message (14 days): a mark whose message was never sent must not stay for ever."""
THROUGH_NAMES = {"#through": "through"}


@dataclass(frozen=True, kw_only=True)
class WaitEntryPage:
    """Some of the interests in a job, and of the jobs that depend on it. `backlog`: earlier versions of the job are
    still being matched by the fan-out function."""

    entries: list[WaitEntry]
    dependents: list[Dependent]
    has_backlog: bool
    cursor: Row | None


class WaitStore:
    """Reads and writes waits. Decisions come from `vigil_core.domain.waits.wait`. What has expired is not found.

    A wait is kept for `retention` after its end. The rows beside its own are kept so long after the time at which it
    would have ended at the latest.
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
        """The wait, consistently."""
        row = self._table.get(keys.wait(namespace, wait_id))
        return None if row is None or self._has_expired(row) else wait_from_row(row)

    def find_many(self, namespace: str, wait_ids: Iterable[str]) -> dict[str, Wait]:
        """The waits that exist, by id."""
        rows = self._table.batch_get([keys.wait(namespace, wait_id) for wait_id in wait_ids])
        live_rows = [row for row in rows.values() if not self._has_expired(row)]
        return {wait.wait_id: wait for wait in map(wait_from_row, live_rows)}

    def create(self, wait: Wait) -> bool:
        """Store a new wait; False when another one with this id is there already."""
        self._put_large_values(wait, wait.outcomes.values())
        try:
            self._table.put(Put(row=wait_to_row(wait, self._retention), condition=ABSENT))
        except ConditionFailed as error:
            # The SDK repeats a request whose answer was lost, and then meets what it wrote itself.
            return error.old is not None and wait_from_row(error.old) == wait
        return True

    def save(self, before: Wait, after: Wait) -> None:
        """Store the inline wait that follows `before`. Raises ConditionFailed when it has moved on since."""
        self._put_large_values(after, (o for o in after.outcomes.values() if o.index not in before.outcomes))
        self._table.put(Put(row=wait_to_row(after, self._retention), condition=version_is(before.version)))

    def _put_large_values(self, wait: Wait, outcomes: Iterable[EntryOutcome]) -> None:
        """Bulk first: what the row of an inline wait only points to."""
        for outcome in filter(_is_large, outcomes):
            self.put_outcome(wait, outcome)

    # Entries: who waits for a job

    def put_entries(self, wait: Wait, entries: Iterable[WaitOnJob]) -> None:
        """Store interests in jobs, twenty-five a request. Can be repeated."""
        self._table.batch_write(puts=[_entry_row(wait, entry) | {"ttl": self._ttl(wait)} for entry in entries])

    def entries_of_job(self, namespace: str, job_id: str, *, limit: int, cursor: Row | None = None) -> WaitEntryPage:
        """One page of the interests in a job, consistently, and where the next page begins."""
        page = self._table.query_page(keys.entries_of_job(namespace, job_id), limit=limit, cursor=cursor)
        return WaitEntryPage(
            entries=[_wait_entry(row, job_id) for row in page.rows if row["entity"] == "entry"],
            dependents=[dependent_from_row(row) for row in page.rows if row["entity"] == "dependent"],
            has_backlog=any(row["entity"] == "backlog" for row in page.rows),
            cursor=page.cursor,
        )

    def open_backlog(self, namespace: str, job_id: str, through_version: int, *, now: datetime) -> None:
        """Say that versions of a job, up to this one, are matched by `fan_out`: whatever follows must queue up too."""
        key = keys.backlog(namespace, job_id)
        is_newer = WriteCondition(
            expression=f"{ABSENT.expression} OR #through < :new", names=THROUGH_NAMES, values={":new": through_version}
        )
        with suppress(ConditionFailed):
            row = {**_head(key, "backlog"), "through": through_version, "ttl": to_epoch_s(now + BACKLOG_TTL)}
            self._table.put(Put(row=row, condition=is_newer))

    def close_backlog(self, namespace: str, job_id: str, through_version: int) -> None:
        """Everything up to this version is matched; the backlog stays when more was added since."""
        is_current = WriteCondition(
            expression="#through = :done", names=THROUGH_NAMES, values={":done": through_version}
        )
        with suppress(ConditionFailed):
            self._table.delete(Delete(key=keys.backlog(namespace, job_id), condition=is_current))

    def remove_entries(self, namespace: str, entries: Iterable[tuple[str, str, int]]) -> None:
        """Forget interests, each (job id, wait id, index)."""
        self._table.batch_write(
            deletes=[keys.entry(namespace, job_id, wait_id, index) for job_id, wait_id, index in entries]
        )

    # Outcomes in rows of their own

    def put_outcome(self, wait: Wait, outcome: EntryOutcome) -> EntryOutcome:
        """Record an outcome unless the entry has one; returns the one that stands."""
        return self._put_outcome(wait.namespace, wait.wait_id, outcome, self._ttl(wait))

    def put_early_outcome(self, namespace: str, wait_id: str, outcome: EntryOutcome, *, now: datetime) -> None:
        """Record an outcome of a wait whose own row is not there yet: its registrar looks for it after storing it, and
        should the registrar die in between, the sweeper does."""
        g1pk, g1sk = keys.due(now + REGISTRATION_GRACE, "wait_registration", namespace, wait_id)
        due = {"g1pk": g1pk, "g1sk": g1sk}
        self._put_outcome(namespace, wait_id, outcome, to_epoch_s(now + MAX_WAIT_DURATION + self._retention), due)

    def clear_early_outcomes(self, namespace: str, wait_id: str) -> None:
        """Take outcomes that came early, and are looked after by now, off the sweeper's list."""
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
        """Outcomes in rows of their own, in order of index, those after `after_index` through `through_index`."""
        pk = keys.wait(namespace, wait_id).pk
        first, last = (keys.wait_outcome(namespace, wait_id, index).sk for index in (after_index + 1, through_index))
        between = (first, last)
        for row in query_all(self._table, pk, between=between, limit=limit):
            yield _outcome_from_row(row)

    def outcomes_at(self, namespace: str, wait_id: str, indexes: Iterable[int]) -> dict[int, EntryOutcome]:
        """Outcomes of these entries, as far as they have one in a row of its own."""
        rows = self._table.batch_get([keys.wait_outcome(namespace, wait_id, index) for index in indexes])
        return {outcome.index: outcome for outcome in map(_outcome_from_row, rows.values())}

    def _put_outcome(
        self, namespace: str, wait_id: str, outcome: EntryOutcome, ttl: int, due: Mapping[str, str] | None = None
    ) -> EntryOutcome:
        key = keys.wait_outcome(namespace, wait_id, outcome.index)
        text = dumps(_outcome_to_json(_truncated(outcome)))
        row = {**_head(key, "wait_outcome"), "job_id": outcome.job_id, "outcome": text, "ttl": ttl, **(due or {})}
        try:
            self._table.put(Put(row=row, condition=ABSENT))
        except ConditionFailed as error:
            existing = error.old or self._table.get(key)
            if existing is None:
                raise
            return _outcome_from_row(existing)
        return outcome

    # Large waits: spec pages, counting by chunk, sealing, closing

    def put_spec(self, wait: Wait, entries: Sequence[WaitOnJob]) -> None:
        """Store the packed entries of a large wait, page by page. Can be repeated."""
        for page in range(wait.pages):
            start = page * self.spec_page_entries
            page_entries = [
                [e.job_id, e.raw_condition, e.known_version] for e in entries[start : start + self.spec_page_entries]
            ]
            key = keys.wait_spec(wait.namespace, wait.wait_id, page)
            row = {**_head(key, "wait_spec"), "spec": _pack(page_entries), "ttl": self._ttl(wait)}
            self._table.put(Put(row=row))

    def spec_page(self, wait: Wait, page: int) -> list[WaitOnJob] | None:
        """The entries of one page; None when the page was never stored."""
        row = self._table.get(keys.wait_spec(wait.namespace, wait.wait_id, page))
        if row is None:
            return None
        return [
            WaitOnJob(
                index=page * self.spec_page_entries + n, job_id=job_id, raw_condition=asked, known_version=version
            )
            for n, (job_id, asked, version) in enumerate(_unpack(row["spec"]))
        ]

    def mark_page_registered(self, wait: Wait, page: int) -> Wait | None:
        """Note that a page's entries are written and its jobs read again. None when the wait is over."""
        return self._update_open(Update(
            key=keys.wait(wait.namespace, wait.wait_id),
            expression="ADD pages_done :page", values={":page": {page}},
        ))  # fmt: skip

    def index_expiry(self, wait: Wait) -> Wait | None:
        """The registration is finished: from now on the sweeper looks after the wait when its time is over."""
        g1pk, g1sk = keys.due(wait.expires_at, "wait_expiry", wait.namespace, wait.wait_id)
        return self._update_open(
            Update(
                key=keys.wait(wait.namespace, wait.wait_id),
                expression="SET g1pk = :g1pk, g1sk = :g1sk",
                values={":g1pk": g1pk, ":g1sk": g1sk},
            )
        )

    def count_outcomes(self, wait: Wait, block: int, outcomes: Iterable[EntryOutcome]) -> tuple[int, int]:
        """Add outcomes to their chunk's grow-only sets; returns how many are (met, unmet) in it now."""
        met = {o.index for o in outcomes if o.status != "unmet"}
        unmet = {o.index for o in outcomes if o.status == "unmet"}
        additions = [f"{name} :{name}" for name, indexes in (("met", met), ("unmet", unmet)) if indexes]
        row = self._table.update(
            Update(
                key=keys.wait_block(wait.namespace, wait.wait_id, block),
                expression=f"ADD {', '.join(additions)} SET entity = :entity, schema_version = :one, #ttl = :ttl",
                names={"#ttl": "ttl"},
                values={
                    ":entity": "wait_chunk",
                    ":one": 1,
                    ":ttl": self._ttl(wait),
                    **({":met": met} if met else {}),
                    **({":unmet": unmet} if unmet else {}),
                },
            )
        )
        return len(row.get("met", ())), len(row.get("unmet", ()))

    def update_counts(self, wait: Wait, block: int, met: int, unmet: int) -> Wait | None:
        """Tell the wait what a chunk has counted; None when it is over or knows more already.

        A chunk's sets only grow, so of two of its counts one is at least the other in both parts.
        """
        is_newer = (
            "(attribute_not_exists(met_counts.#chunk) OR (met_counts.#chunk <= :met AND unmet_counts.#chunk <= :unmet))"
        )
        return self._update_open(Update(
            key=keys.wait(wait.namespace, wait.wait_id),
            expression="SET met_counts.#chunk = :met, unmet_counts.#chunk = :unmet",
            names={"#chunk": str(block)}, values={":met": met, ":unmet": unmet},
        ), extra_condition=is_newer)  # fmt: skip

    def counted_entries(self, wait: Wait) -> tuple[frozenset[int], frozenset[int]]:
        """The entries that are met and those that are unmet so far, from every chunk."""
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
        """Close a large wait with what is counted at this moment; None when it is over already.

        `also_shown` are entries that closed it by failing: they are shown, and were never counted.
        """
        met, unmet = self.counted_entries(wait)
        return self._update_open(Update(
            key=keys.wait(wait.namespace, wait.wait_id),
            expression=(
                "SET #status = :status, ended_at = :now, counted_met = :met, counted_unmet = :unmet, "
                "version = version + :one, #ttl = :ttl REMOVE g1pk, g1sk"
            ),
            names={"#status": "status", "#ttl": "ttl"},
            values={
                ":status": status, ":now": to_text(now), ":one": 1, ":ttl": to_epoch_s(now + self._retention),
                ":met": _to_bitmap({*met, *extra_met}, wait.total), ":unmet": _to_bitmap(unmet, wait.total),
            },
        ))  # fmt: skip

    def _has_expired(self, row: Row) -> bool:
        return int(row["ttl"]) <= to_epoch_s(self._now())

    def _ttl(self, wait: Wait) -> int:
        """Of the rows beside the wait's own."""
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

    # What an earlier round had collected

    def put_echo(self, wait: Wait, echo: Mapping[str, JsonValue]) -> None:
        """Store `waited_jobs` of an earlier round, before the wait that says it has one."""
        key = keys.wait_echo(wait.namespace, wait.wait_id)
        row = {**_head(key, "wait_echo"), "echo": _pack(echo), "ttl": self._ttl(wait)}
        self._table.put(Put(row=row))

    def echo(self, wait: Wait) -> Mapping[str, JsonValue]:
        """`waited_jobs` of an earlier round, unchanged."""
        row = self._table.get(keys.wait_echo(wait.namespace, wait.wait_id)) if wait.has_waited_jobs else None
        return dict(_unpack(row["echo"])) if row else {}


def wait_from_row(row: Row) -> Wait:
    """A wait from its own row."""
    entries: Any = loads(row["entries"]) if "entries" in row else None
    outcome_rows: Any = loads(row["outcomes"]) if "outcomes" in row else []
    outcomes = [_outcome_from_json(each, entries[each[0]][0]) for each in outcome_rows]
    return Wait(
        namespace=row["namespace"],
        wait_id=row["wait_id"],
        status=row["status"],
        options=WaitOptions(
            mode=row["mode"],
            needed=row["needed"],
            get_fields=tuple(row.get("get_fields", ())),
            fail_fast=row["fail_fast"],
            return_on_progress=row["return_on_progress"],
            allow_missing=row["allow_missing"],
            sns=row["sns"],
            webhook=row.get("webhook"),
        ),
        raw_options=row["options_echo"],
        total=row["total"],
        created_by=row["by"],
        created_at=from_text(row["created_at"]),
        expires_at=from_text(row["expires_at"]),
        ended_at=from_text(row["ended_at"]) if "ended_at" in row else None,
        version=row["version"],
        has_waited_jobs=row.get("has_echo", False),
        wait_on_jobs=None
        if entries is None
        else tuple(
            WaitOnJob(index=n, job_id=job_id, raw_condition=asked, known_version=version)
            for n, (job_id, asked, version) in enumerate(entries)
        ),
        outcomes={outcome.index: outcome for outcome in outcomes},
        pages=row.get("pages", 0),
        registered_pages=frozenset(row.get("pages_done", ())),
        met_counts={int(block): n for block, n in row.get("met_counts", {}).items()},
        unmet_counts={int(chunk): n for chunk, n in row.get("unmet_counts", {}).items()},
        final_met=_from_bitmap(row.get("counted_met", b"")),
        final_unmet=_from_bitmap(row.get("counted_unmet", b"")),
    )


def wait_to_row(wait: Wait, retention: timedelta = DEFAULT_RETENTION) -> Row:
    """The row of a new wait, or of an inline one. What a large wait counts is changed in place, never written whole."""
    key = keys.wait(wait.namespace, wait.wait_id)
    row: Row = {
        **_head(key, "wait"),
        "namespace": wait.namespace,
        "wait_id": wait.wait_id,
        "status": wait.status,
        "mode": wait.options.mode,
        "needed": wait.options.needed,
        "get_fields": list(wait.options.get_fields) or None,
        "fail_fast": wait.options.fail_fast,
        "return_on_progress": wait.options.return_on_progress,
        "allow_missing": wait.options.allow_missing,
        "sns": wait.options.sns,
        "webhook": wait.options.webhook,
        "options_echo": wait.raw_options,
        "total": wait.total,
        "by": wait.created_by,
        "created_at": to_text(wait.created_at),
        "expires_at": to_text(wait.expires_at),
        "ended_at": wait.ended_at and to_text(wait.ended_at),
        "version": wait.version,
        "has_echo": wait.has_waited_jobs or None,
        "ttl": to_epoch_s((wait.ended_at or wait.expires_at) + retention),
    }
    if wait.wait_on_jobs is not None:
        row["entries"] = dumps([[e.job_id, e.raw_condition, e.known_version] for e in wait.wait_on_jobs])
        if wait.outcomes:
            row["outcomes"] = dumps([_outcome_to_json(_without_large_values(o)) for o in wait.outcomes.values()])
    else:
        row |= {"pages": wait.pages, "met_counts": {}, "unmet_counts": {}}
    row["g2pk"], row["g2sk"] = keys.listing(wait.namespace, "waits", wait.created_at, wait.wait_id)
    if not wait.ended:
        kind: keys.DueKind = "wait_expiry" if wait.registration_complete else "wait_registration"
        at = wait.expires_at if wait.registration_complete else wait.registration_due_at
        row["g1pk"], row["g1sk"] = keys.due(at, kind, wait.namespace, wait.wait_id)
    return row


def _entry_row(wait: Wait, entry: WaitOnJob) -> Row:
    key = keys.entry(wait.namespace, entry.job_id, wait.wait_id, entry.index)
    return {
        **_head(key, "entry"),
        "asked": dumps(entry.raw_condition),
        "known_version": entry.known_version,
        "get_fields": list(wait.options.get_fields) or None,
        "fail_fast": wait.options.fail_fast or None,
    }


def _wait_entry(row: Row, job_id: str) -> WaitEntry:
    wait_id, index = row["sk"].split("#")
    return WaitEntry(
        wait_id=wait_id,
        wait_on_job=WaitOnJob(
            index=int(index), job_id=job_id, raw_condition=loads(row["asked"]), known_version=row["known_version"]
        ),
        get_fields=tuple(row.get("get_fields", ())),
        fail_fast=row.get("fail_fast", False),
    )


def _outcome_to_json(outcome: EntryOutcome) -> list[JsonValue]:
    return [outcome.index, outcome.status, outcome.version, outcome.stage, dict(outcome.values), outcome.reason]


def _outcome_from_json(packed: Any, job_id: str) -> EntryOutcome:
    index, verdict, version, stage, values, reason = packed
    return EntryOutcome(
        index=index, job_id=job_id, status=verdict, version=version, stage=stage, values=values, reason=reason
    )


def _outcome_from_row(row: Row) -> EntryOutcome:
    return _outcome_from_json(loads(row["outcome"]), row["job_id"])


def _is_large(outcome: EntryOutcome) -> bool:
    return len(dumps(dict(outcome.values)).encode()) > MAX_INLINE_VALUES_BYTES


def _without_large_values(outcome: EntryOutcome) -> EntryOutcome:
    """An outcome as an inline wait's row keeps it: large values stay in the outcome's own row."""
    if not _is_large(outcome):
        return outcome
    return replace(outcome, values={})


def _truncated(outcome: EntryOutcome) -> EntryOutcome:
    values = dict(outcome.values)
    while len(dumps(values).encode()) > MAX_VALUES_BYTES:
        longest = max(values, key=lambda name: len(values[name]))
        values[longest] = values[longest][: len(values[longest]) // 2]
    return replace(outcome, values=values)


def _to_bitmap(indexes: Iterable[int], total: int) -> bytes:
    bits = bytearray((total + 7) // 8)
    for index in indexes:
        bits[index // 8] |= 1 << index % 8
    return bytes(bits)


def _from_bitmap(bits: bytes) -> frozenset[int]:
    return frozenset(8 * at + bit for at, byte in enumerate(bits) for bit in range(8) if byte >> bit & 1)


def _pack(value: object) -> bytes:
    return zlib.compress(dumps(value).encode())


def _unpack(packed: bytes) -> Any:
    return loads(zlib.decompress(packed))


def _head(key: keys.Key, entity: str) -> Row:
    return {"pk": key.pk, "sk": key.sk, "entity": entity, "schema_version": 1}
