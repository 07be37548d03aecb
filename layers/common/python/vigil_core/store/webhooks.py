"""Webhooks, one partition per namespace, and their deliveries, several partitions per webhook, listed by time."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import islice
from typing import Any

from vigil_core.domain.exact_json import dumps, loads
from vigil_core.domain.timestamps import from_text, to_epoch_s, to_text
from vigil_core.domain.webhooks import DELIVERY_TTL, Delivery, DeliveryAttempt, PreviousSecret, Webhook
from vigil_core.store import keys
from vigil_core.store.table import (
    ABSENT,
    PRESENT,
    ConditionFailed,
    Delete,
    Put,
    Row,
    Table,
    WriteCondition,
    query_all,
    version_is,
)


class WebhookStore:
    """The webhooks and deliveries of every namespace."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def find(self, namespace: str, name: str) -> Webhook | None:
        """Read a webhook."""
        row = self._table.get(keys.webhook(namespace, name))
        return _webhook(row) if row else None

    def find_all(self, namespace: str) -> list[Webhook]:
        """Read the webhooks of a namespace, sorted by name. A namespace has few, so one request suffices."""
        return [_webhook(row) for row in query_all(self._table, keys.webhooks(namespace))]

    def save(self, before: Webhook | None, after: Webhook) -> None:
        """Store the version that follows `before`, or raise ConditionFailed if the webhook has changed."""
        condition = ABSENT if before is None else version_is(before.version)
        self._table.put(Put(row=_webhook_row(after), condition=condition))

    def remove(self, namespace: str, name: str) -> bool:
        """Remove a webhook and return whether it existed. Its deliveries stay until their TTL ends."""
        try:
            self._table.delete(Delete(key=keys.webhook(namespace, name), condition=PRESENT))
        except ConditionFailed:
            return False
        return True

    # Deliveries

    def add_delivery(self, delivery: Delivery) -> Delivery:
        """Store a delivery, or return the one that an earlier try has stored."""
        try:
            self._table.put(Put(row=_delivery_row(delivery), condition=ABSENT))
        except ConditionFailed as error:
            return _delivery(error.old) if error.old else delivery
        return delivery

    def find_delivery(self, namespace: str, webhook: str, delivery_id: str) -> Delivery | None:
        """Read a delivery."""
        row = self._table.get(keys.delivery(namespace, webhook, delivery_id))
        return _delivery(row) if row else None

    def save_delivery(self, before: Delivery, after: Delivery, *, check_next_attempt: bool) -> bool:
        """Store the state that follows `before`.

        Args:
            before: The delivery that was read.
            after: The new state.
            check_next_attempt: Also require that no process has postponed the next attempt.

        Returns:
            False if the delivery was attempted, finished or (with `check_next_attempt`) postponed since the read.
        """
        condition = WriteCondition(
            expression="#status = :status AND failed_attempts = :failed_attempts"
            + (" AND next_attempt_at = :next_attempt_at" if check_next_attempt else ""),
            names={"#status": "status"},
            values={
                ":status": before.status,
                ":failed_attempts": before.failed_attempts,
                **(
                    {":next_attempt_at": to_text(before.next_attempt_at)}
                    if check_next_attempt and before.next_attempt_at
                    else {}
                ),
            },
        )
        try:
            self._table.put(Put(row=_delivery_row(after), condition=condition))
        except ConditionFailed:
            return False
        return True

    def deliveries(self, namespace: str, webhook: str, *, before_id: str | None, limit: int) -> list[Delivery]:
        """Read the deliveries before `before_id`, newest event first: one or two requests per partition."""
        partition_limit = limit // keys.DELIVERY_PARTITIONS + 5
        partitions = [
            self._partition_deliveries(keys.deliveries(namespace, webhook, shard), before_id, partition_limit)
            for shard in range(keys.DELIVERY_PARTITIONS)
        ]
        merged = heapq.merge(*partitions, key=lambda delivery: delivery.delivery_id, reverse=True)
        return list(islice(merged, limit))

    def _partition_deliveries(self, pk: str, before_id: str | None, limit: int) -> Iterator[Delivery]:
        bounds: dict[str, Any] = {} if before_id is None else {"between": ("0", before_id)}
        rows = query_all(self._table, pk, newest_first=True, limit=limit, **bounds)
        return (_delivery(row) for row in rows if row["sk"] != before_id)


