"""Requests that must not act twice: what `Idempotency-Key` stands for."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from datetime import datetime, timedelta

from vigil_core.domain.timestamps import from_text, to_epoch_s, to_text
from vigil_core.store import keys
from vigil_core.store.table import ABSENT, ConditionFailed, Delete, Put, Row, Table, WriteCondition

RECORD_TTL = timedelta(hours=24)
LOCK_TTL = timedelta(seconds=60)
"""How long a request may take before another try may resume it: longer than API Gateway lets any request take."""
MAX_STORED_RESPONSE_BYTES = 300 * 1024


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """A request under a key. `reserved_id` is the id of what it creates, the same for every try of it.

    `answer` is (status, body) once there is one. `answered` without an answer: it did not fit a row.
    """

    body_hash: str
    reserved_id: str
    locked_until: datetime
    completed: bool
    response: tuple[int, str] | None


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
        reservation = Reservation(
            body_hash=body_hash, reserved_id=new_id, locked_until=now + LOCK_TTL, completed=False, response=None
        )
        row_key = keys.idempotency(namespace, route, key)
        try:
            self._table.put(Put(row=_row(row_key, reservation, now), condition=_is_available(now)))
        except ConditionFailed:
            row = self._table.get(row_key)
            if row is None:
                return reservation, False
            existing = _reservation(row)
            if existing.completed or existing.body_hash != body_hash or existing.locked_until > now:
                return existing, False
            resumed = Reservation(
                body_hash=body_hash,
                reserved_id=existing.reserved_id,
                locked_until=now + LOCK_TTL,
                completed=False,
                response=None,
            )
            same_lock = WriteCondition(
                expression="locked_until = :seen", values={":seen": to_text(existing.locked_until)}
            )
            try:
                self._table.put(Put(row=_row(row_key, resumed, now), condition=same_lock))
            except ConditionFailed:
                return existing, False
            return resumed, True
        return reservation, True

    def save_response(
        self, namespace: str, route: str, key: str, reservation: Reservation, status: int, body: str, now: datetime
    ) -> None:
        """Keep the answer for whoever asks again."""
        packed = zlib.compress(body.encode())
        row = _row(keys.idempotency(namespace, route, key), reservation, now)
        row |= {"answered": True, "status": status}
        if len(packed) <= MAX_STORED_RESPONSE_BYTES:
            row["body"] = packed
        self._table.put(Put(row=row))

    def release(self, namespace: str, route: str, key: str) -> None:
        """Forget a request that was refused: only answers of success are kept."""
        self._table.delete(Delete(key=keys.idempotency(namespace, route, key)))


def _is_available(now: datetime) -> WriteCondition:
    # DynamoDB removes an expired row up to days late: a reader takes it as gone.
    return WriteCondition(
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
        "ttl": to_epoch_s(now + RECORD_TTL),
    }


def _reservation(row: Row) -> Reservation:
    response = (row["status"], zlib.decompress(row["body"]).decode()) if "body" in row else None
    return Reservation(
        body_hash=row["body_hash"],
        reserved_id=row["reserved_id"],
        locked_until=from_text(row["locked_until"]),
        completed=row["answered"],
        response=response,
    )
