"""Base classes and shared types of the models."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
)

from vigil_core.domain.exact_json import dumps, integral_to_int
from vigil_core.domain.ids import is_uuid7
from vigil_core.domain.jobs.conditions import ConditionError, check_expression
from vigil_core.domain.jobs.job import MAX_FIELDS_BYTES, RESERVED_FIELD_NAMES
from vigil_core.domain.jobs.retry import MAX_DELAY_S
from vigil_core.domain.text_limits import MAX_MESSAGE_CHARS
from vigil_core.domain.text_rule import (
    LABEL_PATTERN,
    MAX_NAME_CHARS,
    NAME_PATTERN,
    NAME_RULE,
    QUEUE_PATTERN,
    obeys_name_rule,
    sanitize,
)
from vigil_core.domain.timestamps import from_request

MAX_LEASE_S = 43_200
DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 200

UUID7_PATTERN = "^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"
EXAMPLE_ID = "01980c4e-5a00-7c3b-9e21-3f6b0a1d2c4e"


class RequestModel(BaseModel):
    """A body or query of a client. It rejects unknown members and wrong types. Null means absent."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class ResponseModel(BaseModel):
    """A body of a response."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    def to_json(self) -> dict[str, Any]:
        """Return the members that are set, as JSON values."""
        return self.model_dump(by_alias=True, exclude_unset=True)


def require_valid_expression(text: str) -> str:
    """Return the JMESPath expression unchanged.

    Raises:
        ValueError: The text is not a JMESPath expression.
    """
    try:
        check_expression(text)
    except ConditionError as error:
        raise ValueError(f"is no JMESPath expression: {error}") from error
    return text


def require_name_rule(value: str) -> str:
    """Return a name unchanged. The pattern of a name lacks the noncharacters beyond the first plane.

    Raises:
        ValueError: The name contains one of them.
    """
    if not value.isascii() and not obeys_name_rule(value):
        raise ValueError(NAME_RULE)
    return value


def max_json_bytes(limit: int) -> Callable[[Any], Any]:
    """Return a validator that limits the size of a value as JSON."""

    def check(value: Any) -> Any:
        if value is not None and len(dumps(value).encode()) > limit:
            raise ValueError(f"must take at most {limit} bytes as JSON")
        return value

    return check


def is_valid_name(text: object) -> bool:
    """Return whether a value can be the name of a job type, a schedule or a webhook."""
    try:
        _NAME_ADAPTER.validate_python(text, strict=True)
    except ValidationError:
        return False
    return True


class MessageText:
    """The mark of a text for people, in which Vigil replaces what it cannot store."""


def _sanitize_message(value: object) -> object:
    return sanitize(value) if isinstance(value, str) else value


def _require_uuid7(value: str) -> str:
    if not is_uuid7(value):
        raise ValueError("must be a UUIDv7, in lower case")
    return value


def _require_field_name(value: str) -> str:
    if value in RESERVED_FIELD_NAMES:
        raise ValueError("is the name of a built-in, which no field may have")
    return value


def _limit_fields(value: dict[str, Any]) -> dict[str, Any]:
    non_null_fields = {name: item for name, item in value.items() if item is not None}
    if len(dumps(non_null_fields).encode()) > MAX_FIELDS_BYTES:
        raise ValueError(f"must take at most {MAX_FIELDS_BYTES} bytes as JSON")
    return value


def _parse_progress(value: Any) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | Decimal) or not 0 <= value <= 1:
        raise ValueError("must be a number from 0 to 1")
    # DynamoDB stores 38 digits. 18 decimals are more than a double has, except for the tiniest numbers.
    return abs(round(Decimal(value), 18)).normalize()


def _number_up_to(limit: int) -> Callable[[Any], Decimal]:
    def parse(value: Any) -> Decimal:
        if isinstance(value, bool) or not isinstance(value, int | Decimal) or not 0 <= value <= limit:
            raise ValueError(f"must be a number from 0 to {limit}")
        return round(Decimal(value), 3).normalize()

    return parse


def _parse_page_size(value: Any) -> int:
    if isinstance(value, str) and re.fullmatch("[0-9]{1,3}", value, re.ASCII) and 1 <= int(value) <= MAX_PAGE_SIZE:
        return int(value)
    raise ValueError(f"must be a whole number from 1 to {MAX_PAGE_SIZE}")


Name: TypeAlias = Annotated[
    str, Field(min_length=1, max_length=MAX_NAME_CHARS, pattern=NAME_PATTERN), AfterValidator(require_name_rule)
]
"""A name, type, stage, milestone or key."""
QueueName: TypeAlias = Annotated[
    str, Field(min_length=1, max_length=MAX_NAME_CHARS, pattern=QUEUE_PATTERN), AfterValidator(require_name_rule)
]
"""The name of a queue. It is part of paths, and some gateways decode `/` and `%` in paths."""
Label: TypeAlias = Annotated[str, Field(max_length=1024, pattern=LABEL_PATTERN), AfterValidator(require_name_rule)]
"""An id, tag or token: a name that may be longer, or empty."""
Message: TypeAlias = Annotated[
    str, BeforeValidator(_sanitize_message), Field(max_length=MAX_MESSAGE_CHARS), MessageText()
]
"""A text for people. NUL characters and halves of surrogate pairs are replaced."""
Id: TypeAlias = Annotated[
    str,
    AfterValidator(_require_uuid7),
    WithJsonSchema({"type": "string", "pattern": UUID7_PATTERN, "examples": [EXAMPLE_ID]}),
]
Fields: TypeAlias = Annotated[
    dict[Annotated[Name, AfterValidator(_require_field_name)], Any],
    AfterValidator(_limit_fields),
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {
                "minLength": 1,
                "maxLength": MAX_NAME_CHARS,
                "pattern": NAME_PATTERN,
                "not": {"enum": sorted(RESERVED_FIELD_NAMES)},
            },
            "additionalProperties": True,
            "examples": [{"boot_seconds": 45}],
        }
    ),
]
Progress: TypeAlias = Annotated[
    Decimal, PlainValidator(_parse_progress), WithJsonSchema({"type": "number", "minimum": 0, "maximum": 1})
]
Delay: TypeAlias = Annotated[
    Decimal,
    PlainValidator(_number_up_to(MAX_DELAY_S)),
    WithJsonSchema({"type": "number", "minimum": 0, "maximum": MAX_DELAY_S}),
]
Multiplier: TypeAlias = Annotated[
    Decimal, PlainValidator(_number_up_to(100)), WithJsonSchema({"type": "number", "minimum": 0, "maximum": 100})
]
Timestamp: TypeAlias = Annotated[
    datetime, PlainValidator(from_request), WithJsonSchema({"type": "string", "format": "date-time"})
]
PageSize: TypeAlias = Annotated[
    int,
    PlainValidator(_parse_page_size),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": MAX_PAGE_SIZE, "default": DEFAULT_PAGE_SIZE}),
]
PageToken: TypeAlias = Annotated[str, Field(max_length=1024, description="`next_page_token` of the previous page")]
LeaseToken: TypeAlias = Annotated[
    Label | None,
    Field(
        description="The lease token of the claim. A report without the token of the current lease is 409 `LEASE_LOST`"
    ),
]
Seconds: TypeAlias = Annotated[int, Field(ge=1, le=MAX_DELAY_S), BeforeValidator(integral_to_int)]
LeaseSeconds: TypeAlias = Annotated[int, Field(ge=1, le=MAX_LEASE_S), BeforeValidator(integral_to_int)]
TimestampText: TypeAlias = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
Number: TypeAlias = Annotated[Decimal, WithJsonSchema({"type": "number"})]
Fraction: TypeAlias = Annotated[Decimal, WithJsonSchema({"type": "number", "minimum": 0, "maximum": 1})]

_NAME_ADAPTER: TypeAdapter[str] = TypeAdapter(Name)


class NoContent(RequestModel):
    """An empty body or an empty object."""


class NoQuery(RequestModel):
    """A query without parameters. An unknown parameter is rejected on every route."""


class PageQuery(RequestModel):
    """The page of a list."""

    page_size: PageSize = DEFAULT_PAGE_SIZE
    page_token: PageToken | None = None
