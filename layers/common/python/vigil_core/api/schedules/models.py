"""What travels over HTTP for schedules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, create_model

from vigil_core.api.jobs.job_type_models import is_name, job_of_type, small
from vigil_core.api.jobs.models import NewJob, Shown, ShownError, TimeText, Wire
from vigil_core.api.validation import below, parse_body
from vigil_core.api.workflows.models import FindTypes, run_of_body
from vigil_core.domain import schedules
from vigil_core.domain.errors import ValidationFailed
from vigil_core.domain.exact_json import JsonValue
from vigil_core.domain.jobs import job as jobs
from vigil_core.domain.jobs.job_type import JobType
from vigil_core.domain.schedules import Creates, Missed, Overlap, RunOutcome, Schedule, Timing
from vigil_core.domain.timestamps import to_text

NEVER_SCHEDULED = {"job_id", "payload_ref", "scheduled_at"}
"""What each job that a schedule creates gets from the schedule; and uploads, which do not last."""
MAX_CRON_CHARS = 256

ScheduledJob: type[Wire] = create_model(
    "ScheduledJob",
    __base__=Wire,
    __doc__="The body of a job's creation, without what the schedule decides",
    **{name: (field.annotation, field) for name, field in NewJob.model_fields.items() if name not in NEVER_SCHEDULED},  # type: ignore[call-overload]
)


def _zone(value: str) -> str:
    schedules.zone(value)
    return value


def _rate(value: str) -> str:
    schedules.period(value)
    return value


class ScheduleBody(Wire):
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
    job: Annotated[ScheduledJob, BeforeValidator(small)] | None = Field(
        default=None,
        examples=[{"job_type": "nightly_report"}],
        description="What is created each time: a body of `POST /v1/jobs`",
    )
    workflow: Annotated[dict[str, Any], BeforeValidator(small)] | None = Field(
        default=None,
        description="In place of `job`: a body of `POST /v1/workflows`. A `start_delay` counts from the planned time",
    )
    enabled: bool | None = Field(default=None, description="True when absent; false is paused")
    missed: Missed | None = Field(
        default=None,
        description="What becomes of a run that could not begin within five minutes: `skip`, when absent, leaves it "
        "out; `run_once` makes up for the last of them",
    )
    overlap: Overlap | None = Field(
        default=None, description="`skip` leaves a run out while what the last one created goes on; `allow` when absent"
    )


class RunView(Shown):
    """What became of a planned time. `created`: there is a job, or a run of the workflow. `existing`: a live job has
    its `unique_key`. `overlap` and `missed`: left out, as the schedule says. `refused`: it could not be created;
    `error` says why."""

    planned_at: TimeText
    at: TimeText
    outcome: RunOutcome
    job_id: str | None
    workflow_id: str | None
    error: ShownError | None


class ScheduleView(Shown):
    """A schedule. `next_times` are its next five runs; none while it is paused."""

    name: str
    cron: str | None
    rate: str | None
    timezone: str
    job: dict[str, Any] | None
    workflow: dict[str, Any] | None
    enabled: bool
    missed: Missed
    overlap: Overlap
    next_times: list[TimeText]
    last_run: RunView | None
    created_at: TimeText
    updated_at: TimeText

    @classmethod
    def of(cls, schedule: Schedule, now: datetime) -> ScheduleView:
        """The schedule, as it is now."""
        run = schedule.last_run
        return cls(
            name=schedule.name,
            cron=schedule.timing.cron,
            rate=schedule.timing.rate,
            timezone=schedule.timing.timezone,
            job=dict(schedule.body) if schedule.creates == "job" else None,
            workflow=dict(schedule.body) if schedule.creates == "workflow" else None,
            enabled=schedule.enabled,
            missed=schedule.missed,
            overlap=schedule.overlap,
            next_times=[to_text(moment) for moment in schedule.next_times(now)],
            last_run=run
            and RunView(
                planned_at=to_text(run.planned_at),
                at=to_text(run.at),
                outcome=run.outcome,
                job_id=run.created_id if schedule.creates == "job" else None,
                workflow_id=run.created_id if schedule.creates == "workflow" else None,
                error=run.error and ShownError(code=run.error.code, message=run.error.message),
            ),
            created_at=to_text(schedule.created_at),
            updated_at=to_text(schedule.updated_at),
        )


class ScheduleList(Shown):
    """One page of schedules, by name. It may be short; only an absent token is the end."""

    schedules: list[ScheduleView]
    next_page_token: str | None


def schedule_of(
    namespace: str,
    name: str,
    body: JsonValue,
    *,
    now: datetime,
    new_id: Callable[[], str],
    find_types: FindTypes,
) -> Schedule:
    """The schedule that a request describes. Raises ValidationFailed with every problem."""
    if not is_name(name):
        raise ValidationFailed.at("{schedule}", "must be 1 to 128 characters, none a control character")
    said = parse_body(ScheduleBody, body)
    if (said.cron is None) == (said.rate is None):
        raise ValidationFailed.at("", "must have either cron or rate")
    timing = Timing(cron=said.cron, rate=said.rate, timezone=said.timezone or "UTC", anchor=now.replace(microsecond=0))
    try:
        first = next(timing.after(now), None)
    except ValueError as error:
        raise ValidationFailed.at("/cron", str(error)) from error
    if first is None:
        raise ValidationFailed.at("/cron", "never happens")
    if (said.job is None) == (said.workflow is None):
        raise ValidationFailed.at("", "must have either job or workflow")
    creates: Creates = "workflow" if said.job is None else "job"
    given = body.get(creates) if isinstance(body, Mapping) else None
    wanted = {part: value for part, value in given.items() if value is not None} if isinstance(given, Mapping) else {}
    try:
        if creates == "workflow":
            run_of_body(namespace, wanted, new_id(), now=now, find_types=find_types)
        else:
            job_of_body(namespace, wanted, new_id(), find_type=lambda of, name: find_types(of, [name]).get(name))
    except ValidationFailed as error:
        raise below(f"/{creates}", error) from error
    return Schedule(
        namespace=namespace,
        name=name,
        schedule_id=new_id(),
        timing=timing,
        creates=creates,
        body=wanted,
        enabled=said.enabled is not False,
        missed=said.missed or "skip",
        overlap=said.overlap or "allow",
        generation=new_id(),
        next_at=None,
        created_at=now,
        updated_at=now,
    )


def job_of_body(
    namespace: str,
    body: Mapping[str, JsonValue],
    job_id: str,
    *,
    find_type: Callable[[str, str], JobType | None],
) -> jobs.NewJob:
    """The job that a stored body says, with what its type adds now. Raises ValidationFailed."""
    asked = parse_body(NewJob, body)
    return job_of_type(asked, find_type(namespace, asked.job_type), job_id)
