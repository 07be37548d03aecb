"""The routes of webhooks."""

from __future__ import annotations

from typing import Any

from vigil_core.api.routing import Call, ResponseSpec, RouteResponse, Routes
from vigil_core.api.webhooks.models import DeliveryList, DeliveryView, WebhookList, WebhookView, parse_webhook
from vigil_core.domain.access import Scope
from vigil_core.domain.errors import DeliveryNotFound, InvalidTransition, RequestLimitExceeded, WebhookNotFound
from vigil_core.schemas.base import NoContent, PageQuery, is_valid_name
from vigil_core.schemas.webhooks import RotateSecretBody, WebhookBody
from vigil_core.services.webhooks import manage as manage_webhooks

ROUTES = Routes("webhooks")


@ROUTES.route(
    "PUT",
    "/v1/webhooks/{webhook}",
    scope=Scope.ADMIN,
    documented_body=WebhookBody,
    responses={
        200: ResponseSpec(description="The replaced webhook", models=(WebhookView,)),
        201: ResponseSpec(
            description="The new webhook with its secret, which is shown only here", models=(WebhookView,)
        ),
    },
    problems=(InvalidTransition, RequestLimitExceeded),
)
def put_webhook(call: Call, webhook: str, body: Any) -> RouteResponse:
    """Create or replace a webhook.

    Without `secret` in the body it keeps its secret. It receives the events from now on.
    """
    definition = parse_webhook(call.namespace, webhook, body, call.context.now())
    stored, is_new = manage_webhooks.put_webhook(call.context, definition)
    return RouteResponse(status=201 if is_new else 200, body=WebhookView.from_domain(stored, with_secret=is_new))


@ROUTES.route(
    "GET",
    "/v1/webhooks",
    scope=Scope.ADMIN,
    responses={200: ResponseSpec(description="All webhooks, sorted by name", models=(WebhookList,))},
)
def list_webhooks(call: Call) -> RouteResponse:
    """List the webhooks."""
    webhooks = call.context.webhooks.find_all(call.namespace)
    return RouteResponse(status=200, body=WebhookList(webhooks=list(map(WebhookView.from_domain, webhooks))))


@ROUTES.route(
    "GET",
    "/v1/webhooks/{webhook}",
    scope=Scope.ADMIN,
    responses={200: ResponseSpec(description="The webhook", models=(WebhookView,))},
    problems=(WebhookNotFound,),
)
def get_webhook(call: Call, webhook: str) -> RouteResponse:
    """Get a webhook without its secret."""
    stored = manage_webhooks.find_webhook(call.context, call.namespace, _require_valid_name(webhook))
    return RouteResponse(status=200, body=WebhookView.from_domain(stored))


@ROUTES.route(
    "DELETE",
    "/v1/webhooks/{webhook}",
    scope=Scope.ADMIN,
    responses={204: ResponseSpec(description="The webhook is deleted")},
    problems=(WebhookNotFound,),
)
def delete_webhook(call: Call, webhook: str) -> RouteResponse:
    """Delete a webhook.

    Pending deliveries are dropped.
    """
    manage_webhooks.delete_webhook(call.context, call.namespace, _require_valid_name(webhook))
    return RouteResponse(status=204)


@ROUTES.route(
    "POST",
    "/v1/webhooks/{webhook}/rotate-secret",
    scope=Scope.ADMIN,
    responses={
        200: ResponseSpec(
            description="The webhook with its new secret, which is shown only here", models=(WebhookView,)
        )
    },
    problems=(WebhookNotFound, InvalidTransition),
)
def rotate_webhook_secret(call: Call, webhook: str, body: RotateSecretBody) -> RouteResponse:
    """Replace the signing secret of a webhook.

    For one day, messages also have a signature of the replaced secret. At most four replaced secrets are valid at once.
    """
    stored = manage_webhooks.rotate_secret(call.context, call.namespace, _require_valid_name(webhook), body.secret)
    return RouteResponse(status=200, body=WebhookView.from_domain(stored, with_secret=True))


@ROUTES.route(
    "GET",
    "/v1/webhooks/{webhook}/deliveries",
    scope=Scope.ADMIN,
    responses={200: ResponseSpec(description="One page, newest event first", models=(DeliveryList,))},
    problems=(WebhookNotFound,),
)
def list_deliveries(call: Call, webhook: str, query: PageQuery) -> RouteResponse:
    """List the deliveries of a webhook with their attempts.

    A delivery is kept for 30 days after its last attempt.
    """
    name = manage_webhooks.find_webhook(call.context, call.namespace, _require_valid_name(webhook)).name
    tokens, scope = call.services.page_tokens, ["list_deliveries", name]
    before = tokens.verify(call.namespace, query.page_token, list_identity=scope)
    page = call.context.webhooks.deliveries(call.namespace, name, before_id=before, limit=query.page_size)
    cursor = page[-1].delivery_id if len(page) == query.page_size else None
    return RouteResponse(
        status=200, body=DeliveryList.from_domain(page, tokens.sign(call.namespace, cursor, list_identity=scope))
    )


@ROUTES.route(
    "POST",
    "/v1/webhooks/{webhook}/deliveries/{delivery_id}/replay",
    scope=Scope.ADMIN,
    body=NoContent,
    responses={202: ResponseSpec(description="The delivery, which Vigil sends again", models=(DeliveryView,))},
    problems=(WebhookNotFound, DeliveryNotFound, InvalidTransition),
)
def replay_delivery(call: Call, webhook: str, delivery_id: str) -> RouteResponse:
    """Send a delivery once more under the same id.

    It may have any status. Its attempts start again.
    """
    if not is_valid_name(delivery_id):
        raise DeliveryNotFound(delivery_id)
    delivery = manage_webhooks.replay_delivery(call.context, call.namespace, _require_valid_name(webhook), delivery_id)
    return RouteResponse(status=202, body=DeliveryView.from_domain(delivery))


def _require_valid_name(name: str) -> str:
    """Return the name.

    Raises:
        WebhookNotFound: No definition can have this name.
    """
    if not is_valid_name(name):
        raise WebhookNotFound(name)
    return name
