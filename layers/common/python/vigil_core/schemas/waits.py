"""Models of waits: the request, and the answers, which clients post back as requests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    PlainValidator,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    with_config,
)
from pydantic_core import CoreSchema, core_schema
from typing_extensions import TypedDict

from vigil_core.domain.errors import FieldProblem, ValidationFailed, escape_pointer_token, raise_if_any
from vigil_core.domain.exact_json import MAX_PROBLEMS, JsonValue, dumps, integral_to_int
from vigil_core.domain.outbound_policy import MAX_URL_CHARS
from vigil_core.domain.text_rule import MAX_NAME_CHARS, NAME_PATTERN, NAME_RULE, obeys_name_rule
from vigil_core.domain.waits.request import (
    DEFAULT_EXPIRES_S,
    MAX_CONDITION_BYTES,
    MAX_EXPIRES_S,
    MAX_GET_FIELDS,
    MAX_WAITED_JOBS_BYTES,
    WaitRequest,
)
from vigil_core.domain.waits.wait import MAX_WAIT_JOBS, UnmetReason, WaitOptions, WaitStatus
from vigil_core.schemas.base import (
    DEFAULT_PAGE_SIZE,
    EXAMPLE_ID,
    PageSize,
    PageToken,
    RequestModel,
    ResponseModel,
    TimestampText,
    max_json_bytes,
    require_name_rule,
)
from vigil_core.schemas.validation import LIST_FORM, OBJECT_FORM, WORD_FORM, parse_body

_MAX_BYTES_PER_CHAR = 6
"""The longest form of a character in JSON: `\\u0000`."""


class _ErrorMessage:
    """An annotation that replaces every error of a type by one error with this message."""

    def __init__(self, message: str) -> None:
        self.message = message

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Wrap the schema of the annotated type."""
        return core_schema.custom_error_schema(
            handler(source), custom_error_type="wait_condition", custom_error_message=self.message
        )


def _reject(_: Any) -> Any:
    raise ValueError("cannot be part of a condition")


def _without_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


def _limit_properties(schema: dict[str, Any]) -> None:
    _without_default(schema)
    schema["maxProperties"] = MAX_WAIT_JOBS


