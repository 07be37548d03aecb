"""What travels over HTTP for job types."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError, WithJsonSchema, create_model

from vigil_core.api.jobs.models import (
    MAX_TAGS,
    Name,
    NewJobBody,
    QueueName,
    RequestModel,
    ResponseModel,
    Text,
    TimestampText,
)
from vigil_core.api.validation import parse_body, prefix_pointers
from vigil_core.domain.errors import ValidationFailed
from vigil_core.domain.exact_json import JsonValue, dumps, integral_to_int
from vigil_core.domain.executors import targets as executors
from vigil_core.domain.jobs import job as jobs
from vigil_core.domain.jobs.job_type import JobType
from vigil_core.domain.jobs.stages import COMPLETE, DEFAULT_STAGES, INCOMPLETE, MAX_STAGES, SUBMIT, normalize_stages
from vigil_core.domain.timestamps import to_text
from vigil_core.services.jobs.job_types import check_payloads

MAX_PART_BYTES = 64 * 1024
"""What `defaults` and `payload_schema` take at most, each, as JSON: every creation reads them."""
MAX_TARGET_BYTES = 16 * 1024
FUNCTION_PATTERN = (
    r"^(arn:aws[a-z-]*:lambda:[a-z0-9-]+:[0-9]{12}:function:)?[A-Za-z0-9_-]{1,64}(:[A-Za-z0-9_$-]{1,128})?$"
)
"""A function's name or ARN, with its version or alias or without."""
EXCLUDED_DEFAULTS = {"job_id", "job_type", "payload_ref", "batch"}

_NAME: TypeAdapter[str] = TypeAdapter(Name)


def _max_json_bytes(limit: int) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if value is not None and len(dumps(value).encode()) > limit:
            raise ValueError(f"must take at most {limit} bytes as JSON")
        return value

    return check


check_part_size, _check_target_size = _max_json_bytes(MAX_PART_BYTES), _max_json_bytes(MAX_TARGET_BYTES)

JobDefaults: type[RequestModel] = create_model(
    "JobDefaults",
    __base__=RequestModel,
    __doc__="What a creation of this type says unless it says otherwise. `fields` and `tags` are merged with its own",
    **{
        name: (field.annotation, field)
        for name, field in NewJobBody.model_fields.items()
        if name not in EXCLUDED_DEFAULTS
    },  # type: ignore[call-overload]
)


class LambdaTargetBody(RequestModel):
    """What executor `lambda` has run."""

    function: Annotated[str, Field(pattern=FUNCTION_PATTERN)] = Field(description="Its name or ARN")
    lease: Annotated[int, Field(ge=10, le=executors.MAX_LEASE_S), BeforeValidator(integral_to_int)] | None = Field(
        default=None,
        description=f"Seconds that it may be silent, also before it begins; {executors.DEFAULT_LEASE_S} when absent",
    )


class HttpTargetBody(RequestModel):
    """What executor `http` calls. Strings of `url`, `headers` and `body` have places such as `{{payload.name}}`."""

    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] | None = Field(
        default=None, description="`POST` when absent"
    )
    url: Annotated[str, Field(min_length=1, max_length=executors.MAX_URL_CHARS)] = Field(
        examples=["https://chroma.example.com/api/v2/collections/{{payload.collection}}/add"],
        description="Scheme and host have no places; what is put into the rest is percent-encoded",
    )
    headers: (
        Annotated[dict[str, Annotated[str, Field(max_length=executors.MAX_HEADER_CHARS)]], Field(max_length=50)] | None
    ) = Field(default=None, examples=[{"authorization": "Bearer {{secret:ssm:/chroma-token}}"}])
    body: Any = Field(
        default=None,
        examples=[{"ids": "{{payload.ids}}", "note": "of job {{job.id}}"}],
        description="Sent as JSON. A string that is one place becomes what is put there, whatever its type",
    )
    timeout: Annotated[int, Field(ge=1, le=executors.MAX_CALL_TIMEOUT_S), BeforeValidator(integral_to_int)] | None = (
        Field(default=None, description=f"Seconds for the whole call; {executors.DEFAULT_CALL_TIMEOUT_S} when absent")
    )


class JobTypeBody(RequestModel):
    """A job type, whole: what is absent is as if it had never been given."""

    executor: jobs.Executor | None = Field(
        default=None,
        description="Who runs the jobs. `worker` when absent. `lambda` and `http`: Vigil does, by what `target` says. "
        "`none`: somebody else does, they are only followed",
    )
    target: Annotated[
        dict[str, Any] | None,
        AfterValidator(_check_target_size),
        WithJsonSchema(
            {"anyOf": [LambdaTargetBody.model_json_schema(), HttpTargetBody.model_json_schema(), {"type": "null"}]}
        ),
    ] = Field(default=None, description="Of the executors `lambda` and `http`, and of no other")
    queue: QueueName | None = Field(default=None, description="`default` when absent")
    stages: Annotated[list[Name], Field(min_length=1, max_length=MAX_STAGES)] | None = Field(
        default=None,
        examples=[["flash", "boot", "test"]],
        description=f"In their order. `{SUBMIT}` is always the first and `{COMPLETE}` the last, named or not; "
        f"`{INCOMPLETE}` is in no order. When absent: {', '.join(DEFAULT_STAGES)}",
    )
    defaults: Annotated[JobDefaults | None, BeforeValidator(check_part_size)] = None
    payload_schema: Annotated[dict[str, Any] | None, AfterValidator(check_part_size)] = Field(
        default=None,
        examples=[{"type": "object", "required": ["kernel"]}],
        description="JSON Schema, draft 2020-12, that every payload has to satisfy",
    )
    description: Text | None = None


