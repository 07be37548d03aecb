"""Deliver events to webhooks: store a delivery as a row, enqueue it as a message, and attempt it.

The row, not the message, decides whether an attempt is due. A failed attempt stores the time of the next one, or ends
the delivery after the last one: see `domain.webhooks.Delivery.after_attempt`.

A delivery to a slow receiver needs a slot of its namespace. Without one it is deferred: its message is sent again with
a delay, and its row does not change. A message names the due time of its row, so a message that the sweeper has
replaced by a newer one does nothing.

From its first write until it is delivered or abandoned, it has an entry in the due index. If a process
crashes between two writes, or a message is lost, the sweeper therefore enqueues the delivery again. A message names the
number of its attempt; a repeated or late message does nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, Protocol, TypeAlias

from vigil_core.domain.errors import TargetRefused, TargetUnreachable
from vigil_core.domain.events.event import Event
from vigil_core.domain.exact_json import JsonValue, dumps
from vigil_core.domain.outbound_policy import RequestInterrupted, SlowRequestPolicy
from vigil_core.domain.retry_after import parse_retry_after
from vigil_core.domain.timestamps import to_text
from vigil_core.domain.webhooks import (
    WAITS_WEBHOOK,
    Delivery,
    DeliveryAttempt,
    Webhook,
    create_delivery,
    is_deliverable,
    signature_headers,
)
from vigil_core.runtime.failures import apply_in_halves, contain, error_name, is_transient
from vigil_core.runtime.logging import logger
from vigil_core.services.context import (
    UsesClock,
    UsesLimits,
    UsesMessageQueues,
    UsesRandomness,
    UsesThreads,
    UsesWebhooks,
)
from vigil_core.services.ports import HttpClient
from vigil_core.services.webhooks.slow_receivers import (
    SLOW_AFTER_S,
    InvocationSlots,
    Receiver,
    SlowReceiversContext,
)
from vigil_core.store.keys import parse_delivery_due_id
from vigil_core.store.table import ConditionFailed


class DeliverWebhooksContext(
    UsesWebhooks, UsesMessageQueues, UsesClock, UsesRandomness, UsesThreads, UsesLimits, Protocol
):
    """The webhooks and their deliveries, the states of namespaces, the message queues, the time and jitter."""


class AttemptDeliveryContext(DeliverWebhooksContext, SlowReceiversContext, Protocol):
    """The collaborators of deliveries, and the slots for slow receivers."""


ATTEMPT_TIMEOUT_S = 10.0
"""Maximum time for the response of a receiver."""
_MAX_RESPONSE_BYTES = 1024
"""Only the status and the headers of a response matter."""

MAX_DEFERRAL_S = 120
"""Maximum delay of a deferred delivery. The delay doubles with each deferral."""

DeliveryOutcome: TypeAlias = Literal["delivered", "failed", "pending", "stale", "deferred"]


def deliveries_for(ctx: DeliverWebhooksContext, namespace: str, events: Iterable[Event]) -> list[Delivery]:
    """Return the deliveries of events of one namespace. The webhooks of the namespace are read once."""
    relevant_events = [event for event in events if is_deliverable(event)]
    if not relevant_events:
        return []
    now = ctx.now()
    webhooks = ctx.webhooks.find_all(namespace)
    deliveries = [
        create_delivery(event, hook.name, None, now)
        for event in relevant_events
        for hook in webhooks
        if hook.accepts(event)
    ]
    return deliveries + [
        create_delivery(event, WAITS_WEBHOOK, event.webhook, now)
        for event in relevant_events
        if event.webhook is not None
    ]


def enqueue_deliveries(ctx: DeliverWebhooksContext, deliveries: Sequence[Delivery]) -> None:
    """Store deliveries and enqueue them. A repeated call neither stores nor attempts a delivery twice.

    A delivery whose own data makes that impossible is abandoned, with the name of the error as the reason.
    """
    stored = ctx.in_parallel(partial(_add_or_abandon, ctx), deliveries)
    _send(ctx, [delivery for delivery in stored if delivery.status == "pending"])


def _add_or_abandon(ctx: DeliverWebhooksContext, delivery: Delivery) -> Delivery:
    """Store a delivery. If its event cannot be stored, store it without the event as an abandoned one."""

    def abandon(error: Exception) -> Delivery:
        abandoned = delivery.abandoned(f"The event cannot be stored: {error_name(error)}", ctx.now())
        return ctx.webhooks.add_delivery(replace(abandoned, body=""))

    return contain(partial(ctx.webhooks.add_delivery, delivery), abandon)


def _send(ctx: DeliverWebhooksContext, deliveries: Sequence[Delivery]) -> None:
    """Enqueue deliveries together, and abandon each one whose message the queue refuses for good.

    Raises:
        Exception: A transient error. Some deliveries may be enqueued; the due index has the others.
    """

    def send(group: Sequence[Delivery]) -> None:
        ctx.message_queues.send_deliveries([_message(delivery) for delivery in group])

    def on_error(group: Sequence[Delivery], error: Exception) -> None:
        if is_transient(error):
            raise error
        for delivery in group:
            ids = {"namespace": delivery.namespace, "webhook": delivery.webhook, "delivery": delivery.delivery_id}
            logger.error("delivery abandoned", extra={"action": "enqueue_delivery", **ids}, exc_info=error)
            abandoned = delivery.abandoned(f"The delivery cannot be enqueued: {error_name(error)}", ctx.now())
            ctx.webhooks.save_delivery(delivery, abandoned, check_next_attempt=False)

    apply_in_halves(deliveries, send, on_error)


def requeue_due(ctx: DeliverWebhooksContext, namespace: str, due_id: str) -> None:
    """Enqueue a due delivery: the time of its next attempt has arrived, or its message was lost."""
    if not ctx.limits.namespaces.is_active(namespace):
        return
    delivery = ctx.webhooks.find_delivery(namespace, *parse_delivery_due_id(due_id))
    if (
        delivery is None
        or delivery.status != "pending"
        or delivery.next_attempt_at is None
        or ctx.now() < delivery.next_attempt_at
    ):
        return
    enqueued = delivery.enqueued(ctx.now())
    _send(ctx, [enqueued])
    ctx.webhooks.save_delivery(delivery, enqueued, check_next_attempt=True)


def attempt_delivery(
    ctx: AttemptDeliveryContext, http_client: HttpClient, message: JsonValue, slots: InvocationSlots
) -> DeliveryOutcome:
    """Attempt the delivery of a message, and return the outcome.

    The outcome is `stale` if another message has already caused this attempt or replaces this message, and `deferred`
    if the receiver is slow and its namespace has no slot.

    1. A deferral sends the next message before it acknowledges this one. If the process crashes in between, there are
       two messages, and the first one to make the attempt makes the other one stale.
    2. If the next message is lost, the sweeper sends another one when the row is due.
    """
    assert isinstance(message, Mapping)
    namespace, name = str(message["namespace"]), str(message["webhook"])
    if not ctx.limits.namespaces.is_active(namespace):
        return "stale"  # The row stays due, so the sweeper sends another message once the namespace is active.
    delivery = ctx.webhooks.find_delivery(namespace, name, str(message["delivery"]))
    if delivery is None or delivery.status != "pending" or delivery.failed_attempts + 1 != message["try"]:
        return "stale"
    if message.get("due") not in (None, delivery.next_attempt_at and to_text(delivery.next_attempt_at)):
        return "stale"

    def attempt() -> Delivery | None:
        webhook = ctx.webhooks.find(namespace, name)
        try:
            return _attempt(ctx, http_client, delivery, webhook, slots, deferred="deferrals" in message)
        except RequestInterrupted:
            return None

    updated = contain(
        attempt,
        lambda error: delivery.abandoned(f"The delivery cannot be attempted: {error_name(error)}", ctx.now()),
    )
    if updated is None:
        _defer(ctx, message)
        return "deferred"
    return updated.status if ctx.webhooks.save_delivery(delivery, updated, check_next_attempt=False) else "stale"


def _defer(ctx: AttemptDeliveryContext, message: Mapping[str, JsonValue]) -> None:
    """Send a message again after a delay, which doubles up to two minutes and is spread at random."""
    deferrals = int(str(message.get("deferrals", 0))) + 1
    delay_s = min(2**deferrals, MAX_DEFERRAL_S)
    delay_s = max(1, round(delay_s * (0.5 + ctx.jitter() / 2)))
    ctx.message_queues.send_deliveries([dumps({**message, "deferrals": deferrals})], delay_s=delay_s)


def _attempt(
    ctx: AttemptDeliveryContext,
    http_client: HttpClient,
    delivery: Delivery,
    webhook: Webhook | None,
    slots: InvocationSlots,
    *,
    deferred: bool,
) -> Delivery:
    """Post the event, and return the delivery after this attempt: delivered, due again, or abandoned.

    Raises:
        RequestInterrupted: The receiver is slow, and its namespace has no slot.
    """
    url = delivery.url or (webhook and webhook.url)
    if webhook is None or not webhook.enabled or not url:
        reason = "The webhook is disabled" if webhook else "The webhook was deleted"
        return delivery.abandoned(reason, ctx.now())
    receiver = Receiver(namespace=delivery.namespace, url=url)
    if (deferred or slots.is_known_as_slow(receiver)) and not slots.acquire(delivery.namespace):
        raise RequestInterrupted
    attempted_at = ctx.now()
    body = delivery.body.encode()
    headers = signature_headers(webhook.signing_secrets(attempted_at), delivery.delivery_id, attempted_at, body)
    status, error, requested_delay_s = None, None, None
    try:
        response = http_client.request(
            "POST",
            url,
            headers={"Content-Type": "application/json", **headers},
            body=body,
            timeout_s=ATTEMPT_TIMEOUT_S,
            max_response_bytes=_MAX_RESPONSE_BYTES,
            slow_policy=SlowRequestPolicy(slow_after_s=SLOW_AFTER_S, may_continue=lambda: slots.may_continue(receiver)),
        )
        status, requested_delay_s = response.status, parse_retry_after(response.headers.get("retry-after"), ctx.now())
    except (TargetRefused, TargetUnreachable) as problem:
        error = problem.message
    delivery_attempt = DeliveryAttempt(
        at=attempted_at, duration_ms=int((ctx.now() - attempted_at).total_seconds() * 1000), status=status, error=error
    )
    if status == 410 and delivery.url is None:
        _disable(ctx, webhook)
    return delivery.after_attempt(delivery_attempt, retry_after_s=requested_delay_s, jitter=ctx.jitter())


def _disable(ctx: DeliverWebhooksContext, webhook: Webhook) -> None:
    """Disable a webhook, unless a client changed it in the meantime: the new URL may work."""
    try:
        ctx.webhooks.save(webhook, webhook.disabled("The receiver rejects further deliveries (410)", ctx.now()))
    except ConditionFailed:
        return


def _message(delivery: Delivery) -> str:
    return dumps(
        {
            "namespace": delivery.namespace,
            "webhook": delivery.webhook,
            "delivery": delivery.delivery_id,
            "try": delivery.failed_attempts + 1,
            "due": delivery.next_attempt_at and to_text(delivery.next_attempt_at),
        }
    )
