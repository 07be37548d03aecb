"""The routes of webhooks."""

from __future__ import annotations

from typing import Any

from vigil_core.api.jobs.job_type_models import is_name
from vigil_core.api.jobs.models import Nothing, PageQuery
from vigil_core.api.routing import Answer, Call, Routes, Shows
from vigil_core.api.webhooks.models import (
    DeliveryList,
    DeliveryView,
    RotateBody,
    WebhookBody,
    WebhookList,
    WebhookView,
    webhook_of,
)
from vigil_core.domain.access import Scope
from vigil_core.domain.errors import DeliveryNotFound, WebhookNotFound
from vigil_core.services.webhooks import manage as manage_webhooks

ROUTES = Routes()


@ROUTES.route(
    "PUT",
    "/v1/webhooks/{webhook}",
    scope=Scope.ADMIN,
    documented_body=WebhookBody,
    answers={
        200: Shows(what="The webhook, which there was before", models=(WebhookView,)),
        201: Shows(what="The new webhook, with its secret, shown this once", models=(WebhookView,)),
    },
)
def put_webhook(call: Call, webhook: str, body: Any) -> Answer:
    """Put a webhook: all of it but its secret, which it keeps. What happens from now on is told to it."""
    wanted = webhook_of(call.namespace, webhook, body, call.context.now())
    stored, new = manage_webhooks.put_webhook(call.context, wanted)
    return Answer(status=201 if new else 200, body=WebhookView.of(stored, with_secret=new))


@ROUTES.route(
    "GET",
    "/v1/webhooks",
    scope=Scope.ADMIN,
    answers={200: Shows(what="All of them, by name", models=(WebhookList,))},
)
def list_webhooks(call: Call) -> Answer:
    """List the webhooks."""
    found = call.context.webhooks.all(call.namespace)
    return Answer(status=200, body=WebhookList(webhooks=list(map(WebhookView.of, found))))


@ROUTES.route(
    "GET",
    "/v1/webhooks/{webhook}",
    scope=Scope.ADMIN,
    answers={200: Shows(what="The webhook", models=(WebhookView,))},
    problems=(WebhookNotFound,),
)
def get_webhook(call: Call, webhook: str) -> Answer:
    """Get a webhook, without its secret."""
    found = manage_webhooks.find_webhook(call.context, call.namespace, _known(webhook))
    return Answer(status=200, body=WebhookView.of(found))


@ROUTES.route(
    "DELETE",
    "/v1/webhooks/{webhook}",
    scope=Scope.ADMIN,
    answers={204: Shows(what="The webhook is gone")},
    problems=(WebhookNotFound,),
)
def delete_webhook(call: Call, webhook: str) -> Answer:
    """Delete a webhook. What it has not been told by now it will not be."""
    manage_webhooks.delete_webhook(call.context, call.namespace, _known(webhook))
    return Answer(status=204)


@ROUTES.route(
    "POST",
    "/v1/webhooks/{webhook}/rotate-secret",
    scope=Scope.ADMIN,
    answers={200: Shows(what="The webhook, with its new secret, shown this once", models=(WebhookView,))},
    problems=(WebhookNotFound,),
)
def rotate_webhook_secret(call: Call, webhook: str, body: RotateBody) -> Answer:
    """Change a webhook's secret. For a day messages are signed with the former one as well."""
    stored = manage_webhooks.rotate_secret(call.context, call.namespace, _known(webhook), body.secret)
    return Answer(status=200, body=WebhookView.of(stored, with_secret=True))


@ROUTES.route(
    "GET",
    "/v1/webhooks/{webhook}/deliveries",
    scope=Scope.ADMIN,
    answers={200: Shows(what="One page, newest event first", models=(DeliveryList,))},
    problems=(WebhookNotFound,),
)
def list_deliveries(call: Call, webhook: str, query: PageQuery) -> Answer:
    """List what a webhook was sent or is to be sent, with every try. Kept for 30 days after the last."""
    name = manage_webhooks.find_webhook(call.context, call.namespace, _known(webhook)).name
    tokens, of = call.services.page_tokens, ["list_deliveries", name]
    before = tokens.place(call.namespace, query.page_token, of=of)
    found = call.context.webhooks.deliveries(call.namespace, name, before_id=before, limit=query.page_size)
    place = found[-1].delivery_id if len(found) == query.page_size else None
    return Answer(status=200, body=DeliveryList.of(found, tokens.sign(call.namespace, place, of=of)))


@ROUTES.route(
    "POST",
    "/v1/webhooks/{webhook}/deliveries/{delivery_id}/replay",
    scope=Scope.ADMIN,
    body=Nothing,
    answers={202: Shows(what="The delivery, which is sent once more", models=(DeliveryView,))},
    problems=(WebhookNotFound, DeliveryNotFound),
)
def replay_delivery(call: Call, webhook: str, delivery_id: str) -> Answer:
    """Send a delivery once more, under its old id, however it stands, and begin its tries anew."""
    if not is_name(delivery_id):
        raise DeliveryNotFound(delivery_id)
    delivery = manage_webhooks.replay(call.context, call.namespace, _known(webhook), delivery_id)
    return Answer(status=202, body=DeliveryView.of(delivery))


def _known(name: str) -> str:
    """The name, if it can be one. Raises WebhookNotFound."""
    if not is_name(name):
        raise WebhookNotFound(name)
    return name