def _check_job_count(value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    # The answer of a large wait has an empty `wait_on` for a moment: all jobs are decided, and the wait is not closed.
    min_jobs = 1 if info.data.get("wait_id", "") is None else 0
    if not min_jobs <= len(value) <= MAX_WAIT_JOBS:
        raise ValueError(f"must have 1 to {MAX_WAIT_JOBS} jobs, each with its condition")
    return value


def _check_objects(value: dict[str, Any]) -> dict[str, Any]:
    if not all(entry is None or isinstance(entry, dict) for entry in value.values()):
        raise ValueError("must be an object of job ids and objects")
    return value


def _parse_at_least(value: Any, info: ValidationInfo) -> int:
    limit = (info.context or {}).get("max_at_least", MAX_WAIT_JOBS)
    number = integral_to_int(value)
    if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= limit:
        raise ValueError(f"must be a whole number from 1 to {limit}, the number of jobs")
    return number


def _names_form(value: Any) -> str | None:
    return LIST_FORM if isinstance(value, list) else OBJECT_FORM if isinstance(value, dict) else None


def _mode_form(value: Any) -> str | None:
    if isinstance(value, dict):
        return OBJECT_FORM if set(value) == {"at_least"} else None
    return WORD_FORM if value in ("all", "any") else None


_WaitedName = Annotated[str, Field(min_length=1, pattern=NAME_PATTERN), AfterValidator(require_name_rule)]
_Forbidden = Annotated[Any, PlainValidator(_reject), WithJsonSchema({"not": {}})]
_ExpectedValue = Annotated[
    str | bool | int | Decimal | float,
    Field(union_mode="left_to_right"),
    _ErrorMessage("must be text, a number, true or false"),
    WithJsonSchema({"type": ["string", "number", "boolean"]}),
]
_Milestones = Annotated[
    _WaitedName | Annotated[list[_WaitedName], Field(min_length=1)],
    Field(union_mode="left_to_right"),
    _ErrorMessage("must be the name of a milestone, or a list of at least one name"),
]
_FieldName = Annotated[_WaitedName, Field(max_length=MAX_NAME_CHARS)]
_Objects = Annotated[
    dict[str, Any],
    AfterValidator(_check_objects),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": "object"}}),
]
_Flag = Annotated[bool | None, Field(description="Null and true are on, false and absent are off")]


@with_config(ConfigDict(extra="allow", strict=True))
class WaitConditionBody(TypedDict, total=False, extra_items=_ExpectedValue):  # type: ignore[call-arg]
    """The condition of one job. Without members: the job has ended.

    One version of the job must satisfy all members. A member with another name is a field or built-in and its expected
    value. Two numbers are compared as numbers, everything else as text.
    """

    job_stage: Annotated[_WaitedName, Field(description="This stage or a later one")]
    milestone: Annotated[_Milestones, Field(description="This milestone, or every milestone of the list")]
    milestones: Annotated[_Milestones, Field(description="The same as `milestone`")]
    progress: _Forbidden
    message: _Forbidden
    result: _Forbidden
    error: _Forbidden


class AtLeastMode(RequestModel):
    """The number of jobs that must be met."""

    at_least: Annotated[
        int,
        PlainValidator(_parse_at_least),
        WithJsonSchema({"type": "integer", "minimum": 1, "maximum": MAX_WAIT_JOBS}),
    ]


class NotifyOptions(RequestModel):
    """The notifications about the end of a wait."""

    sns: bool = Field(default=True, description="Whether the SNS topic receives the event. True when absent")
    webhook: Annotated[str, WithJsonSchema({"type": "string", "maxLength": MAX_URL_CHARS})] | None = Field(
        default=None, description="An https URL that receives the event, signed by the webhook `waits`"
    )


class WaitOptionsBody(RequestModel):
    """The options of a wait."""

    get_fields: (
        Annotated[
            Annotated[dict[_FieldName, None], Field(max_length=MAX_GET_FIELDS), Tag(OBJECT_FORM)]
            | Annotated[list[_FieldName], Field(max_length=MAX_GET_FIELDS), Tag(LIST_FORM)],
            Discriminator(
                _names_form,
                custom_error_type="get_fields",
                custom_error_message="must be an object whose keys are the names to collect, or a list of names",
            ),
        ]
        | None
    ) = Field(default=None, description="Names of the fields and built-ins to return of each job that is met")
    fail_fast: _Flag = False
    mode: Annotated[
        Annotated[Literal["all", "any"], Tag(WORD_FORM)] | Annotated[AtLeastMode, Tag(OBJECT_FORM)],
        Discriminator(
            _mode_form, custom_error_type="mode", custom_error_message="must be 'all', 'any' or {\"at_least\": n}"
        ),
    ] = Field(default="all", description="How many jobs must be met")
    return_on: Literal["done", "progress"] = Field(
        default="done", description="`progress`: answer at each new outcome, not only at the end of the wait"
    )
    expires_in: Annotated[int, Field(ge=1, le=MAX_EXPIRES_S), BeforeValidator(integral_to_int)] = Field(
        default=DEFAULT_EXPIRES_S, description="Seconds until the wait expires"
    )
    allow_missing: _Flag = Field(default=False, description="Null and true accept jobs that do not exist yet")
    notify: NotifyOptions | None = None

    def to_domain(self, job_count: int) -> WaitOptions:
        """Return the options of a wait on this number of jobs."""
        notify = self.notify or NotifyOptions()
        needed = job_count if self.mode == "all" else 1
        if isinstance(self.mode, AtLeastMode):
            needed = self.mode.at_least
        return WaitOptions(
            mode="all" if self.mode == "all" else "some",
            needed=needed,
            get_fields=tuple(name for name in self.get_fields or () if name != "job_stage"),
            fail_fast=self.fail_fast is not False,
            return_on_progress=self.return_on == "progress",
            allow_missing=self.allow_missing is not False,
            sns=notify.sns,
            webhook=notify.webhook,
        )


class WaitBody(RequestModel):
    """The jobs to wait for, or an unchanged answer of an earlier request, which continues its wait."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"required": ["wait_on"], "properties": {"wait_on": {"minProperties": 1}}},
                {"required": ["wait_id"], "properties": {"wait_id": {"type": "string"}}},
            ]
        }
    )

    wait_id: str | None = Field(default=None, description="The id in an answer that is posted back")
    wait_on: Annotated[
        dict[str, WaitConditionBody | None],
        AfterValidator(_check_job_count),
    ] = Field(
        default={},
        validate_default=True,
        description="The condition of each job. Null: the job has ended",
        examples=[{EXAMPLE_ID: {"job_stage": "boot"}}],
        json_schema_extra=_limit_properties,
    )
    wait_options: WaitOptionsBody | None = None
    waited_jobs: Annotated[_Objects, AfterValidator(max_json_bytes(MAX_WAITED_JOBS_BYTES))] | None = Field(
        default=None, description="The `waited_jobs` of an earlier answer. The new wait returns them unchanged"
    )
    unmet_jobs: _Objects | None = None
    status: Any = None
    counts: Any = None
    created_at: Any = None
    expires_at: Any = None
    ended_at: Any = None
    registering: Any = None
    truncated: Any = None
    jobs_url: Any = None

    @property
    def known_outcomes(self) -> int:
        """The number of outcomes that the posted answer counts or, without counts, lists."""
        parts = [self.counts.get("met"), self.counts.get("unmet")] if isinstance(self.counts, Mapping) else []
        counted = sum(part for part in parts if isinstance(part, int))
        return counted or len(self.waited_jobs or {}) + len(self.unmet_jobs or {})


class WaitQuery(RequestModel):
    """Filters of the list of waits."""

    status: WaitStatus | None = None
    page_size: PageSize = DEFAULT_PAGE_SIZE
    page_token: PageToken | None = None


def parse_wait_request(body: JsonValue) -> WaitRequest:
    """Parse a wait request, and apply the defaults.

    Raises:
        ValidationFailed: With every problem, up to 100.
    """
    members = body if isinstance(body, Mapping) else {}
    wait_on = members.get("wait_on")
    is_new = members.get("wait_id") is None and isinstance(wait_on, Mapping) and len(wait_on) > 0
    # An answer that is posted back lists fewer jobs than its wait has: the stored wait limits `at_least`.
    max_at_least = min(len(wait_on), MAX_WAIT_JOBS) if is_new and isinstance(wait_on, Mapping) else MAX_WAIT_JOBS
    entry_problems = [*_size_problems(wait_on), *_name_problems(wait_on)] if isinstance(wait_on, Mapping) else []
    try:
        parsed = parse_body(WaitBody, body, context={"max_at_least": max_at_least})
    except ValidationFailed as error:
        raise ValidationFailed([*error.problems, *entry_problems][:MAX_PROBLEMS]) from error
    raise_if_any(entry_problems[:MAX_PROBLEMS])
    options = parsed.wait_options or WaitOptionsBody()
    raw_options = members.get("wait_options")
    return WaitRequest(
        wait_id=parsed.wait_id,
        wait_on=wait_on if isinstance(wait_on, Mapping) else {},
        options=options.to_domain(len(parsed.wait_on)),
        raw_options=raw_options if isinstance(raw_options, Mapping) else {},
        expires_in_s=options.expires_in,
        waited_jobs=parsed.waited_jobs or {},
        known_job_ids=frozenset(parsed.waited_jobs or ()) | frozenset(parsed.unmet_jobs or ()),
        known_outcomes=parsed.known_outcomes,
    )


def _size_problems(wait_on: Mapping[str, JsonValue]) -> list[FieldProblem]:
    # The length of repr gives an upper bound of the size, and is faster than writing each condition as JSON.
    return [
        FieldProblem(
            pointer=f"/wait_on/{escape_pointer_token(job_id)}",
            detail=f"must take at most {MAX_CONDITION_BYTES} bytes as JSON",
        )
        for job_id, condition in wait_on.items()
        if condition is not None
        if len(repr(condition)) * _MAX_BYTES_PER_CHAR > MAX_CONDITION_BYTES
        if len(dumps(condition).encode()) > MAX_CONDITION_BYTES
    ]


def _name_problems(wait_on: Mapping[str, JsonValue]) -> Iterator[FieldProblem]:
    """Yield the names of fields that no job can have."""
    for job_id, condition in wait_on.items():
        for name in condition if isinstance(condition, Mapping) else ():
            if not obeys_name_rule(name):
                pointer = f"/wait_on/{escape_pointer_token(job_id)}/{escape_pointer_token(name)}"
                yield FieldProblem(pointer=pointer, detail=NAME_RULE)


class WaitCountsView(ResponseModel):
    """The number of jobs of a wait: in total, met, and unmet."""

    total: int
    met: int
    unmet: int


class WaitSummary(ResponseModel):
    """A wait without its jobs."""

    wait_id: str
    status: WaitStatus
    counts: WaitCountsView
    wait_options: Annotated[
        dict[str, Any], WithJsonSchema({"type": "object", "description": "The options as the client sent them"})
    ]
    created_at: TimestampText
    expires_at: TimestampText
    ended_at: TimestampText | None


class UnmetJob(ResponseModel):
    """The stage of a job that cannot meet its condition any more, and the reason."""

    job_stage: str | None
    reason: UnmetReason | None


class WaitView(WaitSummary):
    """A wait with its jobs. Post it back unchanged to continue the wait."""

    waited_jobs: dict[str, Any] = Field(description="The jobs that are met, with `job_stage` and the requested fields")
    unmet_jobs: dict[str, UnmetJob] = Field(description="The jobs that cannot meet their conditions any more")
    wait_on: dict[str, Any] = Field(
        default={},
        json_schema_extra=_without_default,
        description="The jobs that are still open, with their conditions. Absent when the wait has ended",
    )
    registering: bool = Field(
        default=False,
        json_schema_extra=_without_default,
        description="The registration is not complete: some jobs are not read yet",
    )
    truncated: bool = Field(
        default=False,
        json_schema_extra=_without_default,
        description="The answer does not list every job. Read them at `jobs_url`",
    )
    jobs_url: str = Field(
        default="", json_schema_extra=_without_default, description="Path of the list of the decided jobs, page by page"
    )


class WaitJobOutcome(ResponseModel):
    """The outcome of one job: the captured values if it is met, otherwise its stage and the reason."""

    job_id: str
    met: bool
    values: dict[str, str] | None = None
    job_stage: str | None = None
    reason: UnmetReason | None = None


class WaitJobs(ResponseModel):
    """One page of the decided jobs of a wait, in order. Only a null token marks the end."""

    jobs: list[WaitJobOutcome]
    next_page_token: str | None


class WaitList(ResponseModel):
    """One page of waits, newest first. A page may be short. Only a null token marks the end."""

    waits: list[WaitSummary]
    next_page_token: str | None
