"""What travels over HTTP for schedules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, create_model

from vigil_core.api.jobs.job_type_models import build_new_job, check_part_size, is_valid_name
from vigil_core.api.jobs.models import JobErrorView, NewJobBody, RequestModel, ResponseModel, TimestampText
from vigil_core.api.validation import parse_body, prefix_pointers
from vigil_core.api.workflows.models import FindTypes, parse_workflow
from vigil_core.domain import schedules
from vigil_core.domain.errors import ValidationFailed
from vigil_core.domain.exact_json import JsonValue
from vigil_core.domain.jobs import job as jobs
from vigil_core.domain.jobs.job_type import JobType
from vigil_core.domain.schedules import (
    FireOutcome,
    MisfirePolicy,
    OverlapPolicy,
    Schedule,
    ScheduleAction,
    ScheduleTiming,
)
from vigil_core.domain.timestamps import to_text

EXCLUDED_MEMBERS = {"job_id", "payload_ref", "scheduled_at"}
"""What each job that a schedule creates gets from the schedule; and uploads, which do not last."""
MAX_CRON_CHARS = 256

ScheduledJob: type[RequestModel] = create_model(
    "ScheduledJob",
    __base__=RequestModel,
    __doc__="The body of a job's creation, without what the schedule decides",
    **{
        name: (field.annotation, field)
        for name, field in NewJobBody.model_fields.items()
        if name not in EXCLUDED_MEMBERS
    },  # type: ignore[call-overload]
)


def _zone(value: str) -> str:
    schedules.parse_timezone(value)
    return value


def _rate(value: str) -> str:
    schedules.parse_rate(value)
    return value


class ScheduleBody(RequestModel):
    """A schedule, whole: what is absent is as if it had never been given. It has either `cron` or `rate`."""

    cron: Annotated[str, Field(max_length=MAX_CRON_CHARS)] | None = Field(
        default=None,
        examples=["30 2 * * MON-FRI"],
        description="Five fields, in the time zone: minute, hour, day of month, month, day of week",
    )
    rate: Annotated[str, Field(max_length=32), AfterValidator(_rate)] | None = Field(
        default=None,
        examples=["5 minutes"],
        description="A period in minutes, hours or days, counted from when the schedule was defined",
    )
    timezone: Annotated[str, Field(max_length=64), AfterValidator(_zone)] | None = Field(
        default=None, examples=["Europe/Berlin"], description="By its IANA name, for `cron`; UTC when absent"
    )
    job: Annotated[ScheduledJob, BeforeValidator(check_part_size)] | None = Field(
        default=None,
        examples=[{"job_type": "nightly_report"}],
        description="What is created each time: a body of `POST /v1/jobs`",
    )
    workflow: Annotated[dict[str, Any], BeforeValidator(check_part_size)] | None = Field(
        default=None,
        description="In place of `job`: a body of `POST /v1/workflows`. A `start_delay` counts from the planned time",
    )
    enabled: bool | None = Field(default=None, description="True when absent; false is paused")
    missed: MisfirePolicy | None = Field(
        default=None,
        description="What becomes of a run that could not begin within five minutes: `skip`, when absent, leaves it "
        "out; `run_once` makes up for the last of them",
    )
    overlap: OverlapPolicy | None = Field(
        default=None, description="`skip` leaves a run out while what the last one created goes on; `allow` when absent"
    )


class ScheduleFireView(ResponseModel):
    """What became of a planned time. `created`: there is a job, or a run of the workflow. `existing`: a live job has
    its `unique_key`. `overlap` and `missed`: left out, as the schedule says. `refused`: it could not be created;
    `error` says why."""

    planned_at: TimestampText
    at: TimestampText
    outcome: FireOutcome
    job_id: str | None
    workflow_id: str | None
    error: JobErrorView | None


class ScheduleView(ResponseModel):
    """A schedule. `next_times` are its next five runs; none while it is paused."""

    name: str
    cron: str | None
    rate: str | None
    timezone: str
    job: dict[str, Any] | None
    workflow: dict[str, Any] | None
    enabled: bool
    missed: MisfirePolicy
    overlap: OverlapPolicy
    next_times: list[TimestampText]
    last_run: ScheduleFireView | None
    created_at: TimestampText
    updated_at: TimestampText

    @classmethod
    def from_domain(cls, schedule: Schedule, now: datetime) -> ScheduleView:
        """The schedule, as it is now."""
        fire = schedule.last_fire
        return cls(
            name=schedule.name,
            cron=schedule.timing.cron,
            rate=schedule.timing.rate,
            timezone=schedule.timing.timezone,
            job=dict(schedule.body) if schedule.action == "job" else None,
            workflow=dict(schedule.body) if schedule.action == "workflow" else None,
            enabled=schedule.enabled,
            missed=schedule.misfire_policy,
            overlap=schedule.overlap_policy,
            next_times=[to_text(moment) for moment in schedule.next_fire_times(now)],
            last_run=fire
            and ScheduleFireView(
                planned_at=to_text(fire.planned_at),
                at=to_text(fire.fired_at),
                outcome=fire.outcome,
                job_id=fire.created_id if schedule.action == "job" else None,
                workflow_id=fire.created_id if schedule.action == "workflow" else None,
                error=fire.error and JobErrorView(code=fire.error.code, message=fire.error.message),
            ),
            created_at=to_text(schedule.created_at),
            updated_at=to_text(schedule.updated_at),
        )


class ScheduleList(ResponseModel):
    """One page of schedules, by name. It may be short; only an absent token is the end."""

    schedules: list[ScheduleView]
    next_page_token: str | None


def parse_schedule(
    namespace: str,
    name: str,
    body: JsonValue,
    *,
    now: datetime,
    new_id: Callable[[], str],
    find_types: FindTypes,
) -> Schedule:
    """The schedule that a request describes. Raises ValidationFailed with every problem."""
    if not is_valid_name(name):
        raise ValidationFailed.at("{schedule}", "must be 1 to 128 characters, none a control character")
    parsed = parse_body(ScheduleBody, body)
    if (parsed.cron is None) == (parsed.rate is None):
        raise ValidationFailed.at("", "must have either cron or rate")
    timing = ScheduleTiming(
        cron=parsed.cron, rate=parsed.rate, timezone=parsed.timezone or "UTC", anchor=now.replace(microsecond=0)
    )
    try:
        first = next(timing.fire_times_after(now), None)
    except ValueError as error:
        raise ValidationFailed.at("/cron", str(error)) from error
    if first is None:
        raise ValidationFailed.at("/cron", "never happens")
    if (parsed.job is None) == (parsed.workflow is None):
        raise ValidationFailed.at("", "must have either job or workflow")
    creates: ScheduleAction = "workflow" if parsed.job is None else "job"
    raw_action = body.get(creates) if isinstance(body, Mapping) else None
    action_body = (
        {part: value for part, value in raw_action.items() if value is not None}
        if isinstance(raw_action, Mapping)
        else {}
    )
    try:
        if creates == "workflow":
            parse_workflow(namespace, action_body, new_id(), now=now, find_types=find_types)
        else:
            parse_scheduled_job(
                namespace, action_body, new_id(), find_type=lambda of, name: find_types(of, [name]).get(name)
            )
    except ValidationFailed as error:
        raise prefix_pointers(f"/{creates}", error) from error
    return Schedule(
        namespace=namespace,
        name=name,
        schedule_id=new_id(),
        timing=timing,
        action=creates,
        body=action_body,
        enabled=parsed.enabled is not False,
        misfire_policy=parsed.missed or "skip",
        overlap_policy=parsed.overlap or "allow",
        generation=new_id(),
        next_fire_at=None,
        created_at=now,
        updated_at=now,
    )


def parse_scheduled_job(
    namespace: str,
    body: Mapping[str, JsonValue],
    job_id: str,
    *,
    find_type: Callable[[str, str], JobType | None],
) -> jobs.NewJob:
    """The job that a stored body says, with what its type adds now. Raises ValidationFailed."""
    job_body = parse_body(NewJobBody, body)
    return build_new_job(job_body, find_type(namespace, job_body.job_type), job_id)
