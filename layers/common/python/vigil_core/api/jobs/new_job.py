"""The job that a creation describes: the members of the request, with the defaults of the job type."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vigil_core.domain.errors import ValidationFailed
from vigil_core.domain.ids import is_uuid7
from vigil_core.domain.jobs import job as jobs
from vigil_core.domain.jobs.conditions import root_use
from vigil_core.domain.jobs.job_type import JobType
from vigil_core.schemas.job_types import JobDefaults
from vigil_core.schemas.jobs import MAX_TAGS, NewJobBody
from vigil_core.schemas.validation import parse_body
from vigil_core.services.cpu_limits import SchemaCpu
from vigil_core.services.jobs.job_types import check_payloads


def build_new_job(
    body: NewJobBody, job_type: JobType | None, job_id: str, schema_cpu: SchemaCpu | None = None
) -> jobs.NewJob:
    """Return the job to create outside a workflow. The arguments are those of `merge_new_job`.

    Raises:
        ValidationFailed: As `merge_new_job`, or the condition names data outside its view.
    """
    new = merge_new_job(body, job_type, job_id, schema_cpu)
    _check_condition(new)
    return new


def merge_new_job(
    body: NewJobBody, job_type: JobType | None, job_id: str, schema_cpu: SchemaCpu | None = None
) -> jobs.NewJob:
    """Return the job that a request describes, with the defaults of its job type.

    Args:
        body: The request.
        job_type: The definition of its job type, or None if there is none.
        job_id: The id of the job if the request has none.
        schema_cpu: The CPU time of all schema checks of the request, if it creates several jobs.

    Raises:
        ValidationFailed: Members exclude each other, the payload does not satisfy the schema of the job type, or there
            are too many tags.
    """
    _check_combinations(body)
    if job_type is None:
        return body.to_domain(job_id)
    if body.payload_ref is not None and job_type.payload_schema is not None:
        raise ValidationFailed.at(
            "/payload_ref", "must be absent: the job type checks payloads, and uploads are not read"
        )
    merged = _with_defaults(body, job_type)
    check_payloads(
        job_type,
        {"/payload": merged.payload}
        if merged.batch is None
        else {f"/batch/{index}": payload for index, payload in enumerate(merged.batch)},
        schema_cpu,
    )
    return replace(
        merged.to_domain(job_id), executor=job_type.executor, stages=job_type.stages, target_ref=job_type.target_ref
    )


def _check_condition(new: jobs.NewJob) -> None:
    """Check that a condition sees the data that it names: the dependencies of the job."""
    if new.condition is None:
        return
    if not new.depends_on:
        raise ValidationFailed.at("/condition", "needs `depends_on`: without dependencies there are no results to test")
    for name in root_use(new.condition).names:
        if is_uuid7(name) and name not in new.depends_on:
            raise ValidationFailed.at("/condition", f"names the job {name}, which is not in `depends_on`")


def _check_combinations(body: NewJobBody) -> None:
    if body.payload_ref is not None and body.payload is not None:
        raise ValidationFailed.at("/payload_ref", "replaces payload: send only one of them")
    if body.batch is not None:
        for name in ("payload", "payload_ref"):
            if getattr(body, name) is not None:
                raise ValidationFailed.at(f"/{name}", "must be absent: each item of batch has its own payload")
    elif body.on_item_failure is not None:
        raise ValidationFailed.at("/on_item_failure", "is only for a batch")


def _with_defaults(body: NewJobBody, job_type: JobType) -> NewJobBody:
    defaults: Any = parse_body(JobDefaults, job_type.defaults)
    default_members = {name: getattr(defaults, name) for name in defaults.model_fields_set}
    added: dict[str, Any] = {name: value for name, value in default_members.items() if getattr(body, name) is None}
    if body.payload_ref is not None or body.batch is not None:
        added.pop("payload", None)
    added["fields"] = {**default_members.get("fields", {}), **(body.fields or {})}
    added["tags"] = list(dict.fromkeys([*default_members.get("tags", ()), *(body.tags or ())]))
    if len(added["tags"]) > MAX_TAGS:
        raise ValidationFailed.at("/tags", f"must have at most {MAX_TAGS} tags, including those of the job type")
    added["queue"] = body.queue or default_members.get("queue") or job_type.queue
    return body.model_copy(update=added)
