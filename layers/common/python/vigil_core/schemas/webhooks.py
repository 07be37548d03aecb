"""Request models of webhooks."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from vigil_core.domain.outbound_policy import MAX_URL_CHARS
from vigil_core.domain.webhooks import WAITS_WEBHOOK, is_event_pattern, is_secret
from vigil_core.schemas.base import Message, RequestModel

MAX_PATTERNS = 50


def _require_event_pattern(value: str) -> str:
    if not is_event_pattern(value):
        raise ValueError("must be a type of event, as in vigil.job.completed, or vigil.job.*, or *")
    return value


def _require_secret(value: str) -> str:
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
    AfterValidator(_require_secret),
]
EventPattern = Annotated[
    str,
    Field(
        max_length=128,
        json_schema_extra={"pattern": "^(\\*|vigil(\\.[a-z_]+){0,2}\\.\\*|vigil\\.[a-z_]+\\.[a-z_]+)$"},
    ),
    AfterValidator(_require_event_pattern),
]


class WebhookBody(RequestModel):
    """The whole definition of a webhook. Without `secret` it keeps its current secret, or receives a new one."""

    url: Annotated[str, Field(min_length=1, max_length=MAX_URL_CHARS)] | None = Field(
        default=None,
        examples=["https://hooks.example.com/vigil"],
        description=f"An https URL outside private networks. Required, except for `{WAITS_WEBHOOK}`, which has no URL",
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
        description="Types of events, prefixes that end in `.*`, or `*`",
    )
    enabled: bool | None = Field(
        default=None, description="True when absent: a PUT without it enables a disabled webhook"
    )
    description: Message | None = None
    secret: WebhookSecret | None = Field(
        default=None, description="A new signing secret. The previous secret also signs for one more day"
    )


class RotateSecretBody(RequestModel):
    """The next signing secret."""

    secret: WebhookSecret | None = Field(default=None, description="Vigil makes a secret when absent")
