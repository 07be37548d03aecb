"""Reservations of idempotency keys: a repeated request returns the first answer."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from datetime import datetime, timedelta

from vigil_core.domain.timestamps import from_text, to_epoch_s, to_text
from vigil_core.store import keys
from vigil_core.store.table import ABSENT, ConditionFailed, Delete, Put, Row, Table, WriteCondition

RECORD_TTL = timedelta(hours=24)
LOCK_TTL = timedelta(seconds=60)
"""The time after which a retry may resume a request: longer than the timeout of API Gateway."""
MAX_STORED_RESPONSE_BYTES = 300 * 1024


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """A request with an idempotency key.

    Attributes:
        body_hash: The hash of the request body.
        reserved_id: The id of the entity that the request creates; each retry uses the same one.
        locked_until: The time after which a retry may resume the request.
        completed: The request has succeeded.
        response: The (status, body) of a completed request; None if the body does not fit into a row.
    """

    body_hash: str
    reserved_id: str
    locked_until: datetime
    completed: bool
    response: tuple[int, str] | None


class IdempotencyStore:
    """The reservations of the last 24 hours."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def reserve(
        self, namespace: str, route: str, key: str, *, body_hash: str, new_id: str, now: datetime
    ) -> tuple[Reservation, bool]:
        """Reserve a key, or read the existing reservation.

        If the process crashes before it saves its response, a retry resumes the request after `locked_until`, with the
        id that was reserved first.

        Returns:
            The reservation, and whether this request has it and must act.
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
        """Store the response of a completed request, compressed, for repetitions of the request."""
        packed = zlib.compress(body.encode())
        row = _row(keys.idempotency(namespace, route, key), reservation, now)
        row |= {"answered": True, "status": status}
        if len(packed) <= MAX_STORED_RESPONSE_BYTES:
            row["body"] = packed
        self._table.put(Put(row=row))

    def release(self, namespace: str, route: str, key: str) -> None:
        """Remove the reservation of a refused request: only successful responses are stored."""
        self._table.delete(Delete(key=keys.idempotency(namespace, route, key)))


def _is_available(now: datetime) -> WriteCondition:
    # DynamoDB may remove an expired row some days late, so readers treat it as absent.
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
