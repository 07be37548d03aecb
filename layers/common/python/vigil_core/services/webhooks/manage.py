"""Manage webhooks: define and delete them, rotate their secrets, and replay their deliveries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from vigil_core.domain.errors import (
    DeliveryNotFound,
    FieldProblem,
    InvalidTransition,
    StoreConflict,
    TargetRefused,
    ValidationFailed,
    WebhookNotFound,
)
from vigil_core.domain.outbound_policy import parse_outbound_url
from vigil_core.domain.webhooks import SECRET_BYTES, WAITS_WEBHOOK, Delivery, Webhook, new_secret
from vigil_core.services.context import (
    UsesAllowedPrivateHosts,
    UsesClock,
    UsesLimits,
    UsesMessageQueues,
    UsesRandomness,
    UsesWebhooks,
)
from vigil_core.services.limits.admission import require_room_for
from vigil_core.services.messages import DeliveryRetry
from vigil_core.services.optimistic import retry_on_conflict, update_with_retry
from vigil_core.store.keys import delivery_due_id
from vigil_core.store.table import ConditionFailed


class ManageWebhooksContext(
    UsesWebhooks, UsesMessageQueues, UsesClock, UsesRandomness, UsesAllowedPrivateHosts, UsesLimits, Protocol
):
    """The webhooks, the sweeper's queue, the time, random secrets, and the exempt hosts of the outbound policy."""


def put_webhook(ctx: ManageWebhooksContext, webhook: Webhook) -> tuple[Webhook, bool]:
    """Create a webhook or replace its definition.

    An empty secret keeps the current secret, or creates one for a new webhook.

    Returns:
        The stored webhook, and True if it is new.

    Raises:
        RequestLimitExceeded: The namespace has too many webhooks.
        ValidationFailed: The outbound policy forbids the URL.
    """
    if webhook.url is not None:
        _check_address(ctx, webhook.url, "/url")

    def change(before: Webhook | None) -> Webhook:
        if before is None:
            require_room_for(ctx, webhook.namespace, "webhooks")
            return replace(webhook, secret=webhook.secret or _new_secret(ctx))
        return replace(webhook, secret=webhook.secret or before.secret).as_next_version(before, ctx.now())

    return _change(ctx, webhook.namespace, webhook.name, change)


def rotate_secret(ctx: ManageWebhooksContext, namespace: str, name: str, secret: str | None) -> Webhook:
    """Replace the signing secret of a webhook by the given one, or by a new one.

    For one day, deliveries are signed with the replaced secret as well, whatever follows.

    Raises:
        WebhookNotFound: There is no such webhook.
        InvalidTransition: Too many replaced secrets are still valid.
    """

    def change(before: Webhook | None) -> Webhook:
        if before is None:
            raise WebhookNotFound(name)
        return replace(before, secret=secret or _new_secret(ctx)).as_next_version(before, ctx.now())

    return _change(ctx, namespace, name, change)[0]


def find_webhook(ctx: ManageWebhooksContext, namespace: str, name: str) -> Webhook:
    """Return a webhook.

    Raises:
        WebhookNotFound: There is no such webhook.
    """
    webhook = ctx.webhooks.find(namespace, name)
    if webhook is None:
        raise WebhookNotFound(name)
    return webhook


def delete_webhook(ctx: ManageWebhooksContext, namespace: str, name: str) -> None:
    """Delete a webhook. Its pending deliveries are dropped.

    Raises:
        WebhookNotFound: There is no such webhook.
    """
    if not ctx.webhooks.remove(namespace, name):
        raise WebhookNotFound(name)


def replay_delivery(ctx: ManageWebhooksContext, namespace: str, name: str, delivery_id: str) -> Delivery:
    """Send a delivery again, whatever its status, with all its attempts available.

    Raises:
        WebhookNotFound: There is no such webhook.
        DeliveryNotFound: The webhook has no such delivery.
        InvalidTransition: The event of the delivery could not be stored.
    """
    find_webhook(ctx, namespace, name)

    def replay() -> Delivery:
        before = ctx.webhooks.find_delivery(namespace, name, delivery_id)
        if before is None:
            raise DeliveryNotFound(delivery_id)
        if not before.body:
            raise InvalidTransition(f"Delivery {delivery_id} cannot be replayed: its event could not be stored")
        after = before.replayed(ctx.now())
        if not ctx.webhooks.save_delivery(before, after, check_next_attempt=False):
            raise StoreConflict(f"Delivery {delivery_id} has changed")
        return after

    replayed = retry_on_conflict(replay, sleep=ctx.sleep, subject=f"delivery {delivery_id}", retry_on=ConditionFailed)
    # The message only saves time: the sweeper finds the due row within a minute, also if the message is lost.
    message = DeliveryRetry(namespace=namespace, id=delivery_due_id(name, delivery_id))
    ctx.message_queues.send_to_sweeper(message.to_json(), 0)
    return replayed


def check_wait_webhook(ctx: ManageWebhooksContext, namespace: str, url: str, pointer: str) -> None:
    """Check the webhook URL of a wait.

    Raises:
        ValidationFailed: The outbound policy forbids the URL, or the namespace has no enabled webhook `waits`, whose
            secret signs the delivery.
    """
    _check_address(ctx, url, pointer)
    signing_webhook = ctx.webhooks.find(namespace, WAITS_WEBHOOK)
    if signing_webhook is None or not signing_webhook.enabled:
        detail = f"there is no signing secret: create and enable it with PUT /v1/webhooks/{WAITS_WEBHOOK}"
        raise ValidationFailed.at(pointer, detail)


def _change(
    ctx: ManageWebhooksContext, namespace: str, name: str, change: Callable[[Webhook | None], Webhook]
) -> tuple[Webhook, bool]:
    def save(before: Webhook | None, after: Webhook) -> tuple[Webhook, bool]:
        ctx.webhooks.save(before, after)
        return after, before is None

    return update_with_retry(
        lambda: ctx.webhooks.find(namespace, name),
        change,
        save,
        sleep=ctx.sleep,
        subject=f"webhook {name}",
        retry_on=ConditionFailed,
    )


def _check_address(ctx: ManageWebhooksContext, url: str, pointer: str) -> None:
    try:
        parse_outbound_url(url, ctx.allowed_private_hosts)
    except TargetRefused as error:
        raise ValidationFailed([FieldProblem(pointer=pointer, detail=error.message, code=error.code)]) from error


def _new_secret(ctx: ManageWebhooksContext) -> str:
    return new_secret(ctx.random_bytes(SECRET_BYTES))
