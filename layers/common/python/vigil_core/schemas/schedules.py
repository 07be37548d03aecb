"""Request models of schedules."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, create_model

from vigil_core.domain.schedules import MisfirePolicy, OverlapPolicy, parse_rate, parse_timezone
from vigil_core.schemas.base import RequestModel
from vigil_core.schemas.job_types import check_part_size
from vigil_core.schemas.jobs import NewJobBody

EXCLUDED_MEMBERS = {"job_id", "payload_ref", "scheduled_at"}
"""Members that the schedule sets for each job, and references of uploads, which expire."""
MAX_CRON_CHARS = 256

ScheduledJob: type[RequestModel] = create_model(
    "ScheduledJob",
    __base__=RequestModel,
    __doc__="The body of a job's creation, without the members that the schedule sets",
    **{
        name: (field.annotation, field)
        for name, field in NewJobBody.model_fields.items()
        if name not in EXCLUDED_MEMBERS
    },  # type: ignore[call-overload]
)


def _require_timezone(value: str) -> str:
    parse_timezone(value)
    return value


def _require_rate(value: str) -> str:
    parse_rate(value)
    return value


class ScheduleBody(RequestModel):
    """The whole definition of a schedule. An absent member has its default. It has either `cron` or `rate`."""

    cron: Annotated[str, Field(max_length=MAX_CRON_CHARS)] | None = Field(
        default=None,
        examples=["30 2 * * MON-FRI"],
        description="Five fields in the time zone: minute, hour, day of month, month, day of week",
    )
    rate: Annotated[str, Field(max_length=32), AfterValidator(_require_rate)] | None = Field(
        default=None,
        examples=["5 minutes"],
        description="A period in minutes, hours or days, counted from the definition of the schedule",
    )
    timezone: Annotated[str, Field(max_length=64), AfterValidator(_require_timezone)] | None = Field(
        default=None, examples=["Europe/Berlin"], description="IANA name of the time zone of `cron`. UTC when absent"
    )
    job: Annotated[ScheduledJob, BeforeValidator(check_part_size)] | None = Field(
        default=None,
        examples=[{"job_type": "nightly_report"}],
        description="The job that each fire creates: a body of `POST /v1/jobs`",
    )
    workflow: Annotated[dict[str, Any], BeforeValidator(check_part_size)] | None = Field(
        default=None,
        description="Instead of `job`: a body of `POST /v1/workflows`. A `start_delay` counts from the planned time",
    )
    enabled: bool | None = Field(default=None, description="True when absent. False pauses the schedule")
    missed: MisfirePolicy | None = Field(
        default=None,
        description="What happens to planned times that could not fire within five minutes. `skip` (default): nothing "
        "is created. `run_once`: the schedule fires once, for the latest of them",
    )
    overlap: OverlapPolicy | None = Field(
        default=None,
        description="`allow` (default). `skip`: a planned time does not fire while the last created job or run is open",
    )
