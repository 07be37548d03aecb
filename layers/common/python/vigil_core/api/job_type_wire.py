"""What travels over HTTP for job types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError, create_model

from vigil_core.api.validation import parse_body
from vigil_core.api.wire import MAX_TAGS, Name, NewJob, QueueName, Shown, Text, TimeText, Wire
from vigil_core.domain import jobs
from vigil_core.domain.errors import ValidationFailed
from vigil_core.domain.job_types import JobType
from vigil_core.domain.jsontext import JsonValue, dumps
from vigil_core.domain.stages import COMPLETE, DEFAULT_STAGES, INCOMPLETE, MAX_STAGES, SUBMIT, order_of
from vigil_core.domain.times import to_text
from vigil_core.services.job_types import check_payload

MAX_PART_BYTES = 64 * 1024
"""What `defaults` and `payload_schema` take at most, each, as JSON: every creation reads them."""
NEVER_A_DEFAULT = {"job_id", "job_type", "payload_ref"}

_NAME: TypeAdapter[str] = TypeAdapter(Name)


def _no_executor_of_later(value: Any) -> Any:
    if value in ("lambda", "http"):
        raise ValueError(f"'{value}' is not served yet")
    return value


def small(value: Any) -> Any:
    """The value itself, if every reader can well take it along. Raises ValueError."""
    if value is not None and len(dumps(value).encode()) > MAX_PART_BYTES:
        raise ValueError(f"must take at most {MAX_PART_BYTES} bytes as JSON")
    return value


JobDefaults: type[Wire] = create_model(
    "JobDefaults",
    __base__=Wire,
    __doc__="What a creation of this type says unless it says otherwise. `fields` and `tags` are merged with its own",
    **{name: (field.annotation, field) for name, field in NewJob.model_fields.items() if name not in NEVER_A_DEFAULT},  # type: ignore[call-overload]
)


class JobTypeBody(Wire):
    """A job type, whole: what is absent is as if it had never been given."""

    executor: Annotated[Literal["worker", "none"] | None, BeforeValidator(_no_executor_of_later)] = Field(
        default=None,
        description="Who runs the jobs. `worker` when absent. `none`: somebody else does, they are only followed",
    )
    queue: QueueName | None = Field(default=None, description="`default` when absent")
    stages: Annotated[list[Name], Field(min_length=1, max_length=MAX_STAGES)] | None = Field(
        default=None,
        examples=[["flash", "boot", "test"]],
        description=f"In their order. `{SUBMIT}` is always the first and `{COMPLETE}` the last, named or not; "
        f"`{INCOMPLETE}` is in no order. When absent: {', '.join(DEFAULT_STAGES)}",
    )
    defaults: Annotated[JobDefaults | None, BeforeValidator(small)] = None
    payload_schema: Annotated[dict[str, Any] | None, AfterValidator(small)] = Field(
        default=None,
        examples=[{"type": "object", "required": ["kernel"]}],
        description="JSON Schema, draft 2020-12, that every payload has to satisfy",
    )
    description: Text | None = None


class JobTypeView(Shown):
    """A job type."""

    name: str
    executor: jobs.Executor
    queue: str
    stages: list[str]
    defaults: dict[str, Any]
    payload_schema: dict[str, Any] | None
    description: str | None
    created_at: TimeText
    updated_at: TimeText

    @classmethod
    def of(cls, job_type: JobType) -> JobTypeView:
        """The type."""
        return cls(
            name=job_type.name,
            executor=job_type.executor,
            queue=job_type.queue,
            stages=list(job_type.stages),
            defaults=dict(job_type.defaults),
            payload_schema=None if job_type.payload_schema is None else dict(job_type.payload_schema),
            description=job_type.description,
            created_at=to_text(job_type.created_at),
            updated_at=to_text(job_type.updated_at),
        )


class JobTypeList(Shown):
    """One page of job types, by name. It may be short; only an absent token is the end."""

    job_types: list[JobTypeView]
    next_page_token: str | None


def is_name(text: object) -> bool:
    """Whether this can be the name of a job type."""
    try:
        _NAME.validate_python(text, strict=True)
    except ValidationError:
        return False
    return True


def job_type_of(namespace: str, name: str, body: JsonValue, now: datetime) -> JobType:
    """The type that a request describes. Raises ValidationFailed with every problem."""
    if not is_name(name):
        raise ValidationFailed.at("{job_type}", "must be 1 to 128 characters, none a control character")
    said = parse_body(JobTypeBody, body)
    given = body.get("defaults") if isinstance(body, Mapping) else None
    defaults = given if isinstance(given, Mapping) else {}
    return JobType(
        namespace=namespace,
        name=name,
        executor=said.executor or "worker",
        queue=said.queue or "default",
        stages=DEFAULT_STAGES if said.stages is None else order_of(said.stages),
        defaults={part: value for part, value in defaults.items() if value is not None},
        payload_schema=said.payload_schema,
        description=said.description,
        created_at=now,
        updated_at=now,
    )


def job_of_type(asked: NewJob, job_type: JobType | None, job_id: str) -> jobs.NewJob:
    """The job to create, under its own id or this one: what was asked for, and what its type adds.

    Raises:
        ValidationFailed: the payload is not as the type says, or there are too many tags.
    """
    if asked.payload_ref is not None and asked.payload is not None:
        raise ValidationFailed.at("/payload_ref", "stands in place of payload, not beside it")
    if job_type is None:
        return asked.to_domain(job_id)
    if asked.payload_ref is not None and job_type.payload_schema is not None:
        raise ValidationFailed.at("/payload_ref", "its type checks payloads, and what is uploaded is not read")
    wanted = _with_defaults(asked, job_type)
    check_payload(job_type, wanted.payload)
    return replace(wanted.to_domain(job_id), executor=job_type.executor, stages=job_type.stages)


def _with_defaults(asked: NewJob, job_type: JobType) -> NewJob:
    defaults: Any = parse_body(JobDefaults, job_type.defaults)
    said = {name: getattr(defaults, name) for name in defaults.model_fields_set}
    added: dict[str, Any] = {name: value for name, value in said.items() if getattr(asked, name) is None}
    if asked.payload_ref is not None:
        added.pop("payload", None)
    added["fields"] = {**said.get("fields", {}), **(asked.fields or {})}
    added["tags"] = list(dict.fromkeys([*said.get("tags", ()), *(asked.tags or ())]))
    if len(added["tags"]) > MAX_TAGS:
        raise ValidationFailed.at("/tags", f"at most {MAX_TAGS}, those of the job type among them")
    added["queue"] = asked.queue or said.get("queue") or job_type.queue
    return asked.model_copy(update=added)