class JobTypeView(ResponseModel):
    """A job type."""

    name: str
    executor: jobs.Executor
    target: dict[str, Any] | None
    queue: str
    stages: list[str]
    defaults: dict[str, Any]
    payload_schema: dict[str, Any] | None
    description: str | None
    created_at: TimestampText
    updated_at: TimestampText

    @classmethod
    def from_domain(cls, job_type: JobType) -> JobTypeView:
        """The type."""
        return cls(
            name=job_type.name,
            executor=job_type.executor,
            target=None if job_type.target is None else dict(job_type.target),
            queue=job_type.queue,
            stages=list(job_type.stages),
            defaults=dict(job_type.defaults),
            payload_schema=None if job_type.payload_schema is None else dict(job_type.payload_schema),
            description=job_type.description,
            created_at=to_text(job_type.created_at),
            updated_at=to_text(job_type.updated_at),
        )


class JobTypeList(ResponseModel):
    """One page of job types, by name. It may be short; only an absent token is the end."""

    job_types: list[JobTypeView]
    next_page_token: str | None


def is_valid_name(text: object) -> bool:
    """Whether this can be the name of a job type."""
    try:
        _NAME.validate_python(text, strict=True)
    except ValidationError:
        return False
    return True


def parse_job_type(namespace: str, name: str, body: JsonValue, now: datetime) -> JobType:
    """The type that a request describes. Raises ValidationFailed with every problem."""
    if not is_valid_name(name):
        raise ValidationFailed.at("{job_type}", "must be 1 to 128 characters, none a control character")
    parsed = parse_body(JobTypeBody, body)
    raw_defaults = body.get("defaults") if isinstance(body, Mapping) else None
    defaults = raw_defaults if isinstance(raw_defaults, Mapping) else {}
    return JobType(
        namespace=namespace,
        name=name,
        executor=parsed.executor or "worker",
        target=_parse_target(parsed),
        queue=parsed.queue or "default",
        stages=DEFAULT_STAGES if parsed.stages is None else normalize_stages(parsed.stages),
        defaults={name_of_default: value for name_of_default, value in defaults.items() if value is not None},
        payload_schema=parsed.payload_schema,
        description=parsed.description,
        created_at=now,
        updated_at=now,
    )


def _parse_target(parsed: JobTypeBody) -> dict[str, Any] | None:
    """The target, checked. Raises ValidationFailed."""
    if parsed.executor not in jobs.TARGETED_EXECUTORS:
        if parsed.target is not None:
            raise ValidationFailed.at("/target", "is only for the executors `lambda` and `http`")
        return None
    if parsed.target is None:
        raise ValidationFailed.at("/target", f"is required: what is the executor {parsed.executor} to run?")
    try:
        if parsed.executor == "lambda":
            parse_body(LambdaTargetBody, parsed.target)
        else:
            parse_body(HttpTargetBody, parsed.target)
            executors.HttpTarget.from_document(parsed.target).validate()
    except ValidationFailed as error:
        raise prefix_pointers("/target", error) from error
    return {name: value for name, value in parsed.target.items() if value is not None}


def build_new_job(body: NewJobBody, job_type: JobType | None, job_id: str) -> jobs.NewJob:
    """The job to create, under its own id or this one: what was asked for, and what its type adds.

    Raises:
        ValidationFailed: the payload is not as the type says, or there are too many tags.
    """
    if body.payload_ref is not None and body.payload is not None:
        raise ValidationFailed.at("/payload_ref", "stands in place of payload, not beside it")
    if body.batch is not None:
        for name in ("payload", "payload_ref"):
            if getattr(body, name) is not None:
                raise ValidationFailed.at(f"/{name}", "stands in place of batch, whose items each have a payload")
    elif body.on_item_failure is not None:
        raise ValidationFailed.at("/on_item_failure", "is only for a batch")
    if job_type is None:
        return body.to_domain(job_id)
    if body.payload_ref is not None and job_type.payload_schema is not None:
        raise ValidationFailed.at("/payload_ref", "its type checks payloads, and what is uploaded is not read")
    merged = _with_defaults(body, job_type)
    check_payloads(
        job_type,
        {"/payload": merged.payload}
        if merged.batch is None
        else {f"/batch/{index}": payload for index, payload in enumerate(merged.batch)},
    )
    return replace(
        merged.to_domain(job_id), executor=job_type.executor, stages=job_type.stages, target_ref=job_type.target_ref
    )


def _with_defaults(body: NewJobBody, job_type: JobType) -> NewJobBody:
    defaults: Any = parse_body(JobDefaults, job_type.defaults)
    default_members = {name: getattr(defaults, name) for name in defaults.model_fields_set}
    added: dict[str, Any] = {name: value for name, value in default_members.items() if getattr(body, name) is None}
    if body.payload_ref is not None or body.batch is not None:
        added.pop("payload", None)
    added["fields"] = {**default_members.get("fields", {}), **(body.fields or {})}
    added["tags"] = list(dict.fromkeys([*default_members.get("tags", ()), *(body.tags or ())]))
    if len(added["tags"]) > MAX_TAGS:
        raise ValidationFailed.at("/tags", f"at most {MAX_TAGS}, those of the job type among them")
    added["queue"] = body.queue or default_members.get("queue") or job_type.queue
    return body.model_copy(update=added)
