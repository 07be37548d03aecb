"""Keep webhooks: put, rotate their secret, forget them, look at what they were sent, and send it again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from vigil_core.domain.errors import (
    DeliveryNotFound,
    FieldProblem,
    StoreConflict,
    TargetRefused,
    ValidationFailed,
    WebhookNotFound,
)
from vigil_core.domain.exact_json import dumps
from vigil_core.domain.outbound_policy import parse_outbound_url
from vigil_core.domain.webhooks import MAX_WEBHOOKS, SECRET_BYTES, WAITS_WEBHOOK, Delivery, Webhook, new_secret
from vigil_core.services.context import (
    UsesAllowedPrivateHosts,
    UsesClock,
    UsesMessageQueues,
    UsesRandomness,
    UsesWebhooks,
)
from vigil_core.services.jobs.transitions import MAX_ATTEMPTS
from vigil_core.store.keys import delivery_due_id
from vigil_core.store.table import ConditionFailed


class ManageWebhooksContext(
    UsesWebhooks, UsesMessageQueues, UsesClock, UsesRandomness, UsesAllowedPrivateHosts, Protocol
):
    """What this module uses of the outside world."""


def put_webhook(ctx: ManageWebhooksContext, webhook: Webhook) -> tuple[Webhook, bool]:
    """Store a webhook under its name, over what stands there; the webhook as it is now, and whether it is new. An empty
    secret stands for the one that it has, or for a new one.

    Raises:
        ValidationFailed: Vigil does not call this address, or there are too many webhooks.
    """
    if webhook.url is not None:
        _check_address(ctx, webhook.url, "/url")

    def change(before: Webhook | None) -> Webhook:
        if before is None:
            if len(ctx.webhooks.find_all(webhook.namespace)) >= MAX_WEBHOOKS:
                raise ValidationFailed.at("{webhook}", f"a namespace has at most {MAX_WEBHOOKS} webhooks")
            return replace(webhook, secret=webhook.secret or _new_secret(ctx))
        return replace(webhook, secret=webhook.secret or before.secret).as_next_version(before, ctx.now())

    return _change(ctx, webhook.namespace, webhook.name, change)


def rotate_secret(ctx: ManageWebhooksContext, namespace: str, name: str, secret: str | None) -> Webhook:
    """Give a webhook this secret, or a new one; for a day messages are signed with the former as well.

    Raises:
        WebhookNotFound: there is none of this name.
    """

    def change(before: Webhook | None) -> Webhook:
        if before is None:
            raise WebhookNotFound(name)
        return replace(before, secret=secret or _new_secret(ctx)).as_next_version(before, ctx.now())

    return _change(ctx, namespace, name, change)[0]


def find_webhook(ctx: ManageWebhooksContext, namespace: str, name: str) -> Webhook:
    """The webhook as it is now. Raises WebhookNotFound."""
    webhook = ctx.webhooks.find(namespace, name)
    if webhook is None:
        raise WebhookNotFound(name)
    return webhook


def delete_webhook(ctx: ManageWebhooksContext, namespace: str, name: str) -> None:
    """Forget a webhook; what it has not been told by now it will not be. Raises WebhookNotFound."""
    if not ctx.webhooks.remove(namespace, name):
        raise WebhookNotFound(name)


def replay_delivery(ctx: ManageWebhooksContext, namespace: str, name: str, delivery_id: str) -> Delivery:
    """Send a delivery once more, in whatever state it is, and begin its tries anew.

    Raises:
        WebhookNotFound: there is none of this name.
        DeliveryNotFound: it has no such delivery.
    """
    find_webhook(ctx, namespace, name)
    for attempt in range(MAX_ATTEMPTS):
        before = ctx.webhooks.find_delivery(namespace, name, delivery_id)
        if before is None:
            raise DeliveryNotFound(delivery_id)
        after = before.replayed(ctx.now())
        if ctx.webhooks.save_delivery(before, after, check_next_attempt=False):
            # The due row alone would have the sweeper do it within a minute, and still does if the message is lost.
            message = {"kind": "delivery", "namespace": namespace, "id": delivery_due_id(name, delivery_id)}
            ctx.message_queues.send_to_sweeper(dumps(message), 0)
            return after
        ctx.sleep(0.01 * attempt)
    raise StoreConflict(f"Delivery {delivery_id} is being changed by too many at once: try again")


def check_wait_webhook(ctx: ManageWebhooksContext, namespace: str, url: str, pointer: str) -> None:
    """Raises ValidationFailed unless Vigil may call the address that a wait names, and can sign what it sends there."""
    _check_address(ctx, url, pointer)
    signing_webhook = ctx.webhooks.find(namespace, WAITS_WEBHOOK)
    if signing_webhook is None or not signing_webhook.enabled:
        detail = f"nothing is there to sign with: an admin first puts, and enables, PUT /v1/webhooks/{WAITS_WEBHOOK}"
        raise ValidationFailed.at(pointer, detail)


def _change(
    ctx: ManageWebhooksContext, namespace: str, name: str, change: Callable[[Webhook | None], Webhook]
) -> tuple[Webhook, bool]:
    for attempt in range(MAX_ATTEMPTS):
        before = ctx.webhooks.find(namespace, name)
        after = change(before)
        try:
            ctx.webhooks.save(before, after)
        except ConditionFailed:
            ctx.sleep(0.01 * attempt)
            continue
        return after, before is None
    raise StoreConflict(f"Webhook {name} is being changed by too many at once: try again")


def _check_address(ctx: ManageWebhooksContext, url: str, pointer: str) -> None:
    try:
        parse_outbound_url(url, ctx.allowed_private_hosts)
    except TargetRefused as error:
        raise ValidationFailed([FieldProblem(pointer=pointer, detail=error.message, code=error.code)]) from error


def _new_secret(ctx: ManageWebhooksContext) -> str:
    return new_secret(ctx.random_bytes(SECRET_BYTES))
