"""What travels over HTTP for webhooks."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from vigil_core.api.jobs.job_type_models import is_valid_name
from vigil_core.api.jobs.models import RequestModel, ResponseModel, Text, TimestampText
from vigil_core.api.validation import parse_body
from vigil_core.domain.errors import FieldProblem, ValidationFailed
from vigil_core.domain.exact_json import JsonValue
from vigil_core.domain.outbound_policy import MAX_URL_CHARS
from vigil_core.domain.timestamps import to_text
from vigil_core.domain.webhooks import (
    WAITS_WEBHOOK,
    Delivery,
    DeliveryAttempt,
    DeliveryStatus,
    Webhook,
    is_event_pattern,
    is_secret,
)

MAX_PATTERNS = 50


def _pattern(value: str) -> str:
    if not is_event_pattern(value):
        raise ValueError("must be a type of event, as in vigil.job.completed, or vigil.job.*, or *")
    return value


def _secret(value: str) -> str:
    if not is_secret(value):
        raise ValueError("must be whsec_ and the Base64 of 24 to 64 bytes")
    return value


WebhookSecret = Annotated[
    str,
    Field(
        max_length=128,
        examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
        json_schema_extra={
            "pattern": "^whsec_(([A-Za-z0-9+/]{4}){8,20}([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{4})?"
            "|([A-Za-z0-9+/]{4}){21}([A-Za-z0-9+/]{2}==)?)$"
        },
    ),
    AfterValidator(_secret),
]
EventPattern = Annotated[
    str,
    Field(
        max_length=128,
        json_schema_extra={"pattern": "^(\\*|vigil(\\.[a-z_]+){0,2}\\.\\*|vigil\\.[a-z_]+\\.[a-z_]+)$"},
    ),
    AfterValidator(_pattern),
]


class WebhookBody(RequestModel):
    """A webhook, whole, but for its secret: without one it keeps the one it has, or is given one."""

    url: Annotated[str, Field(min_length=1, max_length=MAX_URL_CHARS)] | None = Field(
        default=None,
        examples=["https://hooks.example.com/vigil"],
        description=f"https, outside private networks. Every webhook has one except `{WAITS_WEBHOOK}`, which has none",
    )
    events: (
        Annotated[
            list[EventPattern],
            Field(min_length=1, max_length=MAX_PATTERNS),
        ]
        | None
    ) = Field(
        default=None,
        examples=[["vigil.job.failed", "vigil.wait.*"]],
        description="Types of events, or beginnings of them that end in `.*`, or `*`",
    )
    enabled: bool | None = Field(default=None, description="true when absent: so a disabled webhook is enabled again")
    description: Text | None = None
    secret: WebhookSecret | None = Field(
        default=None, description="The former one goes on signing for a day, beside this one"
    )


class RotateSecretBody(RequestModel):
    """The next secret."""

    secret: WebhookSecret | None = Field(default=None, description="One is made when this is absent")


class WebhookView(ResponseModel):
    """A webhook."""

    name: str
    url: str | None
    events: list[str]
    enabled: bool
    disabled_because: str | None
    description: str | None
    secret: str | None = Field(description="Shown once: in the answer to what made it. null in every other answer")
    created_at: TimestampText
    updated_at: TimestampText

    @classmethod
    def from_domain(cls, webhook: Webhook, *, with_secret: bool = False) -> WebhookView:
        """The webhook."""
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
    """Every webhook of the namespace, by name."""

    webhooks: list[WebhookView]


class DeliveryAttemptView(ResponseModel):
    """One try: the status that was answered, or why there is none."""

    at: TimestampText
    duration_ms: int
    status: int | None
    error: str | None

    @classmethod
    def from_domain(cls, attempt: DeliveryAttempt) -> DeliveryAttemptView:
        """The try."""
        return cls(at=to_text(attempt.at), duration_ms=attempt.duration_ms, status=attempt.status, error=attempt.error)


class DeliveryView(ResponseModel):
    """One event for one webhook."""

    delivery_id: str = Field(description="Sent as `webhook-id`: the same in every try")
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
        """The delivery."""
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
    """One page of deliveries, newest event first; only an absent token is the end."""

    deliveries: list[DeliveryView]
    next_page_token: str | None

    @classmethod
    def from_domain(cls, deliveries: Iterable[Delivery], next_page_token: str | None) -> DeliveryList:
        """The page."""
        return cls(deliveries=list(map(DeliveryView.from_domain, deliveries)), next_page_token=next_page_token)


def parse_webhook(namespace: str, name: str, body: JsonValue, now: datetime) -> Webhook:
    """The webhook that a request describes, its secret empty when it names none. Raises ValidationFailed with every
    problem."""
    if not is_valid_name(name):
        raise ValidationFailed.at("{webhook}", "must be 1 to 128 characters, none a control character")
    parsed: Any = parse_body(WebhookBody, body)
    problems = []
    for part in ("url", "events"):
        if (getattr(parsed, part) is None) != (name == WAITS_WEBHOOK):
            detail = (
                f"the webhook '{WAITS_WEBHOOK}' takes none: each wait names its own"
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
        disabled_reason="It was put so" if parsed.enabled is False else None,
        description=parsed.description,
        secret=parsed.secret or "",
        created_at=now,
        updated_at=now,
    )
