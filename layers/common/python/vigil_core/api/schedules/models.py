"""Response models of schedules, and the parsing of a definition."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from vigil_core.api.jobs.models import ErrorView
from vigil_core.api.jobs.new_job import build_new_job
from vigil_core.api.workflows.models import FindTypes, parse_workflow
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
from vigil_core.schemas.base import ResponseModel, TimestampText, is_valid_name
from vigil_core.schemas.jobs import NewJobBody
from vigil_core.schemas.schedules import ScheduleBody
from vigil_core.schemas.validation import parse_body, prefix_pointers


class ScheduleFireView(ResponseModel):
    """The outcome of a planned time.

    `created`: the job or the run of the workflow exists. `existing`: an open job has its `unique_key`. `overlap` and
    `missed`: the schedule skipped this time. `refused`: the creation failed, and `error` has the reason.
    """

    planned_at: TimestampText
    at: TimestampText
    outcome: FireOutcome
    job_id: str | None
    workflow_id: str | None
    error: ErrorView | None


class ScheduleView(ResponseModel):
    """A schedule. `next_times` are its next five planned times. The list is empty while it is paused."""

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
        """Return the schedule with its next planned times."""
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
                error=fire.error and ErrorView(code=fire.error.code, message=fire.error.message),
            ),
            created_at=to_text(schedule.created_at),
            updated_at=to_text(schedule.updated_at),
        )


class ScheduleList(ResponseModel):
    """One page of schedules, sorted by name. A page may be short. Only a null token marks the end."""

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
    """Parse the definition of a schedule.

    Raises:
        ValidationFailed: With every problem of the body; or with the problem of the name, the timing or the action.
    """
    if not is_valid_name(name):
        raise ValidationFailed.at("{schedule}", "must be 1 to 128 characters, none a control character")
    parsed = parse_body(ScheduleBody, body)
    timing = _parse_timing(parsed, now)
    if (parsed.job is None) == (parsed.workflow is None):
        raise ValidationFailed.at("", "must have either job or workflow")
    action: ScheduleAction = "workflow" if parsed.job is None else "job"
    action_body = _parse_action(namespace, body, action, now=now, new_id=new_id, find_types=find_types)
    return Schedule(
        namespace=namespace,
        name=name,
        schedule_id=new_id(),
        timing=timing,
        action=action,
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
    """Parse the stored body of a schedule's job, with the current defaults of its job type.

    Raises:
        ValidationFailed: The body is invalid, for example under a changed job type.
    """
    job_body = parse_body(NewJobBody, body)
    return build_new_job(job_body, find_type(namespace, job_body.job_type), job_id)


def _parse_timing(parsed: ScheduleBody, now: datetime) -> ScheduleTiming:
    if (parsed.cron is None) == (parsed.rate is None):
        raise ValidationFailed.at("", "must have either cron or rate")
    timing = ScheduleTiming(
        cron=parsed.cron, rate=parsed.rate, timezone=parsed.timezone or "UTC", anchor=now.replace(microsecond=0)
    )
    try:
        first_fire_at = next(timing.fire_times_after(now), None)
    except ValueError as error:
        raise ValidationFailed.at("/cron", str(error)) from error
    if first_fire_at is None:
        raise ValidationFailed.at("/cron", "never happens")
    return timing


def _parse_action(
    namespace: str,
    body: JsonValue,
    action: ScheduleAction,
    *,
    now: datetime,
    new_id: Callable[[], str],
    find_types: FindTypes,
) -> dict[str, JsonValue]:
    """Return the body of each creation without its null members, after a trial parse."""
    raw_action = body.get(action) if isinstance(body, Mapping) else None
    members = raw_action if isinstance(raw_action, Mapping) else {}
    action_body: dict[str, JsonValue] = {name: value for name, value in members.items() if value is not None}
    try:
        if action == "workflow":
            parse_workflow(namespace, action_body, new_id(), now=now, find_types=find_types)
        else:
            parse_scheduled_job(
                namespace, action_body, new_id(), find_type=lambda owner, name: find_types(owner, [name]).get(name)
            )
    except ValidationFailed as error:
        raise prefix_pointers(f"/{action}", error) from error
    return action_body
