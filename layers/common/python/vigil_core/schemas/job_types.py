"""Request models of job types."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, create_model

from vigil_core.domain.exact_json import integral_to_int
from vigil_core.domain.executors import targets
from vigil_core.domain.jobs.job import Executor
from vigil_core.domain.jobs.stages import COMPLETE, DEFAULT_STAGES, INCOMPLETE, MAX_STAGES, SUBMIT
from vigil_core.schemas.base import Message, Name, QueueName, RequestModel, max_json_bytes
from vigil_core.schemas.jobs import NewJobBody

MAX_PART_BYTES = 64 * 1024
"""Limit of `defaults` and of `payload_schema` as JSON. Every creation of a job reads both."""
MAX_TARGET_BYTES = 16 * 1024
FUNCTION_PATTERN = (
    r"^(arn:aws[a-z-]*:lambda:[a-z0-9-]+:[0-9]{12}:function:)?[A-Za-z0-9_-]{1,64}(:[A-Za-z0-9_$-]{1,128})?$"
)
"""The name or ARN of a Lambda function, with or without a version or alias."""
EXCLUDED_DEFAULTS = {"job_id", "job_type", "payload_ref", "batch"}

check_part_size = max_json_bytes(MAX_PART_BYTES)

JobDefaults: type[RequestModel] = create_model(
    "JobDefaults",
    __base__=RequestModel,
    __doc__="Members that a creation of this type has unless it sets them. `fields` and `tags` are merged with its own",
    **{
        name: (field.annotation, field)
        for name, field in NewJobBody.model_fields.items()
        if name not in EXCLUDED_DEFAULTS
    },  # type: ignore[call-overload]
)


class LambdaTargetBody(RequestModel):
    """The function that executor `lambda` invokes."""

    function: Annotated[str, Field(pattern=FUNCTION_PATTERN)] = Field(description="Name or ARN of the function")
    lease: Annotated[int, Field(ge=10, le=targets.MAX_LEASE_S), BeforeValidator(integral_to_int)] | None = Field(
        default=None,
        description="Longest time until the first heartbeat and between two heartbeats, in seconds. "
        f"{targets.DEFAULT_LEASE_S} when absent",
    )


class HttpTargetBody(RequestModel):
    """The request that executor `http` sends.

    Strings in `url`, `headers` and `body` may have placeholders such as `{{payload.name}}`.
    """

    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] | None = Field(
        default=None, description="`POST` when absent"
    )
    url: Annotated[str, Field(min_length=1, max_length=targets.MAX_URL_CHARS)] = Field(
        examples=["https://chroma.example.com/api/v2/collections/{{payload.collection}}/add"],
        description="Scheme and host have no placeholders. Values in the rest are percent-encoded",
    )
    headers: (
        Annotated[dict[str, Annotated[str, Field(max_length=targets.MAX_HEADER_CHARS)]], Field(max_length=50)] | None
    ) = Field(default=None, examples=[{"authorization": "Bearer {{secret:ssm:/chroma-token}}"}])
    body: Any = Field(
        default=None,
        examples=[{"ids": "{{payload.ids}}", "note": "of job {{job.id}}"}],
        description="Sent as JSON. A string that is exactly one placeholder becomes the value, of any type",
    )
    timeout: Annotated[int, Field(ge=1, le=targets.MAX_CALL_TIMEOUT_S), BeforeValidator(integral_to_int)] | None = (
        Field(default=None, description=f"Seconds for the whole call. {targets.DEFAULT_CALL_TIMEOUT_S} when absent")
    )


class JobTypeBody(RequestModel):
    """The whole definition of a job type. An absent member has its default."""

    executor: Executor | None = Field(
        default=None,
        description="What runs the jobs. `worker` (default): a worker claims them. `lambda` and `http`: Vigil calls "
        "`target`. `none`: an outside process runs them and reports",
    )
    target: Annotated[
        dict[str, Any] | None,
        AfterValidator(max_json_bytes(MAX_TARGET_BYTES)),
        WithJsonSchema(
            {"anyOf": [LambdaTargetBody.model_json_schema(), HttpTargetBody.model_json_schema(), {"type": "null"}]}
        ),
    ] = Field(default=None, description="Required by the executors `lambda` and `http`, and only for them")
    queue: QueueName | None = Field(default=None, description="`default` when absent")
    stages: Annotated[list[Name], Field(min_length=1, max_length=MAX_STAGES)] | None = Field(
        default=None,
        examples=[["flash", "boot", "test"]],
        description=f"The stages in their order. `{SUBMIT}` is always the first and `{COMPLETE}` the last, listed or "
        f"not. `{INCOMPLETE}` has no position. When absent: {', '.join(DEFAULT_STAGES)}",
    )
    defaults: Annotated[JobDefaults | None, BeforeValidator(check_part_size)] = None
    payload_schema: Annotated[dict[str, Any] | None, AfterValidator(check_part_size)] = Field(
        default=None,
        examples=[{"type": "object", "required": ["kernel"]}],
        description="A JSON Schema, draft 2020-12, that every payload must satisfy",
    )
    description: Message | None = None
