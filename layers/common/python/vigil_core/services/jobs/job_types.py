"""Job types: definition, deletion and validation of payloads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from vigil_core.domain.errors import FieldProblem, JobTypeNotFound, TargetRefused, ValidationFailed
from vigil_core.domain.exact_json import JsonValue
from vigil_core.domain.executors.targets import HttpTarget, LambdaTarget, is_own_function
from vigil_core.domain.jobs.job_type import JobType
from vigil_core.domain.outbound_policy import parse_outbound_url
from vigil_core.services.context import UsesAllowedPrivateHosts, UsesClock, UsesJobTypes, UsesLimits, UsesStackName
from vigil_core.services.cpu_limits import SchemaCpu
from vigil_core.services.limits.admission import require_room_for
from vigil_core.services.optimistic import update_with_retry
from vigil_core.store.table import ConditionFailed


class JobTypesContext(UsesJobTypes, UsesClock, UsesAllowedPrivateHosts, UsesStackName, UsesLimits, Protocol):
    """The collaborators of job types."""


def put_job_type(ctx: JobTypesContext, job_type: JobType) -> tuple[JobType, bool]:
    """Create a job type or replace the one with the same name.

    Returns:
        The current version, and whether the job type is new. An equal definition makes no version.

    Raises:
        RequestLimitExceeded: The namespace has too many job types.
        ValidationFailed: The `payload_schema` is not a JSON Schema, or validation with it would take too long. Or no
            job could ever call the target.
    """
    if job_type.payload_schema is not None:
        # The import takes 0.1 s, and most requests need no JSON Schema.
        from vigil_core.services.jobs.payload_schema import check_schema

        check_schema(job_type.payload_schema)
    _check_target(ctx, job_type)

    def save(before: JobType | None, after: JobType) -> tuple[JobType, bool]:
        if before is None:
            require_room_for(ctx, after.namespace, "job_types")
        if after != before:
            ctx.job_types.store_target(after)
            ctx.job_types.save(before, after)
        return after, before is None

    return update_with_retry(
        lambda: ctx.job_types.find(job_type.namespace, job_type.name),
        lambda before: job_type if before is None else job_type.as_next_version(before),
        save,
        sleep=ctx.sleep,
        subject=f"job type {job_type.name}",
        retry_on=ConditionFailed,
    )


def _check_target(ctx: JobTypesContext, job_type: JobType) -> None:
    """Refuse a target that no job can ever call.

    Raises:
        ValidationFailed: The outbound policy forbids the host of the URL, or the function belongs to Vigil.
    """
    if job_type.target is None:
        return
    if job_type.executor == "http":
        try:
            parse_outbound_url(f"{HttpTarget.from_document(job_type.target).origin}/", ctx.allowed_private_hosts)
        except TargetRefused as error:
            problem = FieldProblem(pointer="/target/url", detail=error.message, code=error.code)
            raise ValidationFailed([problem]) from error
    elif is_own_function(LambdaTarget.from_document(job_type.target).function, ctx.stack_name):
        raise ValidationFailed.at("/target/function", "belongs to Vigil: no job invokes it")


def find_job_type(ctx: JobTypesContext, namespace: str, name: str) -> JobType:
    """Read a job type.

    Raises:
        JobTypeNotFound: No job type has this name.
    """
    job_type = ctx.job_types.find(namespace, name)
    if job_type is None:
        raise JobTypeNotFound(name)
    return job_type


def delete_job_type(ctx: JobTypesContext, namespace: str, name: str) -> None:
    """Delete a job type. Its jobs do not change.

    Raises:
        JobTypeNotFound: No job type has this name.
    """
    if not ctx.job_types.remove(namespace, name):
        raise JobTypeNotFound(name)


def check_payloads(job_type: JobType, payloads: Mapping[str, JsonValue], cpu: SchemaCpu | None = None) -> None:
    """Validate payloads against the `payload_schema` of their job type.

    Args:
        job_type: The job type.
        payloads: The payloads by their JSON pointers in the request.
        cpu: The CPU time of all checks of the request, if there are others.

    Raises:
        ValidationFailed: Some payloads are invalid; the error has up to 20 problems with their pointers.
    """
    if job_type.payload_schema is not None:
        from vigil_core.services.jobs.payload_schema import check_instances

        check_instances(job_type.payload_schema, payloads, cpu)
