"""Response models of job types, and the parsing of a definition."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from vigil_core.domain.errors import ValidationFailed
from vigil_core.domain.exact_json import JsonValue
from vigil_core.domain.executors.targets import HttpTarget
from vigil_core.domain.jobs.job import TARGETED_EXECUTORS, Executor
from vigil_core.domain.jobs.job_type import JobType
from vigil_core.domain.jobs.stages import DEFAULT_STAGES, normalize_stages
from vigil_core.domain.timestamps import to_text
from vigil_core.schemas.base import ResponseModel, TimestampText, is_valid_name
from vigil_core.schemas.job_types import HttpTargetBody, JobTypeBody, LambdaTargetBody
from vigil_core.schemas.validation import parse_body, prefix_pointers


class JobTypeView(ResponseModel):
    """A job type."""

    name: str
    executor: Executor
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
        """Return the job type."""
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
    """One page of job types, sorted by name. A page may be short. Only a null token marks the end."""

    job_types: list[JobTypeView]
    next_page_token: str | None


def parse_job_type(namespace: str, name: str, body: JsonValue, now: datetime) -> JobType:
    """Parse the definition of a job type.

    Raises:
        ValidationFailed: With every problem of the body; or with the problem of the name or the target.
    """
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
    if parsed.executor not in TARGETED_EXECUTORS:
        if parsed.target is not None:
            raise ValidationFailed.at("/target", "is only for the executors `lambda` and `http`")
        return None
    if parsed.target is None:
        raise ValidationFailed.at("/target", f"is required by the executor {parsed.executor}")
    try:
        if parsed.executor == "lambda":
            parse_body(LambdaTargetBody, parsed.target)
        else:
            parse_body(HttpTargetBody, parsed.target)
            HttpTarget.from_document(parsed.target).validate()
    except ValidationFailed as error:
        raise prefix_pointers("/target", error) from error
    return {name: value for name, value in parsed.target.items() if value is not None}