def _webhook_row(webhook: Webhook) -> Row:
    pk, sk = keys.webhook(webhook.namespace, webhook.name)
    return {
        "pk": pk,
        "sk": sk,
        "entity": "webhook",
        "schema_version": 1,
        "namespace": webhook.namespace,
        "url": webhook.url,
        "events": list(webhook.events),
        "enabled": webhook.enabled,
        "disabled_reason": webhook.disabled_reason,
        "description": webhook.description,
        "secret": webhook.secret,
        "previous_secrets": [[previous.secret, to_text(previous.until)] for previous in webhook.previous_secrets]
        or None,
        "created_at": to_text(webhook.created_at),
        "updated_at": to_text(webhook.updated_at),
        "version": webhook.version,
    }


def _webhook(row: Row) -> Webhook:
    return Webhook(
        namespace=row["namespace"],
        name=row["sk"],
        url=row.get("url"),
        events=tuple(row["events"]),
        enabled=row["enabled"],
        disabled_reason=row.get("disabled_reason"),
        description=row.get("description"),
        secret=row["secret"],
        previous_secrets=tuple(
            PreviousSecret(secret=secret, until=from_text(until)) for secret, until in row.get("previous_secrets", ())
        ),
        created_at=from_text(row["created_at"]),
        updated_at=from_text(row["updated_at"]),
        version=row["version"],
    )


def _delivery_row(delivery: Delivery) -> Row:
    pk, sk = keys.delivery(delivery.namespace, delivery.webhook, delivery.delivery_id)
    row: Row = {
        "pk": pk,
        "sk": sk,
        "entity": "delivery",
        "schema_version": 1,
        "namespace": delivery.namespace,
        "webhook": delivery.webhook,
        "event_id": delivery.event_id,
        "event_type": delivery.event_type,
        "url": delivery.url,
        "body": delivery.body,
        "status": delivery.status,
        "error": delivery.error,
        "failed_attempts": delivery.failed_attempts,
        "attempts": dumps(
            [[to_text(attempt.at), attempt.duration_ms, attempt.status, attempt.error] for attempt in delivery.attempts]
        ),
        "next_attempt_at": delivery.next_attempt_at and to_text(delivery.next_attempt_at),
        "created_at": to_text(delivery.created_at),
        "finished_at": delivery.finished_at and to_text(delivery.finished_at),
        "ttl": to_epoch_s((delivery.finished_at or delivery.next_attempt_at or delivery.created_at) + DELIVERY_TTL),
    }
    if delivery.next_attempt_at is not None:
        entity_id = keys.delivery_due_id(delivery.webhook, delivery.delivery_id)
        row["g1pk"], row["g1sk"] = keys.due(delivery.next_attempt_at, "delivery", delivery.namespace, entity_id)
    return row


def _delivery(row: Row) -> Delivery:
    attempts: Any = loads(row["attempts"])
    return Delivery(
        namespace=row["namespace"],
        webhook=row["webhook"],
        delivery_id=row["sk"],
        event_id=row["event_id"],
        event_type=row["event_type"],
        url=row.get("url"),
        body=row["body"],
        status=row["status"],
        error=row.get("error"),
        failed_attempts=row["failed_attempts"],
        attempts=tuple(
            DeliveryAttempt(at=from_text(at), duration_ms=ms, status=status, error=error)
            for at, ms, status, error in attempts
        ),
        next_attempt_at=from_text(row["next_attempt_at"]) if "next_attempt_at" in row else None,
        created_at=from_text(row["created_at"]),
        finished_at=from_text(row["finished_at"]) if "finished_at" in row else None,
    )
