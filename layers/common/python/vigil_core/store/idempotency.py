"""Requests that must not act twice: what `Idempotency-Key` stands for."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from datetime import datetime, timedelta

from vigil_core.domain.timestamps import from_text, to_epoch_s, to_text
from vigil_core.store import keys
from vigil_core.store.table import ABSENT, Condition, ConditionFailed, Delete, Put, Row, Table

LIFE = timedelta(hours=24)
LOCK = timedelta(seconds=60)
"""How long a request may take before another try may resume it: longer than API Gateway lets any request take."""
MAX_ANSWER_BYTES = 300 * 1024


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """A request under a key. `reserved_id` is the id of what it creates, the same for every try of it.

    `answer` is (status, body) once there is one. `answered` without an answer: it did not fit a row.
    """

    body_hash: str
    reserved_id: str
    locked_until: datetime
    answered: bool
    answer: tuple[int, str] | None


class IdempotencyStore:
    """Reservations, for 24 hours."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def reserve(
        self, namespace: str, route: str, key: str, *, body_hash: str, new_id: str, now: datetime
    ) -> tuple[Reservation, bool]:
        """Reserve the key, or find who has it. Returns the reservation and whether it is this caller's to act on.

        A reservation whose request never answered becomes the next caller's once its lock has lapsed, under the id
        that was reserved first.
        """
        mine = Reservation(
            body_hash=body_hash, reserved_id=new_id, locked_until=now + LOCK, answered=False, answer=None
        )
        row_key = keys.idempotency(namespace, route, key)
        try:
            self._table.put(Put(row=_row(row_key, mine, now), condition=_free(now)))
        except ConditionFailed:
            row = self._table.get(row_key)
            if row is None:
                return mine, False
            found = _reservation(row)
            if found.answered or found.body_hash != body_hash or found.locked_until > now:
                return found, False
            resumed = Reservation(
                body_hash=body_hash,
                reserved_id=found.reserved_id,
                locked_until=now + LOCK,
                answered=False,
                answer=None,
            )
            same_lock = Condition(expression="locked_until = :seen", values={":seen": to_text(found.locked_until)})
            try:
                self._table.put(Put(row=_row(row_key, resumed, now), condition=same_lock))
            except ConditionFailed:
                return found, False
            return resumed, True
        return mine, True

    def answer(
        self, namespace: str, route: str, key: str, reservation: Reservation, status: int, body: str, now: datetime
    ) -> None:
        """Keep the answer for whoever asks again."""
        packed = zlib.compress(body.encode())
        row = _row(keys.idempotency(namespace, route, key), reservation, now)
        row |= {"answered": True, "status": status}
        if len(packed) <= MAX_ANSWER_BYTES:
            row["body"] = packed
        self._table.put(Put(row=row))

    def release(self, namespace: str, route: str, key: str) -> None:
        """Forget a request that was refused: only answers of success are kept."""
        self._table.delete(Delete(key=keys.idempotency(namespace, route, key)))


def _free(now: datetime) -> Condition:
    # DynamoDB removes an expired row up to days late: a reader takes it as gone.
    return Condition(
        expression=f"{ABSENT.expression} OR #ttl < :now", names={"#ttl": "ttl"}, values={":now": to_epoch_s(now)}
    )


def _row(key: keys.Key, reservation: Reservation, now: datetime) -> Row:
    return {
        "pk": key.pk,
        "sk": key.sk,
        "entity": "idempotency",
        "schema_version": 1,
        "body_hash": reservation.body_hash,
        "reserved_id": reservation.reserved_id,
        "locked_until": to_text(reservation.locked_until),
        "answered": False,
        "ttl": to_epoch_s(now + LIFE),
    }


def _reservation(row: Row) -> Reservation:
    answer = (row["status"], zlib.decompress(row["body"]).decode()) if "body" in row else None
    return Reservation(
        body_hash=row["body_hash"],
        reserved_id=row["reserved_id"],
        locked_until=from_text(row["locked_until"]),
        answered=row["answered"],
        answer=answer,
    )
