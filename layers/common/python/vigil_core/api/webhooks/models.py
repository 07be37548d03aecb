"""Response models of webhooks, and the parsing of a definition."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from pydantic import Field

from vigil_core.domain.errors import FieldProblem, ValidationFailed
from vigil_core.domain.exact_json import JsonValue
from vigil_core.domain.timestamps import to_text
from vigil_core.domain.webhooks import WAITS_WEBHOOK, Delivery, DeliveryAttempt, DeliveryStatus, Webhook
from vigil_core.schemas.base import ResponseModel, TimestampText, is_valid_name
from vigil_core.schemas.validation import parse_body
from vigil_core.schemas.webhooks import WebhookBody


class WebhookView(ResponseModel):
    """A webhook."""

    name: str
    url: str | None
    events: list[str]
    enabled: bool
    disabled_because: str | None
    description: str | None
    secret: str | None = Field(
        description="The new secret, in the answer to the request that creates or rotates it. Otherwise null"
    )
    created_at: TimestampText
    updated_at: TimestampText

    @classmethod
    def from_domain(cls, webhook: Webhook, *, with_secret: bool = False) -> WebhookView:
        """Return the webhook. Its secret is null unless `with_secret` is true."""
        return cls(
            name=webhook.name,
            url=webhook.url,
            events=list(webhook.events),
            enabled=webhook.enabled,
            disabled_because=webhook.disabled_reason,
            description=webhook.description,
            secret=webhook.secret if with_secret else None,
            created_at=to_text(webhook.created_at),
            updated_at=to_text(webhook.updated_at),
        )


class WebhookList(ResponseModel):
    """Every webhook of the namespace, sorted by name."""

    webhooks: list[WebhookView]


class DeliveryAttemptView(ResponseModel):
    """One HTTP request of a delivery, with the status of the answer, or the reason why there is no answer."""

    at: TimestampText
    duration_ms: int
    status: int | None
    error: str | None

    @classmethod
    def from_domain(cls, attempt: DeliveryAttempt) -> DeliveryAttemptView:
        """Return the attempt."""
        return cls(at=to_text(attempt.at), duration_ms=attempt.duration_ms, status=attempt.status, error=attempt.error)


class DeliveryView(ResponseModel):
    """One event for one webhook."""

    delivery_id: str = Field(description="Sent as `webhook-id`, the same in every attempt")
    webhook: str
    event_id: str
    event_type: str
    status: DeliveryStatus
    error: str | None
    tries: list[DeliveryAttemptView]
    next_try_at: TimestampText | None
    created_at: TimestampText
    finished_at: TimestampText | None

    @classmethod
    def from_domain(cls, delivery: Delivery) -> DeliveryView:
        """Return the delivery."""
        return cls(
            delivery_id=delivery.delivery_id,
            webhook=delivery.webhook,
            event_id=delivery.event_id,
            event_type=delivery.event_type,
            status=delivery.status,
            error=delivery.error,
            tries=list(map(DeliveryAttemptView.from_domain, delivery.attempts)),
            next_try_at=to_text(delivery.next_attempt_at) if delivery.next_attempt_at else None,
            created_at=to_text(delivery.created_at),
            finished_at=to_text(delivery.finished_at) if delivery.finished_at else None,
        )


class DeliveryList(ResponseModel):
    """One page of deliveries, newest event first. Only a null token marks the end."""

    deliveries: list[DeliveryView]
    next_page_token: str | None

    @classmethod
    def from_domain(cls, deliveries: Iterable[Delivery], next_page_token: str | None) -> DeliveryList:
        """Return the page."""
        return cls(deliveries=list(map(DeliveryView.from_domain, deliveries)), next_page_token=next_page_token)


def parse_webhook(namespace: str, name: str, body: JsonValue, now: datetime) -> Webhook:
    """Parse the definition of a webhook. Its secret is empty if the body has none.

    Raises:
        ValidationFailed: With every problem.
    """
    if not is_valid_name(name):
        raise ValidationFailed.at("{webhook}", "must be 1 to 128 characters, none a control character")
    parsed = parse_body(WebhookBody, body)
    problems = []
    for part in ("url", "events"):
        if (getattr(parsed, part) is None) != (name == WAITS_WEBHOOK):
            detail = (
                f"must be absent for the webhook '{WAITS_WEBHOOK}': each wait has its own"
                if name == WAITS_WEBHOOK
                else "is required"
            )
            problems.append(FieldProblem(pointer=f"/{part}", detail=detail))
    if problems:
        raise ValidationFailed(problems)
    return Webhook(
        namespace=namespace,
        name=name,
        url=parsed.url,
        events=tuple(dict.fromkeys(parsed.events or ())),
        enabled=parsed.enabled is not False,
        disabled_reason="Disabled by its definition" if parsed.enabled is False else None,
        description=parsed.description,
        secret=parsed.secret or "",
        created_at=now,
        updated_at=now,
    )
