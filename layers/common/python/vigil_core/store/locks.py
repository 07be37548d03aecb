"""Holds: which job has a `unique_key` or a mutex, and who stands in line for a mutex.

Nothing releases a hold: it is taken over once its holder has ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from vigil_core.domain.jobs.job import Job
from vigil_core.store import keys
from vigil_core.store.table import ABSENT, PRESENT, Condition, ConditionFailed, Delete, Put, Row, Table, Update

LOOK_AGAIN = timedelta(seconds=60)
"""How often the sweeper sees whether a line has come to a standstill."""


@dataclass(frozen=True, kw_only=True)
class Hold:
    """Who has a hold. Whatever happens to it raises `counter`, so that of two who saw the same only one can act.

    `contested`: somebody stands in line for it, or has done so lately.
    """

    kind: keys.HoldKind
    name: str
    job_id: str
    counter: int
    contested: bool


@dataclass(frozen=True, kw_only=True)
class HoldClaim:
    """The wish to take a hold that was seen with this counter; 0 when nobody ever had it. `due` keeps a contested one
    on the sweeper's list."""

    kind: keys.HoldKind
    name: str
    seen_counter: int
    due: tuple[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Place:
    """A job's place in line."""

    number: int
    job_id: str


class HoldStore:
    """Reads holds and keeps the order in line; holds are taken in the transaction that stores their job."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def find(self, namespace: str, kind: keys.HoldKind, name: str) -> Hold | None:
        """Who has it, consistently; None when nobody ever had."""
        row = self._table.get(keys.hold(namespace, kind, name))
        if row is None:
            return None
        return Hold(kind=kind, name=name, job_id=row["job_id"], counter=row["counter"], contested="g1pk" in row)

    def next_place(self, namespace: str, name: str, *, now: datetime) -> int:
        """A place in line behind everybody's who has one: from now on the mutex is contested. Raises ConditionFailed
        when nobody ever had it."""
        row = self._table.update(
            Update(
                key=keys.hold(namespace, "mutex", name),
                expression="SET g1pk = :g1pk, g1sk = :g1sk ADD #counter :one",
                names={"#counter": "counter"},
                values={":one": 1, **_due_values(namespace, name, now)},
                condition=PRESENT,
            )
        )
        return int(row["counter"])

    def first_in_line(self, namespace: str, name: str) -> Place | None:
        """Who is next, consistently."""
        rows = self._table.query_page(keys.line(namespace, name), limit=1).rows
        return Place(number=int(rows[0]["sk"]), job_id=rows[0]["job_id"]) if rows else None

    def leave_line(self, namespace: str, name: str, place: Place) -> None:
        """Forget a place whose job no longer wants it."""
        self._table.delete(Delete(key=keys.place_in_line(namespace, name, place.number)))

    def look_again(self, namespace: str, hold: Hold, *, now: datetime) -> None:
        """Keep a contested mutex on the sweeper's list; nothing when somebody else has to do with it."""
        self._update_seen(namespace, hold, "SET g1pk = :g1pk, g1sk = :g1sk", _due_values(namespace, hold.name, now))

    def calm(self, namespace: str, hold: Hold) -> None:
        """Nobody stands in line; nothing when somebody came since the hold was read."""
        self._update_seen(namespace, hold, "REMOVE g1pk, g1sk", {})

    def _update_seen(self, namespace: str, hold: Hold, expression: str, values: Mapping[str, str]) -> None:
        seen = _seen(hold.counter)
        with suppress(ConditionFailed):
            self._table.update(
                Update(
                    key=keys.hold(namespace, hold.kind, hold.name),
                    expression=expression,
                    values=values,
                    condition=seen,
                )
            )


def contested_claim(namespace: str, hold: Hold, *, now: datetime) -> HoldClaim:
    """The wish to take a mutex that others may stand in line for."""
    due = keys.due(now + LOOK_AGAIN, "mutex", namespace, hold.name)
    return HoldClaim(kind=hold.kind, name=hold.name, seen_counter=hold.counter, due=due)


def hold_put(job: Job, claim: HoldClaim) -> Put:
    """The write by which a job takes a hold."""
    row: Row = {
        **_head(keys.hold(job.namespace, claim.kind, claim.name), "hold"),
        "job_id": job.job_id,
        "counter": claim.seen_counter + 1,
    }
    if claim.due is not None:
        row["g1pk"], row["g1sk"] = claim.due
    return Put(row=row, condition=ABSENT if claim.seen_counter == 0 else _seen(claim.seen_counter))


def place_put(job: Job, place: int) -> Put:
    """The write by which a job stands in line for its mutex."""
    key = keys.place_in_line(job.namespace, str(job.mutex_key), place)
    return Put(row={**_head(key, "place_in_line"), "job_id": job.job_id})


def _seen(counter: int) -> Condition:
    return Condition(expression="#counter = :seen", names={"#counter": "counter"}, values={":seen": counter})


def _due_values(namespace: str, name: str, now: datetime) -> dict[str, str]:
    g1pk, g1sk = keys.due(now + LOOK_AGAIN, "mutex", namespace, name)
    return {":g1pk": g1pk, ":g1sk": g1sk}


def _head(key: keys.Key, entity: str) -> Row:
    return {"pk": key.pk, "sk": key.sk, "entity": entity, "schema_version": 1}
